"""The warm start: lessons in tokens are what serving tokenises, and teaching teaches."""

import math

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memory_r1.train import teach  # noqa: E402
from memory_r1.train import tokenizer as tokens  # noqa: E402
from memory_r1.train.batch import Branch, Tree, pack  # noqa: E402
from memory_r1.train.lessons import Teacher, Vice  # noqa: E402
from memory_r1.train.teach import (  # noqa: E402
    Schedule,
    Teaching,
    deciding,
    exact_replies,
    optimizers,
    tree_of,
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.build()


def tiny(tokenizer):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=True,
        attn_implementation="tree",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.Qwen2ForCausalLM(config)


def test_a_lesson_in_tokens_is_its_prompts_and_replies_in_tokens(tokenizer):
    for lesson in Teacher(0, Vice()).lessons(1.0):
        tree = tree_of(lesson, tokenizer)
        for branch, ending in zip(tree.branches, lesson.endings, strict=True):
            prompt = tokenizer(f"{lesson.prefix} {ending.given}")["input_ids"]
            whole = tokenizer(f"{lesson.prefix} {ending.given} {ending.reply}")["input_ids"]
            assert [*tree.prefix, *branch.ids[: branch.given]] == prompt
            assert [*tree.prefix, *branch.ids] == [*whole, tokenizer.eos_token_id]


def test_the_rate_warms_up_and_decays_to_a_fiftieth():
    schedule = Schedule(1000, tokens_per_step=100, muon_lr=1, adam_lr=1, warmup=50)
    assert schedule.share(0) == pytest.approx(0.02)
    assert schedule.share(49) == pytest.approx(0.99, abs=0.01)
    assert schedule.share(500) == pytest.approx(0.51)
    assert schedule.share(1000) == pytest.approx(0.02)


def test_deciding_tokens_weigh_twice():
    packed = pack([Tree((1,), (Branch((2, 9, 3)), Branch((4, 5, 6), given=1)))], pad=0)
    assert packed.target.tolist() == [2, 9, 3, 5, 6]
    assert deciding(packed, torch.tensor([9])).tolist() == [2, 2, 1, 2, 1]


def test_every_parameter_has_exactly_one_optimizer(tokenizer):
    model = tiny(tokenizer)
    pair = optimizers(model, Schedule(1, 1, 0.1, 0.1))
    held = [
        id(p) for optimizer in pair for group in optimizer.param_groups for p in group["params"]
    ]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def teaching(tokenizer):
    schedule = Schedule(10, tokens_per_step=3_000, muon_lr=0.02, adam_lr=3e-3, warmup=1)
    teacher = Teacher(0, Vice())
    return Teaching(tiny(tokenizer), tokenizer, teacher, schedule, bf16=False, micro=3_000)


def test_teaching_lowers_the_loss_and_goes_on_exactly_from_a_saved_state(tokenizer):
    whole, half, rest = (teaching(tokenizer) for _ in range(3))
    metrics = [whole.step(number) for number in range(10)]
    assert metrics[-1]["loss"] < 0.95 * metrics[0]["loss"]
    assert all(math.isfinite(m["grad_norm"]) for m in metrics)
    assert metrics[-1]["tokens"] >= 30_000
    assert [half.step(number) for number in range(5)] == metrics[:5]
    rest.restore(half.state())
    assert [rest.step(number) for number in range(5, 10)] == metrics[5:]
    for one, other in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, other)


ASKED = {"words": "unseen", "seed": 1, "dialogues": 2, "micro": 4000, "bf16": False}


def test_an_untaught_model_gets_no_reply_exactly_right(tokenizer):
    shares = exact_replies(tiny(tokenizer), tokenizer, **ASKED)
    names = {"extract", "manage", "answer", "manage/accumulate", "answer/unanswerable"}
    assert names <= shares.keys()
    assert set(shares.values()) == {0.0}


def test_replies_are_counted_by_role_and_by_what_they_practise(tokenizer, monkeypatch):
    """A model that knows the answers of one kind, by looking at the targets."""
    teacher = Teacher(1, Vice(0, 0, 0, 0), words="unseen", sizes=(16, 28), untidy=0.0)
    every = [e for _ in range(2) for lesson in teacher.lessons(1.0) for e in lesson.endings]
    known = {tuple(tokenizer(e.reply)["input_ids"]) for e in every if e.name == "manage/repeat"}
    share = sum(e.name == "manage/repeat" for e in every) / sum(e.role == "manage" for e in every)

    def logits(model, packed, bf16):
        replies: dict[int, list[int]] = {}
        for token, branch in zip(packed.target.tolist(), packed.branch.tolist(), strict=True):
            replies.setdefault(branch, []).append(token)
        right = [tuple(replies[b][:-1]) in known for b in packed.branch.tolist()]
        said = torch.where(torch.tensor(right), packed.target, 0)
        return torch.nn.functional.one_hot(said, len(tokenizer)).float()

    monkeypatch.setattr(teach, "reply_logits", logits)
    shares = exact_replies(tiny(tokenizer), tokenizer, **ASKED)
    assert shares["manage/repeat"] == 1.0
    assert shares["manage"] == pytest.approx(share)
    assert shares["extract"] == shares["answer"] == shares["manage/accumulate"] == 0.0

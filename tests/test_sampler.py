import math

import pytest

torch = pytest.importorskip("torch", reason="the sampler needs the extra [train]")
transformers = pytest.importorskip("transformers", reason="the sampler needs the extra [train]")

from memory_r1.errors import ConfigError  # noqa: E402
from memory_r1.llm import sampler  # noqa: E402
from memory_r1.llm.sampler import sample  # noqa: E402

SHAPE = dict(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    max_position_embeddings=256,
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)


def build(kind, heads=4, kv_heads=2, **more):
    config = getattr(transformers, f"{kind}Config")
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        config(**SHAPE, num_attention_heads=heads, num_key_value_heads=kv_heads, **more)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


MODELS = {
    "qwen2": lambda: build("Qwen2"),
    "qwen2, as many keys as queries": lambda: build("Qwen2", 4, 4),
    "qwen2, sliding window": lambda: build(
        "Qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: build("Qwen3", head_dim=16),
    "llama": lambda: build("Llama", 4, 1),
    "mistral": lambda: build("Mistral", sliding_window=9),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def qwen():
    return MODELS["qwen2"]()


def prompts_of(*lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 67, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def recomputed(model, prompt, ids, temperature=1.0):
    """Log-probabilities of a reply from one plain forward pass over prompt and reply."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0].float()
    chances = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    return chances[torch.arange(len(ids)), list(ids)]


def test_greedy_replies_are_those_of_generate(model):
    prompts = prompts_of(1, 5, 5, 17, 30)
    got = sample(model, prompts, max_tokens=40, temperature=0, end={1})
    for prompt, (reply,) in zip(prompts, got, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
        assert list(reply.ids) == whole[0, len(prompt) :].tolist()
        assert reply.finished == (reply.ids[-1] == 1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_plain_forward_pass(model, temperature):
    prompts = prompts_of(3, 12, 12, 26)
    got = sample(
        model, prompts, counts=[3, 1, 0, 5], max_tokens=45, temperature=temperature, end={1, 2, 3}
    )
    assert [len(replies) for replies in got] == [3, 1, 0, 5]
    for prompt, replies in zip(prompts, got, strict=True):
        for reply in replies:
            expected = recomputed(model, prompt, reply.ids, temperature)
            torch.testing.assert_close(torch.tensor(reply.logps), expected, atol=1e-4, rtol=0)


def test_replies_of_many_lengths_stay_with_their_prompts(model):
    """Rows and prompts leave the batch at different times, and what stays moves into the gaps."""
    prompts = prompts_of(*range(2, 40, 3))
    got = sample(model, prompts, counts=5, max_tokens=60, end=range(1, 8), seed=2)
    assert len({len(reply.ids) for replies in got for reply in replies}) > 15
    for prompt, replies in zip(prompts, got, strict=True):
        for reply in replies:
            expected = recomputed(model, prompt, reply.ids)
            torch.testing.assert_close(torch.tensor(reply.logps), expected, atol=1e-4, rtol=0)


def test_greedy_log_probabilities_are_at_temperature_one(qwen):
    (prompt,) = prompts_of(6)
    [[reply]] = sample(qwen, [prompt], max_tokens=9, temperature=0, end={1})
    expected = recomputed(qwen, prompt, reply.ids)
    torch.testing.assert_close(torch.tensor(reply.logps), expected, atol=1e-4, rtol=0)


def test_tokens_are_drawn_from_the_models_distribution(qwen):
    (prompt,) = prompts_of(8)
    [replies] = sample(qwen, [prompt], counts=4000, max_tokens=2, temperature=1.3, end={1})
    with torch.no_grad():
        first = (qwen(torch.tensor([prompt])).logits[0, -1] / 1.3).softmax(-1)
    seen = torch.bincount(torch.tensor([reply.ids[0] for reply in replies]), minlength=67)
    # 66 degrees of freedom: 107 is passed once in a thousand seeds.
    likely = first * 4000 >= 1
    chi = ((seen - first * 4000) ** 2 / (first * 4000))[likely].sum()
    assert chi < 107
    assert len({reply.ids for reply in replies if len(reply.ids) == 2}) > 100


def test_the_batch_a_reply_was_written_in_does_not_change_it(qwen):
    prompts = prompts_of(4, 19, 4, 11, 7, 30)
    settings = dict(counts=3, max_tokens=20, end={1, 2}, seed=5)
    together = sample(qwen, prompts, **settings)
    apart = sample(qwen, prompts, batch_tokens=1, **settings)
    assert [[r.ids for r in replies] for replies in together] == [
        [r.ids for r in replies] for replies in apart
    ]
    alone = sample(qwen, prompts[3:4], **{**settings, "seed": [9]})
    seeds = [1, 2, 3, 9, 4, 5]
    assert alone[0][2].ids == sample(qwen, prompts, **{**settings, "seed": seeds})[3][2].ids


def test_seeds_and_sample_numbers_make_replies_differ(qwen):
    (prompt,) = prompts_of(9)
    settings = dict(counts=2, max_tokens=20, end={1})
    (one, two), (three, four) = sample(qwen, [prompt, prompt], seed=0, **settings)
    (five, _), _ = sample(qwen, [prompt, prompt], seed=1, **settings)
    assert len({reply.ids for reply in (one, two, three, four, five)}) == 5
    (six, _), (seven, _) = sample(qwen, [prompt, prompt], seed=[4, 4], **settings)
    assert six == seven


def counting(model, monkeypatch):
    widths = []
    forward = model.forward

    def counted(input_ids, **more):
        widths.append(input_ids.shape[1])
        return forward(input_ids, **more)

    monkeypatch.setattr(model, "forward", counted)
    return widths


def test_equal_prompts_are_read_once_and_greedy_copies_written_once(qwen, monkeypatch):
    a, b = prompts_of(10, 6)
    widths = counting(qwen, monkeypatch)
    got = sample(qwen, [a, b, a], counts=4, max_tokens=3, temperature=0, end={})
    assert widths == [16, 2, 2]
    assert got[0] == got[2] == [got[0][0]] * 4
    widths.clear()
    sample(qwen, [a, b, a], counts=4, max_tokens=3, end={})
    assert widths == [16, 12, 12]


def test_finished_rows_leave_the_batch(qwen, monkeypatch):
    widths = counting(qwen, monkeypatch)
    [replies] = sample(qwen, prompts_of(5), counts=64, max_tokens=200, end=range(1, 20))
    assert all(reply.finished for reply in replies)
    rows = [sum(len(reply.ids) > step for reply in replies) for step in range(1, len(widths))]
    assert all(
        live <= width <= live * 16 / 15 + 1 for live, width in zip(rows, widths[1:], strict=True)
    )


def test_prompts_are_batched_by_length_within_the_budget(qwen, monkeypatch):
    widths = counting(qwen, monkeypatch)
    sample(qwen, prompts_of(30, 2, 28, 3), max_tokens=1, end={}, batch_tokens=62)
    assert widths == [58, 5]


def test_the_model_is_left_as_it_was():
    model = build("Qwen2", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    sample(model, prompts_of(4), max_tokens=2, end={1})
    assert model.training and not model.model.layers[0].mlp.training
    assert model.model.layers[1].self_attn.training
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        sample(model, [[9999]], max_tokens=2, end={1})
    assert model.training and model.config._attn_implementation == "sdpa"
    assert torch.is_grad_enabled()


def test_dropout_does_not_disturb_sampling():
    model = build("Qwen2", attention_dropout=0.5).train()
    (prompt,) = prompts_of(12)
    [[reply]] = sample(model, [prompt], max_tokens=12, end={1})
    expected = recomputed(model.eval(), prompt, reply.ids)
    torch.testing.assert_close(torch.tensor(reply.logps), expected, atol=1e-4, rtol=0)


def test_sixteen_bit_weights_sample_near_a_plain_forward_pass():
    model = build("Qwen2").bfloat16()
    (prompt,) = prompts_of(12)
    [[reply]] = sample(model, [prompt], max_tokens=12, end={1})
    assert (torch.tensor(reply.logps) - recomputed(model, prompt, reply.ids)).abs().max() < 0.3


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((4, 5), -math.inf)
    logits[:, 1], logits[:, 3] = 0.0, 0.0
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, logps = sampler.draw(logits, 1.0, uniforms)
    assert tokens.tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(logps, torch.full((4,), math.log(0.5)))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(prompts=[[]]),
        dict(max_tokens=0),
        dict(temperature=-1.0),
        dict(counts=[1, 2]),
        dict(counts=-1),
        dict(seed=[1, 2]),
        dict(seed=-1),
    ],
)
def test_settings_out_of_range_are_refused(qwen, wrong):
    with pytest.raises(ConfigError):
        sample(qwen, **{**dict(prompts=[[5]], max_tokens=3, end={1}), **wrong})


def test_attention_that_is_not_known_is_refused_not_guessed():
    model = build("Gemma2", head_dim=8, sliding_window=64)
    with pytest.raises(ConfigError, match="attends in a way"):
        sample(model, [[5, 6]], max_tokens=3, end={1})
    assert model.config._attn_implementation != "shared_prefix"


def test_no_prompts_no_replies(qwen):
    assert sample(qwen, [], max_tokens=3, end={1}) == []

"""One base in memory, several roles on it: each computes what it would compute alone."""

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="adapters need the extra [train]")
transformers = pytest.importorskip("transformers", reason="adapters need the extra [train]")
peft = pytest.importorskip("peft", reason="adapters need the extra [train]")

from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from memory_r1.errors import ConfigError, ModelUnavailable  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents  # noqa: E402
from memory_r1.serve.cli import app  # noqa: E402
from memory_r1.train import tokenizer  # noqa: E402
from memory_r1.train.adapters import AdapterCritic, adapt, open_critic, open_policy  # noqa: E402
from memory_r1.train.card import write_card  # noqa: E402
from memory_r1.train.policy import (  # noqa: E402
    Row,
    micro_batches,
    sampled_logps,
    through_head,
    values,
)
from memory_r1.train.runfile import Data, Lora, Precision, Rollout, Run, Steps, World  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
SHAPES = {
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "llama": ("Llama", {}),
}


def write_model(folder, kind="qwen2"):
    words = tokenizer.build()
    name, more = SHAPES[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **more,
    )
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "memory_r1.json").write_text('{"style": "compact"}')
    return folder


@pytest.fixture(params=SHAPES)
def any_folder(request, tmp_path):
    return write_model(tmp_path / request.param, request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "little")


def says(text):
    return Prompt((("user", text),))


ASKED = [says("question Where does Ida live? =>"), says("fact Ida's dog is Rex =>"), says("Ida")]


def make_run(**changes):
    settings = {
        "kind": "manager",
        "model": "x",
        "world": World(),
        "lora": Lora(rank=4, alpha=8),
        "rollout": Rollout(prompts=3, group_size=4, max_tokens=6),
    }
    return Run(**{**settings, **changes})


def stir(llm, seed, size=0.5):
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in llm.weights.parameters(llm.adapter).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def made_adapter(folder, out, seed):
    """A folder with an adapter, written by peft alone."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    wrapped = peft.get_peft_model(
        base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"])
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    wrapped.save_pretrained(out)
    return out


def texts(llm, max_tokens=8):
    llm.forget_replies()
    return [reply.text for reply in llm.complete(ASKED, max_tokens=max_tokens)]


@torch.no_grad()
def logits(llm):
    """To the last bit, of one plain forward pass."""
    ids = torch.tensor([llm.encode(ASKED[0])])
    with llm.active() as model:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            return model(ids).logits.clone()
        finally:
            model.set_attn_implementation(before)


def rows_of(policy, n=4):
    steps = policy.generate(ASKED * n, seed=1)
    return [Row(step, i, float(i % 3 - 1)) for i, step in enumerate(steps)]


def batches_of(policy, rows, budget=100_000):
    return list(micro_batches(rows, budget, policy.llm.pad_id, policy.model.device))


def learn_once(policy, rows, lr=0.1):
    optimizer = torch.optim.SGD(list(policy.parameters()), lr=lr)
    for batch in batches_of(policy, rows):
        scored = policy.score(batch)
        weights = torch.tensor([rows[i].advantage for i in batch.rows])[:, None]
        (-(scored.logp * weights * batch.mask).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_models_of_one_base_hold_its_weights_once(folder, tmp_path):
    adapter = made_adapter(folder, tmp_path / "adapter", 1)
    base, first, second = LocalLLM(folder), LocalLLM(adapter), LocalLLM(str(adapter))
    assert base.model is first.model is second.model
    assert base.adapter is None and first.adapter != second.adapter
    assert base.copy().model is not base.model


def test_every_role_on_one_base_says_what_it_says_alone(folder, tmp_path):
    paths = [made_adapter(folder, tmp_path / f"adapter{n}", n) for n in range(2)]
    alone = [LocalLLM(path).copy() for path in (folder, *paths)]
    together = [LocalLLM(path) for path in (folder, *paths)]
    expected = [logits(llm) for llm in alone]
    assert not torch.equal(expected[0], expected[1]) and not torch.equal(*expected[1:])
    for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
        for i in order:
            assert torch.equal(logits(together[i]), expected[i])
    assert [texts(llm) for llm in together] == [texts(llm) for llm in alone]


def test_an_adapter_that_was_never_trained_is_its_base(folder):
    base = LocalLLM(folder)
    before = logits(base)
    fresh = adapt(base, Lora(rank=4), seed=0)
    assert torch.equal(logits(fresh), before)
    stir(fresh, 1)
    assert not torch.equal(logits(fresh), before)
    assert torch.equal(logits(base), before)


def test_training_one_adapter_changes_no_bit_of_the_others(folder, tmp_path):
    manager = LocalLLM(made_adapter(folder, tmp_path / "manager", 1))
    base = LocalLLM(folder)
    before = [logits(manager), logits(base)]
    policy = open_policy(make_run(kind="answer"), base)
    assert policy.model is manager.model
    began = logits(policy.llm)
    for _ in range(2):
        learn_once(policy, rows_of(policy))
    assert not torch.equal(logits(policy.llm), began)
    assert torch.equal(logits(manager), before[0]) and torch.equal(logits(base), before[1])
    learning = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert learning and all(f".{policy.llm.adapter}." in name for name in learning)


def test_the_reference_stays_what_the_adapter_began_as(folder, tmp_path):
    for start in (LocalLLM(folder), LocalLLM(made_adapter(folder, tmp_path / "adapter", 3))):
        lora = Lora(rank=4) if start.adapter is None else None
        policy = open_policy(make_run(lora=lora), start)
        rows = rows_of(policy)
        (batch,) = batches_of(policy, rows)
        reference, began = policy.reference(), policy.score(batch).logp
        torch.testing.assert_close(reference(batch), began, atol=0, rtol=0)
        learn_once(policy, rows)
        torch.testing.assert_close(reference(batch), began, atol=0, rtol=0)
        assert not torch.equal(policy.score(batch).logp, began)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["tree", "fused_tree"])
def test_half_precision_computes_and_full_precision_learns(any_folder, lora, attention):
    """What a GPU does, on a CPU: frozen weights and products in bfloat16, the rest in float32."""
    half = Precision(weights="bfloat16", compute="bfloat16")
    twice = Steps(gradient_checkpointing=True)
    policy = open_policy(
        make_run(lora=lora, precision=half, steps=twice), LocalLLM(any_folder, device="cpu")
    )
    policy.model.set_attn_implementation(attention)
    if lora:
        stir(policy.llm, 5, 0.05)
    assert policy.model.lm_head.weight.dtype == (torch.bfloat16 if lora else torch.float32)
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    rows = rows_of(policy)
    (batch,) = batches_of(policy, rows)
    scored = policy.score(batch)
    apart = (scored.logp - sampled_logps(rows, batch)).abs()[batch.mask]
    assert scored.logp.dtype == torch.float32 and apart.mean() < 0.05
    (scored.logp * batch.mask).sum().backward()
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert found and all(g.dtype == torch.float32 and g.isfinite().all() for g in found)
    assert torch.equal(policy.reference()(batch) == 0, ~batch.mask)


@torch.no_grad()
def plain_logps(policy, row):
    """One completion behind its own copy of the prompt, by the library alone, unpacked."""
    ids = torch.tensor([[*row.step.prompt_ids, *row.step.ids]])
    with policy.llm.active() as model:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        found = model(ids).logits[0, len(row.step.prompt_ids) - 1 : -1].log_softmax(-1)
        model.set_attn_implementation(before)
    return found.gather(-1, torch.tensor(row.step.ids)[:, None])[:, 0]


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["full", "lora"])
def test_sampled_packed_and_plain_log_probs_are_one(any_folder, lora):
    policy = open_policy(make_run(lora=lora), LocalLLM(any_folder))
    if lora:
        stir(policy.llm, 5)
    rows = rows_of(policy)
    for batch in batches_of(policy, rows):
        scored, noted = policy.score(batch), sampled_logps(rows, batch)
        for k, i in enumerate(batch.rows):
            n = len(rows[i].step.ids)
            plain = plain_logps(policy, rows[i])
            torch.testing.assert_close(scored.logp[k, :n].detach(), plain, atol=1e-4, rtol=0)
            torch.testing.assert_close(noted[k, :n], plain, atol=1e-4, rtol=0)


def gradients(policy, rows, budget=100_000):
    for parameter in policy.parameters():
        parameter.grad = None
    total = 0.0
    for batch in batches_of(policy, rows, budget):
        weights = torch.tensor([rows[i].advantage for i in batch.rows])[:, None]
        loss = (policy.score(batch).logp * weights * batch.mask).sum()
        loss.backward()
        total += float(loss.detach())
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert found
    return total, torch.cat([gradient.flatten() for gradient in found])


def unshared(policy, rows):
    """The reference: every completion behind its own copy of the prompt, by the library alone."""
    for parameter in policy.parameters():
        parameter.grad = None
    total = 0.0
    with policy.llm.active() as model:
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        for row in rows:
            ids = torch.tensor([[*row.step.prompt_ids, *row.step.ids]])
            found = model(ids).logits[0, len(row.step.prompt_ids) - 1 : -1].log_softmax(-1)
            loss = row.advantage * found.gather(-1, torch.tensor(row.step.ids)[:, None]).sum()
            loss.backward()
            total += float(loss.detach())
        model.set_attn_implementation(before)
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    return total, torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["full", "lora"])
def test_packed_gradients_are_those_of_unshared_prompts(any_folder, lora):
    policy = open_policy(make_run(lora=lora), LocalLLM(any_folder))
    if lora:
        stir(policy.llm, 5)
    rows = rows_of(policy)
    loss, packed = gradients(policy, rows)
    expected, right = unshared(policy, rows)
    assert abs(loss - expected) < 1e-4 * abs(expected) + 1e-4
    assert (packed - right).norm() < 1e-4 * right.norm()


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)], ids=["full", "lora"])
def test_computing_layers_twice_changes_nothing(any_folder, lora):
    rows, found = [], []
    for twice in (False, True):
        run = make_run(lora=lora, steps=Steps(gradient_checkpointing=twice))
        policy = open_policy(run, LocalLLM(any_folder))
        if lora:
            stir(policy.llm, 5)
        rows = rows or rows_of(policy)
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.score(batches_of(policy, rows)[0]).logp.sum()
        found.append((*gradients(policy, rows), kept))
        assert not policy.model.lm_head.training
        policy.generate(ASKED, seed=1)  # sampling in between must not switch it off
        torch.testing.assert_close(gradients(policy, rows)[1], found[-1][1], atol=0, rtol=0)
    (loss, gradient, much), (again, same, little) = found
    assert loss == pytest.approx(again, rel=1e-6)
    torch.testing.assert_close(gradient, same, rtol=1e-5, atol=1e-6)
    assert little < 0.7 * much  # the logits stay


def test_a_backward_pass_meets_the_adapter_of_its_forward_pass(folder):
    """With layers computed twice, the second time must not happen under the critic's adapter."""
    run = make_run(algorithm="ppo", steps=Steps(gradient_checkpointing=True))
    policy = open_policy(run, LocalLLM(folder))
    stir(policy.llm, 5)
    critic = open_critic(policy, run)
    with torch.no_grad():
        critic.head.weight.normal_()
    rows = rows_of(policy)
    (batch,) = batches_of(policy, rows)

    def step():
        for parameter in (*policy.parameters(), *critic.parameters()):
            parameter.grad = None
        with critic.active():
            values(critic, batch).square().sum().backward()
        alone = [p.grad.clone() for p in critic.parameters()]
        policy.score(batch).logp.sum().backward()
        assert all(torch.equal(a, p.grad) for a, p in zip(alone, critic.parameters(), strict=True))
        return alone, [p.grad for p in policy.parameters()]

    again, whole = step(), None
    for module in policy.model.modules():
        module.gradient_checkpointing = False
    whole = step()
    for one, other in zip(again, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_critic_is_a_second_adapter_and_says_zero_at_first(folder):
    run = make_run(algorithm="ppo")
    base = LocalLLM(folder)
    policy = open_policy(run, base)
    critic = open_critic(policy, run)
    assert isinstance(critic, AdapterCritic)
    rows = rows_of(policy)
    (batch,) = batches_of(policy, rows)
    assert not values(critic, batch).any()
    with critic.active() as backbone:
        assert backbone is policy.model.model
    policy_logps, before = policy.score(batch).logp.detach(), logits(base)
    optimizer = torch.optim.Adam(list(critic.parameters()), lr=0.01)
    for _ in range(9):
        with critic.active():
            (values(critic, batch) - batch.mask.float()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert values(critic, batch)[batch.mask].mean() > 0.1
    assert torch.equal(policy.score(batch).logp, policy_logps)
    assert torch.equal(logits(base), before)
    state = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    other = open_critic(policy, run)
    other.load_state_dict(state)
    assert torch.equal(values(other, batch), values(critic, batch))


def test_a_saved_adapter_is_peft_s_and_ours(folder, tmp_path):
    policy = open_policy(make_run(), LocalLLM(folder))
    stir(policy.llm, 7)
    expected = logits(policy.llm)
    policy.save(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "memory_r1.json"} <= names
    assert "tokenizer.json" in names and "model.safetensors" not in names
    plain = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([policy.llm.encode(ASKED[0])])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        native = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(native(ids).logits, expected, atol=1e-5, rtol=1e-5)
    ours = LocalLLM(tmp_path / "model")
    assert ours.style == "compact" and ours.model is policy.model
    assert torch.equal(logits(ours), expected)


def test_training_goes_on_from_a_saved_adapter(folder, tmp_path):
    path = made_adapter(folder, tmp_path / "adapter", 4)
    start = LocalLLM(path)
    before = logits(start)
    policy = open_policy(make_run(lora=None), start)
    assert torch.equal(logits(policy.llm), before)
    learn_once(policy, rows_of(policy))
    assert not torch.equal(logits(policy.llm), before)
    assert torch.equal(logits(start), before)
    policy.save(tmp_path / "on")
    config = json.loads((tmp_path / "on" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert Path(config["base_model_name_or_path"]) == folder
    with pytest.raises(ConfigError, match="rank 4 and alpha 8, and the adapter .* has 3 and 5"):
        open_policy(make_run(), start)


def test_a_restored_adapter_is_the_one_that_was_kept(folder):
    policy = open_policy(make_run(), LocalLLM(folder))
    stir(policy.llm, 7)
    kept = {name: tensor.clone() for name, tensor in policy.state().items()}
    expected = logits(policy.llm)
    other = open_policy(make_run(), LocalLLM(folder))
    assert not torch.equal(logits(other.llm), expected)
    other.restore(kept)
    assert torch.equal(logits(other.llm), expected)
    with pytest.raises(KeyError, match="other parameters"):
        other.restore({})


def test_adapters_that_nobody_uses_are_taken_off(folder):
    base = LocalLLM(folder)
    first = adapt(base, Lora(rank=4), seed=0)
    name, before = first.adapter, logits(base)
    stays = adapt(base, Lora(rank=4), seed=0)
    stir(stays, 1)
    expected = logits(stays)
    base.weights.rest_on(name)
    del first
    adapt(base, Lora(rank=4), seed=0)
    with pytest.raises(ConfigError, match=f"no adapter '{name}'"):
        base.weights.parameters(name)
    assert torch.equal(logits(stays), expected) and torch.equal(logits(base), before)


def test_what_cannot_lie_beside_others_is_read_with_weights_of_its_own(folder, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "own")
    plain = LocalLLM(folder)
    before = logits(plain)
    own = LocalLLM(tmp_path / "own")
    assert own.model is not plain.model
    assert torch.equal(logits(plain), before)


def test_an_adapter_of_another_kind_is_refused(folder, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelUnavailable, match="expected LoRA"):
        LocalLLM(tmp_path / "prompt").complete([ASKED[0]])


def test_targets_that_the_model_lacks_are_named(folder):
    with pytest.raises(ConfigError, match=r"lora.targets is \['wq'\]"):
        open_policy(make_run(lora=Lora(targets=("wq",))), LocalLLM(folder))


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
def test_logits_in_chunks_are_logits_at_once(monkeypatch, rows):
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden, target = torch.randn(23, 16), torch.randint(0, 50, (23,))
    found = []
    for at_once in (50 * 1000, 50 * rows):
        monkeypatch.setattr("memory_r1.train.policy.LOGITS_AT_ONCE", at_once)
        hidden = hidden.detach().requires_grad_()
        head.weight.grad = None
        logp, entropy = through_head(head, hidden, target, 0.7)
        (logp * torch.arange(23)).sum().backward()
        found.append((logp.detach(), entropy, hidden.grad, head.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_chunks_bound_what_is_kept_of_the_logits(monkeypatch):
    head = torch.nn.Linear(8, 1000, bias=False)
    kept = []

    def most(at_once):
        monkeypatch.setattr("memory_r1.train.policy.LOGITS_AT_ONCE", at_once)
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        )
        with hooks:
            through_head(
                head, torch.randn(200, 8, requires_grad=True), torch.zeros(200).long(), 1.0
            )
        return sum(sizes)

    kept = [most(10**9), most(10_000)]
    assert kept[0] > 200 * 1000 and kept[1] < 200 * 1000 / 10


def test_a_group_too_large_for_the_budget_is_cut_and_none_is_lost(folder):
    policy = open_policy(make_run(), LocalLLM(folder))
    rows = rows_of(policy, n=8)
    prompt = max(len(row.step.prompt_ids) for row in rows)
    batches = batches_of(policy, rows, budget=prompt + 13)
    assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
    assert all(batch.packed.ids.numel() <= prompt + 13 for batch in batches)
    whole, parts = gradients(policy, rows), gradients(policy, rows, prompt + 13)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_the_card_says_where_the_adapter_comes_from_and_what_binds_it(folder, tmp_path):
    policy = open_policy(make_run(), LocalLLM(folder))
    policy.save(tmp_path / "model")
    run = make_run(world=None, data=Data("data/locomo10.json"))
    write_card(tmp_path / "model", run, {"eval_em": 0.125}, {"eval_em": 0.5})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "library_name: peft" in card
    assert str(folder) in card and "| em | 12.5 | 50.0 |" in card
    assert "rank = 4" in card and "GRPO" in card
    write_card(tmp_path / "model", make_run(), {}, {})
    assert "license:" not in (tmp_path / "model" / "README.md").read_text()


LOCOMO = Path(os.environ.get("MEMORY_R1_DATA", "../shared/data")) / "locomo10.json"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def command(runfile, out, *settings):
    shown = CliRunner().invoke(app, ["train", f"runs/{runfile}.toml", "--out", str(out), *settings])
    assert shown.exit_code == 0, shown.output + repr(shown.exception)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not LOCOMO.exists(), reason="needs locomo10.json; set MEMORY_R1_DATA")
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_both_stages_train_adapters_on_the_real_dialogue_and_can_be_stopped(tmp_path, algorithm):
    """A proof of plumbing: a random Llama and conv-26's own observations as memories."""
    words = tokenizer.build()
    words.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16384,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        # Every second token ends a reply: a random model would ramble on.
        eos_token_id=list(range(0, len(words), 2)),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    words.save_pretrained(tmp_path / "llama")
    small = [
        f"model={tmp_path / 'llama'}",
        f"data.path={LOCOMO}",
        "data.banks=observations",
        f"algorithm={algorithm}",
        "lora.rank=2",
        "rollout.prompts=2",
        "rollout.group_size=2",
        "rollout.max_tokens=8",
        "rollout.prompt_tokens=none",
        "rollout.questions=2",
        "optimizer.lr=1e-2",
        "eval.every=0",
        "eval.questions=2",
        "steps.checkpoint_every=1",
    ]
    first, whole, second = tmp_path / "manager", tmp_path / "whole", tmp_path / "answer"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        command("lora_24gb_manager", first, *small, "steps.total=1")
        command("lora_24gb_manager", first, *small, "steps.total=2", "--resume")
        command("lora_24gb_manager", whole, *small, "steps.total=2")
        command("lora_24gb_answer", second, *small, f"manager={first}", "steps.total=2")
    finally:
        torch.set_num_threads(threads)
    stopped, straight = (
        load_file(d / "model" / "adapter_model.safetensors") for d in (first, whole)
    )
    assert all(torch.equal(stopped[name], straight[name]) for name in straight)
    card = (second / "model" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and str(tmp_path / "llama") in card
    state = torch.load(next((second / "checkpoints").glob("*/state.pt")), weights_only=True)
    assert all("lora_" in name for name in state["states"]["model"])
    pair = open_agents(str(second))
    assert pair.manage.model is pair.answer.model is pair.extract.model
    assert pair.extract.adapter is None and pair.manage.adapter != pair.answer.adapter
    assert Path(pair.manage.path).resolve() == (first / "model").resolve()

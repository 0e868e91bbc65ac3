"""What a run will need, reckoned from the model's config and held to what real models are."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from memory_r1.errors import ConfigError
from memory_r1.serve.cli import app
from memory_r1.train.estimate import (
    GB,
    KNOWN,
    LOGITS_AT_ONCE,
    Shape,
    activations,
    check_fits,
    need,
    pace,
    settings_that_fit,
    shape_of,
)
from memory_r1.train.runfile import Lora, Rollout, Run, Steps, World

SMALL = {
    "vocab_size": 301,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
QWEN3B = "Qwen/Qwen2.5-3B-Instruct"


def make_run(**changes):
    settings = {
        "kind": "manager",
        "model": QWEN3B,
        "world": World(),
        "rollout": Rollout(prompts=16, group_size=8, max_tokens=512, prompt_tokens=4096),
    }
    return Run(**{**settings, **changes})


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (QWEN3B, 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-14B-Instruct", 14_770_033_664),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_the_papers_models_have_the_parameters_their_publishers_count(model, parameters):
    assert shape_of(model).parameters == parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_parameters_are_those_of_a_real_model(kind, tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    more = {"head_dim": 20} if kind in ("Qwen3", "Llama") else {}
    config = getattr(transformers, f"{kind}Config")(**SMALL, tie_word_embeddings=tied, **more)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    (tmp_path / "config.json").write_text(
        json.dumps(
            json.loads((tmp_path / "config.json").read_text()) | {"model_type": kind.lower()}
        )
    )
    shape = shape_of(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape == shape_of(str(tmp_path / "config.json"))
    assert shape.backbone == sum(p.numel() for p in model.model.parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
def test_an_adapters_parameters_are_those_that_peft_makes(targets):
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.Qwen2Config(**SMALL)
    wanted = "all-linear" if targets == ("all-linear",) else list(targets)
    wrapped = peft.get_peft_model(
        transformers.Qwen2ForCausalLM(config),
        peft.LoraConfig(r=5, target_modules=wanted, task_type="CAUSAL_LM"),
    )
    made = sum(p.numel() for n, p in wrapped.named_parameters() if "lora_" in n)
    assert Shape.of(config.to_dict()).adapter(Lora(rank=5, targets=targets)) == made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("lora", [None, Lora(rank=8)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_layers_activations_are_what_torch_keeps_within_a_quarter(kind, lora, wide):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from memory_r1.train.attention import hidden_states
    from memory_r1.train.batch import Branch, Tree, pack

    sizes = {**SMALL, "hidden_size": 96, "intermediate_size": 320, "head_dim": 16}
    if wide:
        sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 128}
    prompt, group, reply = 240, 4, 20
    trees = [Tree(tuple(range(prompt)), tuple(Branch(tuple(range(reply))) for _ in range(group)))]

    def kept(layers):
        config = getattr(transformers, f"{kind}Config")(
            **{**sizes, "num_hidden_layers": layers}, attn_implementation="fused_tree"
        )
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        if lora:
            settings = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, settings).get_base_model().eval()
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: no address twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden_states(model.model, pack(trees, 0), torch.float32)
        return sum(size for size, _ in found.values())

    measured = (kept(3) - kept(1)) / 2
    config = getattr(transformers, f"{kind}Config")(**sizes).to_dict() | {
        "model_type": kind.lower()
    }
    run = make_run(
        lora=lora,
        rollout=Rollout(group_size=group, max_tokens=reply),
        precision=replace(make_run().precision, compute="float32"),
    )
    reckoned = activations(Shape.of(config), run, prompt + group * reply, prompt)
    assert measured / 1.25 < reckoned < measured * 1.25


def test_full_training_keeps_sixteen_bytes_and_more_per_parameter():
    full = need(make_run(), KNOWN[QWEN3B])
    per_parameter = {k: v / 3_085_938_688 for k, v in {**full.kept, **full.updating}.items()}
    assert per_parameter["trained weights"] == per_parameter["gradients"] == 4
    assert per_parameter["optimizer"] == 8 and per_parameter["reference"] == 4
    no_reference = need(make_run(grpo=replace(make_run().grpo, kl=0.0)), KNOWN[QWEN3B])
    assert full.peak - no_reference.peak == 4 * 3_085_938_688
    alone = need(make_run(extract="rules", answer="http://host/v1#model"), KNOWN[QWEN3B])
    assert "partners" not in alone.kept and "partners" in full.kept


def test_an_adapter_needs_its_base_once_and_ppo_one_adapter_more():
    shape = KNOWN[QWEN3B]
    lora = make_run(lora=Lora(rank=32))
    grpo, ppo = need(lora, shape), need(replace(lora, algorithm="ppo"), shape)
    assert grpo.kept["base"] == ppo.kept["base"] == 2 * shape.parameters
    one = shape.adapter(Lora(rank=32))
    assert ppo.peak - grpo.peak == pytest.approx((4 + 4 + 8) * one)
    full = need(make_run(), shape)
    assert sum(grpo.kept.values()) < sum(full.kept.values()) / 5


@pytest.mark.parametrize("model", KNOWN)
def test_each_lever_lowers_what_is_needed(model):
    run, shape = make_run(lora=Lora()), KNOWN[model]
    updating = sum(need(run, shape).updating.values())
    twice = replace(run, steps=Steps(gradient_checkpointing=True))
    assert sum(need(twice, shape).updating.values()) < updating / 2
    fewer = replace(run, steps=Steps(micro_batch_tokens=8192))
    assert sum(need(fewer, shape).updating.values()) < updating
    wider = replace(run, rollout=replace(run.rollout, batch_tokens=262_144))
    assert sum(need(wider, shape).sampling.values()) > sum(need(run, shape).sampling.values())


def test_a_run_that_does_not_fit_is_refused_with_the_nearest_that_does():
    run = make_run(lora=Lora())
    needed = need(run, KNOWN[QWEN3B]).peak / GB
    check_fits(run, needed + 0.1)
    check_fits(run)  # no budget, no check
    with pytest.raises(ConfigError, match=f"needs about {needed:.1f} GB and the GPU has 20 GB; "):
        check_fits(run, 20)
    changes = settings_that_fit(run, KNOWN[QWEN3B], 20)
    assert changes == ["steps.gradient_checkpointing=true"]
    tight = settings_that_fit(make_run(), KNOWN[QWEN3B], 16)
    assert tight is not None and "lora.rank=32" in tight
    with pytest.raises(ConfigError, match="no setting of this model fits; the largest known one"):
        check_fits(make_run(model="Qwen/Qwen2.5-14B-Instruct", lora=Lora()), 16)
    with pytest.raises(ConfigError, match="take a larger GPU"):
        check_fits(make_run(), 2)


def test_what_is_said_to_fit_fits():
    for model, shape in KNOWN.items():
        for gb in (16, 24, 40, 48, 80, 141):
            changes = settings_that_fit(make_run(model=model), shape, gb)
            if changes is None:
                continue
            run = make_run(model=model)
            for change in changes:
                section, name, value = change.replace("=", ".").split(".")
                part = getattr(run, section) or Lora()
                new = {"true": True}.get(value) or int(value)
                run = replace(run, **{section: replace(part, **{name: new})})
            check_fits(run, gb)


@pytest.mark.parametrize("text", [None, "{}", "not json", '{"model_type": "gemma3"}'])
def test_a_model_of_unknown_size_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="known of the size|can't be estimated"):
        shape_of(str(tmp_path))


def test_steps_and_tokens_follow_from_the_run_file():
    planned = pace(make_run(steps=Steps(total=10)), 1000)
    assert (planned.steps, planned.rollouts) == (10, 128)
    assert (planned.prompt_tokens, planned.completion_tokens) == (16_000, 65_536)
    assert planned.hours(100) == pytest.approx(10 * 65_536 / 100 / 3600)
    assert pace(make_run()).prompt_tokens == 16 * 4096


def test_the_chunk_that_is_reckoned_with_is_the_one_that_is_computed():
    policy = pytest.importorskip("memory_r1.train.policy")
    assert policy.LOGITS_AT_ONCE == LOGITS_AT_ONCE


def test_a_dry_run_says_what_a_run_takes_and_refuses_what_cannot_fit():
    command = ["train", "runs/lora_24gb_answer.toml", "--dry-run", "data.path=nowhere.json"]
    shown = CliRunner().invoke(app, [*command, "--tokens-per-second", "100"])
    assert shown.exit_code == 0, shown.output
    assert "100 of 128 rollouts" in shown.output and "at most 72.8 hours" in shown.output
    assert "59.9 M trained" in shown.output and "assumed: the data can't be read" in shown.output
    refused = CliRunner().invoke(app, [*command, "--gpu-gb", "8"])
    assert refused.exit_code == 1 and "the GPU has 8 GB" in refused.output
    where = CliRunner().invoke(app, ["train", "runs/lora_24gb_answer.toml"])
    assert where.exit_code == 1 and "--out DIR" in where.output


def test_a_dry_run_looks_at_the_runs_own_prompts(tmp_path):
    pytest.importorskip("torch")
    shown = CliRunner().invoke(
        app, ["train", "runs/tiny_answer_grpo.toml", "--dry-run", "world.dialogues=2"]
    )
    assert shown.exit_code == 0, shown.output
    assert "of the run's own data" in shown.output and "2.03 B" not in shown.output

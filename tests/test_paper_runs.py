"""The run files for real models: each loads, fits what it says it needs, and is the paper's."""

import re
from pathlib import Path

import pytest

from memory_r1.train.estimate import GB, KNOWN, check_fits, need, shape_of
from memory_r1.train.runfile import load_run

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
FULL = sorted(RUNS.glob("locomo_manager_*.toml")) + sorted(RUNS.glob("locomo_answer_*.toml"))
SINGLE = sorted(RUNS.glob("lora_*.toml"))


@pytest.mark.parametrize("path", [*FULL, *SINGLE], ids=lambda path: path.stem)
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_run_file_fits_the_gpu_it_names(path, algorithm):
    if path in FULL and not path.stem.endswith(algorithm):
        pytest.skip("full training has a file per algorithm")
    run = load_run(path, [f"algorithm={algorithm}"])
    assert run.budget.gpu_gb is not None
    check_fits(run)


def test_every_published_training_has_a_run_file():
    names = {path.stem for path in FULL}
    assert names == {f"locomo_{k}_{a}" for k in ("manager", "answer") for a in ("grpo", "ppo")}
    sizes = {re.match(r"lora_(\d+)gb_(\w+)", path.stem).groups() for path in SINGLE}
    assert sizes == {(gb, kind) for gb in ("24", "48", "80") for kind in ("manager", "answer")}


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_training_is_as_published(path):
    run = load_run(path)
    kind, algorithm = path.stem.split("_")[1:]
    assert (run.kind, run.algorithm, run.lora) == (kind, algorithm, None)
    assert run.optimizer.lr == 1e-6 and run.rollout.temperature == 1.0
    assert (run.rollout.prompt_tokens, run.rollout.max_tokens) == (4096, 2048)
    assert run.rollout.prompts == 128 and run.reward.name == "em"
    assert run.data is not None and (run.data.split, run.eval.split) == ("train", "validation")
    settings = run.ppo if algorithm == "ppo" else run.grpo
    assert (settings.kl, settings.epochs, settings.clip) == (0.001, 1, 0.2)
    assert run.rollout.group_size == (1 if algorithm == "ppo" else 8)
    if algorithm == "ppo":
        assert run.ppo.critic_lr == 1e-5


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_adapters_learn_ten_times_as_fast_and_play_128_rollouts(path):
    run = load_run(path)
    assert run.lora is not None and run.optimizer.lr == 1e-5
    assert run.rollout.prompts * run.rollout.group_size == 128
    assert f"lora_{run.budget.gpu_gb:.0f}gb_{run.kind}" == path.stem
    assert run.model in KNOWN


def needs(model, algorithm):
    full = need(load_run(RUNS / f"locomo_manager_{algorithm}.toml"), shape_of(model))
    lora = load_run(RUNS / "lora_48gb_manager.toml", [f"algorithm={algorithm}"])
    return full.peak / GB, need(lora, shape_of(model)).peak / GB


def table():
    """The table of docs/training.md, from the estimates."""
    rows = ["| model | GRPO, all weights | PPO, all weights | GRPO, LoRA | PPO, LoRA |"]
    rows.append("|---|---|---|---|---|")
    for model in sorted(KNOWN, key=lambda name: KNOWN[name].parameters):
        (grpo, grpo_lora), (ppo, ppo_lora) = needs(model, "grpo"), needs(model, "ppo")
        cells = [f"{number:.0f}" for number in (grpo, ppo, grpo_lora, ppo_lora)]
        rows.append(f"| {model.split('/')[1]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_documentations_table_is_what_is_reckoned():
    assert table() in (ROOT / "docs" / "training.md").read_text("utf-8"), f"expected\n{table()}"


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_other_sizes_are_one_command_with_the_memory_the_table_says(model, path):
    gb = needs(model, path.stem.split("_")[-1])[0]
    run = load_run(path, [f"model={model}", f"budget.gpu_gb={gb + 1:.0f}"])
    check_fits(run)

"""a finished run -> the card of its model: README.md beside the weights (no torch here)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from memory_r1 import __version__
from memory_r1.llm.folders import ADAPTER_FILE, base_of
from memory_r1.train.runfile import Run, dump

LOCOMO_LICENCE = "cc-by-nc-4.0"
"""LoCoMo's; what was trained on it may be used as it may be used."""
_METRICS = ("eval_em", "eval_f1", "eval_reward_mean", "eval_format_valid")


def write_card(
    folder: Path, run: Run, before: Mapping[str, float], after: Mapping[str, float]
) -> None:
    """Write the card of the model in `folder`.

    before, after: held-out metrics, shares 0..1, before the first step and after the last
    """
    adapter = (folder / ADAPTER_FILE).is_file()
    base = base_of(str(folder)) if adapter else run.model
    head = ["---", f"base_model: {json.dumps(base)}", "tags: [memory-r1, agent-memory]"]
    head += ["library_name: peft"] if adapter else ["library_name: transformers"]
    licence = _licence(run)
    head += [f"license: {licence}"] if licence else []
    what = "LoRA adapter" if adapter else "model"
    role = "Memory Manager" if run.kind == "manager" else "Answer Agent"
    if run.algorithm == "logo":
        role = "Memory Manager and extractor"
    parts = [
        "\n".join([*head, "---"]),
        f"# {role}, trained with memory-r1",
        f"A {what} on `{base}`, trained by {_method(run)} with memory-r1 {__version__} for "
        f"{run.steps.total} steps, seed {run.seed}.",
        f"Data: {_data(run)}. {_licence_note(run, licence)}",
        _table(before, after),
        _use(adapter),
        f"## The run\n\n```toml\n{dump(run).strip()}\n```",
    ]
    (folder / "README.md").write_text("\n\n".join(p for p in parts if p) + "\n", "utf-8")


def _method(run: Run) -> str:
    if run.kind == "sft":
        return "imitation (cross-entropy on a teacher's replies)"
    paid = {"em": "exact match", "f1": "token F1"}.get(run.reward.name, run.reward.name)
    return f"{run.algorithm.upper()} from one signal, the outcome ({paid})"


def _data(run: Run) -> str:
    if run.data is None:
        return "dialogues of memory-r1's synthetic world"
    return f"{Path(run.data.path).name}, split {run.data.split!r}"


def _licence(run: Run) -> str:
    """The data's, where it binds what was trained on it; "" where nothing is known."""
    on_locomo = run.data is not None and "locomo" in Path(run.data.path).name.lower()
    return LOCOMO_LICENCE if on_locomo else ""


def _licence_note(run: Run, licence: str) -> str:
    base = "The base model's own licence holds as well."
    if licence:
        return (
            "LoCoMo is under CC BY-NC 4.0, and so is what was trained on it: no commercial use, "
            f"and name its authors. {base}"
        )
    if run.data is not None:
        return f"The licence of that data holds for what was trained on it. {base}"
    return base


def _table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    rows = [
        f"| {name.removeprefix('eval_')} | {100 * before[name]:.1f} | {100 * after[name]:.1f} |"
        for name in _METRICS
        if name in before and name in after
    ]
    if not rows:
        return ""
    return "\n".join(
        ["Held-out episodes, greedy, in percent:\n", "| | before | after |", "|---|---|---|", *rows]
    )


def _use(adapter: bool) -> str:
    lines = ["## Use", "", "Play the folder above this one, which names the partners:", ""]
    lines += ["```", "memory-r1 ask QUESTION --llm RUN_FOLDER", "```"]
    if adapter:
        lines += ["", "Or by itself, in peft:", "", "```python"]
        lines += ["from peft import AutoPeftModelForCausalLM", ""]
        lines += ['model = AutoPeftModelForCausalLM.from_pretrained("THIS_FOLDER")', "```"]
    return "\n".join(lines)

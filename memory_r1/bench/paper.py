"""What the Memory-R1 paper reports (arXiv 2508.19828): reference rows, never ours, never mixed in.

F1, BLEU-1 (B1) and the judge's share (J) are 0..100 as printed there; None where no number is
known. Its models had 3 to 14 billion parameters and its judge was another one, so a reference says
what was published, not what a run here would get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Memory-R1, arXiv 2508.19828"
NOTE = "The paper's models had 3 to 14 billion parameters, and its judge was another one."
"""What must be said wherever its numbers are shown."""
LLAMA, QWEN = "LLaMA-3.1-8B", "Qwen2.5-7B"


@dataclass(frozen=True)
class Reference:
    """One row of one of the paper's tables."""

    system: str
    model: str
    f1: float | None
    bleu1: float | None = None
    judge: float | None = None
    table: str = "main LoCoMo table"
    """Where it stands."""
    note: str = ""


@dataclass(frozen=True)
class Seconds:
    """What one component took, in seconds."""

    component: str
    """manager, search or answer."""
    agent: str
    p50: float
    p95: float
    note: str = ""


def _main(model: str, rows: Mapping[str, tuple[float, float, float]]) -> tuple[Reference, ...]:
    return tuple(Reference(system, model, *row) for system, row in rows.items())


LOCOMO = (
    *_main(
        LLAMA,
        {
            "LoCoMo RAG": (11.41, 8.71, 13.62),
            "A-Mem": (29.20, 24.40, 44.76),
            "Mem0": (30.41, 22.22, 45.68),
            "MemoryOS": (35.04, 27.99, 48.20),
            "Memory-SFT": (42.81, 32.98, 58.76),
            "Memory-R1 PPO": (41.05, 32.91, 57.54),
            "Memory-R1 GRPO": (45.02, 37.51, 62.74),
        },
    ),
    *_main(QWEN, {"LoCoMo RAG": (8.97, 7.27, 12.17), "A-Mem": (26.08, 21.78, 40.78)}),
    Reference(
        "Mem0", QWEN, 30.61, 23.55, 53.30, note="J is 58.30 when averaged from its own categories"
    ),
    *_main(
        QWEN,
        {
            "MemoryOS": (34.64, 29.36, 51.26),
            "Memory-SFT": (39.51, 30.84, 61.13),
            "Memory-R1 PPO": (41.72, 33.70, 59.53),
            "Memory-R1 GRPO": (43.14, 36.44, 61.51),
        },
    ),
)
"""LoCoMo test split (the eight conversations but conv-26 and conv-30), all categories but 5."""

LOCOMO_CATEGORIES: Mapping[int, Reference] = {
    1: Reference("Memory-R1 GRPO", LLAMA, 35.73, note="called single-hop there"),
    2: Reference("Memory-R1 GRPO", LLAMA, 49.86),
    3: Reference("Memory-R1 GRPO", LLAMA, 35.65, note="called multi-hop there"),
    4: Reference("Memory-R1 GRPO", LLAMA, 47.42, note="called open-domain there"),
}
"""By LoCoMo's own category number: the paper swaps three of the names. Only F1 is known."""

LONGMEMEVAL = tuple(
    Reference(system, model, f1, bleu1, judge, "LongMemEval table", "zero-shot, oracle form")
    for system, model, f1, bleu1, judge in (
        ("base", LLAMA, 31.3, 25.0, 44.2),
        ("Memory-R1 GRPO", LLAMA, 45.2, 39.3, 55.4),
        ("Memory-R1 GRPO", QWEN, 46.7, 41.1, 57.8),
    )
)

SCALE: Mapping[str, tuple[tuple[float, float], ...]] = {
    "base": ((3, 24.18), (7, 29.36), (14, 36.91)),
    "ppo": ((3, 38.42), (7, 40.59), (14, 44.26)),
    "grpo": ((3, 40.45), (7, 41.31), (14, 44.40)),
}
"""Qwen2.5: algorithm -> (billions of parameters, LoCoMo F1). Its 7B row differs from `LOCOMO`."""

ABLATIONS: Mapping[str, Reference] = {
    arm: Reference("Memory-R1 GRPO", LLAMA, f1, bleu1, judge, "ablations")
    for arm, f1, bleu1, judge in (
        ("full", 45.0, 37.5, 62.7),
        ("no trained manager", 37.5, 30.6, 52.9),
        ("no trained answer agent", 33.0, 24.9, 59.9),
        ("no distillation", 41.0, 34.4, 60.1),
    )
}
"""LoCoMo; the names of the arms are those of `figures_bars.ARMS`."""

REWARDS: Mapping[str, Reference] = {
    "em": Reference("Memory-R1 PPO", LLAMA, 41.05, 32.91, 57.54, "reward choice"),
    "judge": Reference(
        "Memory-R1 PPO", LLAMA, 33.69, 23.36, 63.58, "reward choice", "its answers were long"
    ),
}
"""LoCoMo; by what the Answer Agent was rewarded for."""

LATENCY = (
    Seconds("manager", "Memory-R1", 2.0, 3.5, "about"),
    Seconds("search", "Memory-R1", 0.35, 0.65, "below"),
    Seconds("answer", "base", 0.65, 3.07),
    Seconds("answer", "Memory-R1 PPO", 0.91, 4.67),
    Seconds("answer", "Memory-R1 GRPO", 0.34, 0.67),
)
"""LLaMA-3.1-8B on LoCoMo."""


def references(benchmark: str, split: str, protocol: str) -> tuple[Reference, ...]:
    """The paper's rows for a table of ours; none where it measured something else."""
    match benchmark, split, protocol:
        case "locomo", "test", "build":
            return LOCOMO
        case "longmemeval", _, "build":
            return LONGMEMEVAL
    return ()


def category_reference(benchmark: str, split: str, protocol: str, group: str) -> Reference | None:
    """The paper's row for one group of a table, e.g. "2 temporal"; None where it has none."""
    if references(benchmark, split, protocol) is not LOCOMO:
        return None
    number = group.split(" ")[0]
    return LOCOMO_CATEGORIES.get(int(number)) if number.isdecimal() else None

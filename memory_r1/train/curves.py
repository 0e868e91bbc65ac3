"""metrics.jsonl -> curves.png: what a training run did, on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_r1.errors import DataError, MissingExtra


@dataclass(frozen=True)
class Panel:
    """One small plot: metrics by name, each with what the legend calls it."""

    title: str
    unit: str
    lines: Mapping[str, str]
    stacked: bool = False


PANELS = (
    Panel("Loss", "nats per token", {"loss": "training", "eval_loss": "held out"}),
    *(
        Panel(
            f"Exact replies, {words} words",
            "share of replies",
            {f"eval_{words}/{role}": role for role in ("extract", "manage", "answer")},
        )
        for words in ("new", "unseen")
    ),
    Panel("Reward", "mean of a step", {"reward_mean": "training", "eval_reward_mean": "held out"}),
    Panel("Exact match", "share of answers", {"em": "training", "eval_em": "held out"}),
    Panel(
        "Operations",
        "share of operations",
        {"op_add": "ADD", "op_update": "UPDATE", "op_delete": "DELETE", "op_noop": "NOOP"},
        stacked=True,
    ),
    Panel(
        "What decisions leave",
        "share",
        {
            "evidence_kept": "evidence kept",
            "eval_evidence_kept": "evidence kept, held out",
            "unsupported_text": "unsupported words",
            "eval_unsupported_text": "unsupported words, held out",
        },
    ),
    Panel("Entry length", "words", {"entry_words": "written entries"}),
    Panel(
        "Groups and replies",
        "share",
        {
            "frac_zero_std": "tied groups",
            "format_valid": "valid replies",
            "response_length_clip_ratio": "cut off replies",
        },
    ),
    Panel("Entropy", "nats per token", {"entropy": "policy"}),
    Panel("KL divergence", "nats per token", {"kl": "to the reference", "approx_kl": "per update"}),
    Panel(
        "Completion length",
        "tokens",
        {"response_length_mean": "average", "response_length_max": "longest"},
    ),
    Panel("Sampled against recomputed", "nats per token", {"sampler_difference": "sampler"}),
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#999999")
"""Told apart by colour-blind readers as well (after Okabe and Ito)."""
COLUMNS = 4


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def rolling_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    means = []
    for i in range(len(values)):
        recent = values[max(0, i - window + 1) : i + 1]
        means.append(sum(recent) / len(recent))
    return means


def plot_curves(run_dir: str | Path) -> Path | None:
    """Draw `curves.png` in a run folder; None while there are no metrics to draw.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("drawing curves", "matplotlib", "bench") from error
    folder = Path(run_dir)
    rows = read_metrics(folder / "metrics.jsonl")
    panels = [p for p in PANELS if any(_series(rows, name)[0] for name in p.lines)]
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * lines), layout="constrained")
    all_axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    last = max(_place(row) for row in rows)
    window = _window(rows)
    for axes, panel in zip(all_axes, panels, strict=False):
        if panel.stacked:
            _stack(axes, panel, rows)
        else:
            _draw(axes, panel, rows, window)
        axes.set_title(panel.title, loc="left", fontsize=11)
        axes.set_xlabel("million tokens" if "tokens" in rows[0] else "step")
        axes.set_ylabel(panel.unit)
        axes.set_xlim(0, last or 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    note = f"\nfaint as measured, strong the mean of {window} steps" if window else ""
    figure.suptitle(folder.resolve().name + note, fontsize=11)
    target = folder / "curves.png"
    figure.savefig(target, dpi=130)
    return target


def _place(row: Mapping[str, Any]) -> float:
    """Where a row stands on the axis: the millions of tokens read so far, or else its step."""
    return float(row["tokens"] / 1e6 if "tokens" in row else row["step"])


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(_place(row), row[name]) for row in rows if row.get(name) is not None]
    return [place for place, _ in points], [value for _, value in points]


def _window(rows: Sequence[Mapping[str, Any]]) -> int:
    """Steps that a strong line is the mean of; 0 while there are too few to need one."""
    return 0 if len(rows) < 5 else max(2, min(20, len(rows) // 8))


def _draw(axes: Any, panel: Panel, rows: Sequence[Mapping[str, Any]], window: int) -> None:
    """Faint as measured and strong as a rolling mean; sparse series as points."""
    for (name, label), colour in zip(panel.lines.items(), COLOURS, strict=False):
        steps, values = _series(rows, name)
        if not steps:
            continue
        if name.startswith("eval_") or len(steps) < 5:
            axes.plot(steps, values, "o-", color=colour, markersize=4, label=label)
            continue
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, rolling_mean(values, window), color=colour, linewidth=1.8, label=label)
    axes.legend(fontsize=8, frameon=False)


def _stack(axes: Any, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    """Shares of a whole, one band each, labelled at the side so that no band is covered."""
    having = [row for row in rows if any(row.get(name) is not None for name in panel.lines)]
    steps = [_place(row) for row in having]
    bands = [[row.get(name) or 0.0 for row in having] for name in panel.lines]
    colours = COLOURS[: len(bands)]
    axes.stackplot(steps, bands, labels=list(panel.lines.values()), colors=colours, alpha=0.85)
    axes.set_ylim(0, 1)
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.6, 1.0),
        ncols=4,
        handlelength=0.8,
        columnspacing=0.8,
    )

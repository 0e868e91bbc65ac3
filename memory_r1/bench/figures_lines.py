"""Lines over time: the reward while training, accuracy and bank size while a dialogue goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memory_r1.bench.comparison import Table
from memory_r1.bench.figures_draw import (
    TINY_NOTE,
    WIDTH,
    Cell,
    Drawing,
    Figure,
    Missing,
    Theme,
    bench,
    clipped,
    each_label_once,
    facts,
    head,
    key,
    room_for_key,
)
from memory_r1.bench.given import BenchRun, TrainRun, number

AGENTS = {"manager": "Memory Manager", "answer": "Answer Agent"}
"""What run files call them, and we."""


def curves(training: Sequence[TrainRun]) -> Figure:
    """The reward over the steps of training, PPO against GRPO."""
    title = "Reward while training"
    drawn = [run for run in training if _series(run, "reward_mean")]
    if not drawn:
        commands = (
            f"memory-r1 train runs/tiny_manager_{algorithm}.toml --out out/{algorithm}"
            for algorithm in ("ppo", "grpo")
        )
        return Missing(title, "needs folders of training runs with a reward", tuple(commands))
    kinds = sorted({run.kind for run in drawn}, reverse=True)
    algorithms = sorted({run.algorithm for run in drawn})

    def draw(canvas: Any, theme: Theme) -> None:
        every = canvas.subplots(len(kinds), 1, squeeze=False)[:, 0]
        styles = dict(zip(algorithms, theme.styles(), strict=False))
        for axes, kind in zip(every, kinds, strict=True):
            for run in (run for run in drawn if run.kind == kind):
                _curve(axes, run, *styles[run.algorithm])
            axes.margins(y=0.15)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.set_xlabel("step")
            axes.set_ylabel("mean reward")
            head(axes, AGENTS.get(kind, kind))
        key(canvas, each_label_once(every))

    seeds = sorted({str(run.config.get("seed", "?")) for run in drawn})
    caption = (
        f"{len(drawn)} training runs, seeds {', '.join(seeds)}, one line each. Faint: as measured; "
        "strong: a rolling mean over a sixth of the steps, at most 20; points: held-out dialogues, "
        "greedy."
    )
    for absent in sorted({"ppo", "grpo"} - set(algorithms)):
        caption += f" No {absent.upper()} run was given to compare with."
    if any(run.is_tiny for run in drawn):
        caption += f" {TINY_NOTE}"
    headings = ("run", "agent", "algorithm", "seed", "steps", "first reward", "last rolling mean")
    rows = tuple(_summary(run) for run in drawn)
    tall = 0.8 + 3.0 * len(kinds)
    return Drawing("curves", title, caption, headings, rows, (WIDTH, tall), draw)


def streaming(table: Table) -> Figure:
    """Whether a memory gets worse as a dialogue goes on."""
    title = "As the dialogues unfold"
    runs = [run for run in table.runs if run.scores.get("curve")]
    if not runs:
        command = bench(table, "--system SYSTEM --protocol stream", "runs/stream")
        return Missing(title, "needs runs that were asked every few sessions", (command,))
    judged = table.comparable("judge") and any(_points(run, "judge") for run in runs)
    panels = {"f1": "F1, %", **({"judge": "J, %"} if judged else {"em": "EM, %"})}
    if any(_points(run, "kept") for run in runs):
        panels["kept"] = "still right, %"
    panels["memories"] = "memories in a bank"

    def draw(canvas: Any, theme: Theme) -> None:
        every = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, unit) in zip(every, panels.items(), strict=True):
            for run, (colour, marker) in zip(runs, theme.styles(), strict=False):
                if points := _points(run, name):
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=colour, marker=marker, label=clipped(run.label))
            axes.margins(y=0.15)
            axes.set_ylim(bottom=0)
            axes.set_ylabel(unit)
            head(axes, "")
        every[-1].xaxis.get_major_locator().set_params(integer=True)
        every[-1].set_xlabel("sessions heard")
        key(canvas, each_label_once(every))

    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (run.label, *(number(point.get(name)) for name in ("sessions", "n", *panels)))
        for run in runs
        for point in run.scores["curve"]
    )
    caption = facts(table, runs, error_bars=False) + (
        " At each point all questions are asked that can be answered by then, so n differs from "
        "point to point, and dialogues that end early leave."
    )
    if "kept" in panels:
        caption += " Still right: share of the answers that were right when first asked."
    tall = 0.5 + 2.2 * len(panels) + room_for_key(len(runs))
    headings = ("system", "sessions", "n", *panels.values())
    return Drawing("streaming", title, caption, headings, rows, (WIDTH, tall), draw)


def _series(run: TrainRun, name: str) -> list[tuple[float, float]]:
    found = ((number(row.get("step")), number(row.get(name))) for row in run.rows)
    return [(x, y) for x, y in found if x is not None and y is not None]


def _curve(axes: Any, run: TrainRun, colour: str, marker: str) -> None:
    points, held_out = _series(run, "reward_mean"), _series(run, "eval_reward_mean")
    x, y = [p[0] for p in points], [p[1] for p in points]
    name = run.algorithm.upper()
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(x, _rolling(y), color=colour, linewidth=1.8, label=name)
    if held_out:
        look = {"color": colour, "markersize": 6, "label": f"{name}, held out"}
        axes.plot(*zip(*held_out, strict=True), marker, **look)


def _rolling(values: Sequence[float]) -> list[float]:
    """The mean of each value and some before it."""
    window = max(2, min(20, len(values) // 6))
    recent = (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))
    return [math.fsum(part) / len(part) for part in recent]


def _summary(run: TrainRun) -> tuple[Cell, ...]:
    points = _series(run, "reward_mean")
    rewards = [reward for _, reward in points]
    last = round(_rolling(rewards)[-1], 4)
    seed = str(run.config.get("seed", "?"))
    return run.label, run.kind, run.algorithm, seed, points[-1][0], round(rewards[0], 4), last


def _points(run: BenchRun, name: str) -> list[tuple[float, float]]:
    found = ((number(p.get("sessions")), number(p.get(name))) for p in run.scores["curve"])
    return sorted((x, y) for x, y in found if x is not None and y is not None)

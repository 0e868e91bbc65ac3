"""Accuracy over size, accuracy against latency, and the radar over benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from memory_r1.bench.comparison import Table, averages
from memory_r1.bench.figures_bars import arm_of, batch_note
from memory_r1.bench.figures_draw import (
    TINY_NOTE,
    WIDTH,
    Cell,
    Drawing,
    Figure,
    Missing,
    Theme,
    Value,
    bench,
    clipped,
    each_label_once,
    facts,
    head,
    key,
    measures,
    plain,
    room_for_key,
    way,
)
from memory_r1.bench.given import MEASURES, BenchRun
from memory_r1.bench.paper import LATENCY, LLAMA, LOCOMO, NOTE, SCALE

COMPONENTS = ("manager", "search", "answer")
PAPER_STYLES = {"base": ":", "ppo": "--", "grpo": "-"}


class _Point(NamedTuple):
    """A system in the latency figure; a hollow one is the paper's."""

    label: str
    f1: float
    seconds: Mapping[str, tuple[float, float]]
    hollow: bool = False


def size(table: Table) -> Figure:
    """Accuracy over the size of the model that answers, one line for each way of training."""
    title = "Size of the model"
    lines = _by_size(table)
    runs = [run for of in lines.values() for each in of.values() for run in each]
    sizes = sorted({size for of in lines.values() for size in of})
    if len(sizes) < 2:
        found = ", ".join(f"{size:g}" for size in sizes) or "none"
        why = "needs base or fully trained systems of at least two sizes; found (in billions of "
        commands = (bench(table, f"--system out/{n}b", f"runs/{n}b") for n in (3, 7))
        return Missing(title, f"{why}parameters) {found}", tuple(commands))
    names = measures(table, runs)
    series = {
        (name, algorithm): {
            size: value for size in sorted(of) if (value := averages(of[size], name)) is not None
        }
        for name in names
        for algorithm, of in sorted(lines.items())
    }

    def draw(canvas: Any, theme: Theme) -> None:
        every = canvas.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(every, names, strict=True):
            mine = {algorithm: series[name, algorithm] for algorithm in sorted(lines)}
            _size_panel(axes, theme, mine, name == "f1")
            head(axes, MEASURES[name])
        _log_sizes(every[-1], {*sizes, *(size for size, _ in SCALE["base"])})
        every[-1].set_xlabel("billions of parameters")
        key(canvas, every[0].get_legend_handles_labels()[0])

    rows = tuple(
        (MEASURES[name], way(algorithm), size, *value)
        for (name, algorithm), values in series.items()
        for size, value in values.items()
    )
    caption = facts(table, runs) + (
        f" Trained: both agents. Grey: the paper's scale table (LoCoMo, F1 only). {NOTE}"
    )
    headings = ("measure", "trained by", "billions", "value", "low", "high")
    return Drawing("size", title, caption, headings, rows, (WIDTH, 8.4), draw)


def latency(table: Table) -> Figure:
    """F1 against the seconds of each component, at the median and at the 95th percentile."""
    title = "Accuracy against latency"
    runs = [run for run in table.runs if run.latency and run.overall.get("f1") is not None]
    parts = [part for part in COMPONENTS if any(part in run.latency for run in runs)]
    if not parts:
        why = "needs runs with latencies; batches of one question time a single user"
        return Missing(title, why, (bench(table, "--system SYSTEM --batch 1", "runs/timed"),))
    points = [_Point(run.label, run.overall["f1"] or 0.0, run.latency) for run in runs]
    reported = _paper_latency() if table.references and table.benchmark == "locomo" else []

    def draw(canvas: Any, theme: Theme) -> None:
        grid = canvas.subplots(len(parts), 2, sharey=True, squeeze=False)
        for part, row in zip(parts, grid, strict=True):
            for place, axes in enumerate(row):
                _latency_panel(axes, theme, [*points, *reported], part, place)
                head(axes, f"{part}, {('p50', 'p95')[place]}")
            row[0].set_ylabel("F1, %")
        key(canvas, each_label_once(grid.flat))

    every = [*points, *reported]
    rows = tuple(
        (point.label, part, point.f1, *point.seconds[part])
        for point in every
        for part in parts
        if part in point.seconds
    )
    caption = (
        facts(table, runs, error_bars=False)
        + " Up and to the left is better. Manager: per turn; search, answer: per question. "
        + batch_note(runs)
        + (f" Hollow: the paper, {LLAMA}. {NOTE}" if reported else "")
    )
    tall = 0.4 + 2.5 * len(parts) + room_for_key(len(every))
    headings = ("system", "component", "F1", "p50, s", "p95, s")
    return Drawing("latency", title, caption, headings, rows, (WIDTH, tall), draw)


def radar(tables: Sequence[Table]) -> Figure:
    """One axis for each benchmark, one ring for each system that was played on all of them."""
    title = "Across benchmarks"
    across = [table for table in tables if table.protocol == "build"]
    systems = _by_name(across)
    everywhere = {name: of for name, of in systems.items() if len(of) == len(across)}
    if len(across) < 3 or not everywhere:
        held = "; ".join(table.title for table in across) or "none"
        return Missing(
            title,
            "needs a system with one label on at least three benchmarks, and on all that are "
            f"given; found {held}",
            tuple(
                f"memory-r1 bench {name} --data FILE --system SYSTEM --label NAME --out runs/{name}"
                for name in ("locomo", "longmemeval", "msc")
            ),
        )
    runs = [run for of in everywhere.values() for each in of.values() for run in each]
    judged = all(r.overall.get("judge") is not None for r in runs)
    name = "judge" if judged and all(table.comparable("judge") for table in across) else "f1"
    rings = {
        label: [averages(of[i], name) or (0.0, 0.0, 0.0) for i in range(len(across))]
        for label, of in everywhere.items()
    }
    caption = f"{MEASURES[name]} in percent, 0 in the middle. " + " ".join(
        facts(table, [run for of in everywhere.values() for run in of[i]], error_bars=False)
        .removesuffix(TINY_NOTE)
        .strip()
        for i, table in enumerate(across)
    )
    if left_out := sorted(systems.keys() - everywhere.keys()):
        caption += f" Not played on all of them, so not shown: {', '.join(left_out)}."
    if any(run.is_tiny for run in runs):
        caption += f" {TINY_NOTE}"
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (label, table.title, ring[i][0])
        for label, ring in rings.items()
        for i, table in enumerate(across)
    )

    def draw(canvas: Any, theme: Theme) -> None:
        _radar(canvas, theme, [table.title for table in across], rings)

    tall = 5.6 + room_for_key(len(rings))
    headings = ("system", "benchmark", MEASURES[name])
    return Drawing("radar", title, caption, headings, rows, (WIDTH, tall), draw)


def _by_size(table: Table) -> dict[str, dict[float, list[BenchRun]]]:
    """Algorithm or "base" -> size -> runs, of systems that are wholly trained or not at all."""
    lines: dict[str, dict[float, list[BenchRun]]] = {}
    for run in table.runs:
        if run.ours and run.size and run.says_who_was_trained and run.distillation:
            trained = run.trained("answer")
            if arm_of(run) == "full" and trained is not None:
                lines.setdefault(trained.algorithm, {}).setdefault(run.size, []).append(run)
            elif run.untrained:
                lines.setdefault("base", {}).setdefault(run.size, []).append(run)
    return lines


def _size_panel(
    axes: Any, theme: Theme, lines: Mapping[str, Mapping[float, Value]], paper: bool
) -> None:
    styles = zip(lines.items(), theme.styles(), strict=False)
    for (algorithm, values), (colour, marker) in styles:
        heights = [mean for mean, _, _ in values.values()]
        spread = [
            [mean - low for mean, low, _ in values.values()],
            [high - mean for mean, _, high in values.values()],
        ]
        look = {"color": colour, "marker": marker, "capsize": 2, "label": way(algorithm)}
        axes.errorbar(list(values), heights, spread, **look)
    for algorithm, reported in SCALE.items() if paper else ():
        axes.plot(
            *zip(*reported, strict=True),
            PAPER_STYLES[algorithm],
            color=theme.paper,
            label=f"paper: Qwen2.5, {way(algorithm)}",
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("%")


def _log_sizes(axes: Any, sizes: set[float]) -> None:
    axes.set_xscale("log")
    shown: list[float] = []
    for value in sorted(sizes):
        if not shown or value / shown[-1] > 1.25:  # closer ticks would overlap
            shown.append(value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.minorticks_off()


def _latency_panel(
    axes: Any, theme: Theme, points: Sequence[_Point], part: str, place: int
) -> None:
    for point, (colour, marker) in zip(points, theme.styles(), strict=False):
        if part in point.seconds:
            look = {"color": colour, "marker": marker, "markersize": 8}
            if point.hollow:
                shape = "^" if "GRPO" in point.label else "v"
                look |= {"color": theme.paper, "marker": shape, "markerfacecolor": "none"}
            x = max(point.seconds[part][place], 1e-5)  # a logarithm needs more than 0
            axes.plot(x, point.f1, linestyle="none", label=clipped(point.label), **look)
    axes.set_xscale("log")
    seconds = [max(point.seconds[part][place], 1e-5) for point in points if part in point.seconds]
    if seconds:
        low, high = min(seconds) / 2, 2 * max(seconds)
        ticks = _ticks(low, high)
        axes.set_xlim(low, high)
        axes.set_xticks(ticks, [f"{tick:.6f}".rstrip("0").rstrip(".") for tick in ticks])
    axes.minorticks_off()
    # Over all points: panels share the axis, and the first one drawn would set it for the others.
    axes.set_ylim(0, 1.12 * max(point.f1 for point in points) or 1)
    axes.set_xlabel("seconds")


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, few enough for their labels not to overlap."""
    for steps in ((1, 2, 5), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = (float(f"{step}e{power}") for power in powers for step in steps)
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) <= 4:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 4)]


def _paper_latency() -> list[_Point]:
    """What the paper tells of systems whose overall F1 it tells too."""
    f1 = {row.system: row.f1 for row in LOCOMO if row.model == LLAMA}
    return [
        _Point(f"paper: {row.agent}", known, {row.component: (row.p50, row.p95)}, hollow=True)
        for row in LATENCY
        if (known := f1.get(row.agent)) is not None
    ]


def _by_name(tables: Sequence[Table]) -> dict[str, dict[int, list[BenchRun]]]:
    """Label -> number of the table -> its runs, which differ in their seeds."""
    systems: dict[str, dict[int, list[BenchRun]]] = {}
    for i, table in enumerate(tables):
        for run in table.runs:
            systems.setdefault(plain(run.name), {}).setdefault(i, []).append(run)
    return systems


def _radar(
    canvas: Any, theme: Theme, titles: Sequence[str], rings: Mapping[str, Sequence[Value]]
) -> None:
    axes = canvas.subplots(subplot_kw={"projection": "polar"})
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    turns = [2 * math.pi * i / len(titles) for i in range(len(titles))]
    for (label, ring), (colour, marker) in zip(rings.items(), theme.styles(), strict=False):
        around = [mean for mean, _, _ in (*ring, ring[0])]
        axes.plot([*turns, turns[0]], around, color=colour, marker=marker, label=clipped(label))
        axes.fill([*turns, turns[0]], around, color=colour, alpha=0.08)
    names = [
        "\n".join(clipped(part, 20) for part in title.replace("split ", "").split(", "))
        for title in titles
    ]
    axes.set_xticks(turns, names)
    for turn, tick in zip(turns, axes.get_xticklabels(), strict=True):
        side = math.sin(turn)
        if abs(side) < 0.3:
            tick.set_verticalalignment("bottom" if turn == 0 else "top")
        else:  # beside the circle: the label begins or ends at it
            tick.set_horizontalalignment("left" if side > 0 else "right")
    axes.set_rlabel_position(180 / len(titles))
    axes.set_ylim(0, max(10.0, *(1.05 * mean for ring in rings.values() for mean, _, _ in ring)))
    axes.spines["polar"].set_color(theme.grid)
    key(canvas, axes.get_legend_handles_labels()[0])

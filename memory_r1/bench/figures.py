"""tables and training runs -> every figure, drawn or explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from memory_r1.bench import figures_bars, figures_lines, figures_points
from memory_r1.bench.comparison import Table
from memory_r1.bench.figures_draw import DARK, LIGHT, Drawing, Figure, Missing, png
from memory_r1.bench.given import Given

__all__ = ["DARK", "LIGHT", "Drawing", "Figure", "Missing", "of_all", "of_table", "png"]

PER_TABLE: Mapping[str, Sequence[Callable[[Table], Figure]]] = {
    "build": (
        figures_bars.ablation,
        figures_bars.distillation,
        figures_bars.reward,
        figures_bars.managers,
        figures_points.size,
        figures_points.latency,
    ),
    "stream": (figures_lines.streaming, figures_points.latency),
}
"""By protocol; a new figure is a function and its name here."""


def of_table(table: Table) -> list[Figure]:
    """The figures that compare the runs of one table."""
    return [make(table) for make in PER_TABLE.get(table.protocol, PER_TABLE["build"])]


def of_all(given: Given, tables: Sequence[Table]) -> list[Figure]:
    """The figures over several tables, and over training."""
    found = [figures_points.radar(tables), figures_lines.curves(given.training)]
    if not any(table.protocol == "stream" for table in tables):
        like = next(iter(tables), Table("locomo", "locomo10.json", "", "test", "build", ()))
        found.append(figures_lines.streaming(like))
    return found

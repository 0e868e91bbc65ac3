"""metrics.jsonl -> small inline SVG charts, in the colours of the page, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from memory_r1.train.curves import rolling_mean

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 30
"""Margins, in the SVG's own units."""
OPERATIONS = ("op_add", "op_update", "op_delete", "op_noop")

Rows = Sequence[Mapping[str, Any]]


class _Frame:
    """Axes from (0, low) to (last, high), and where a point lies in them."""

    def __init__(self, last: float, low: float, high: float) -> None:
        self.last, self.low, self.high = max(last, 1), low, high if high > low else low + 1

    def x(self, step: float) -> float:
        return LEFT + step / self.last * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)

    def axes(self, title: str) -> str:
        parts = [f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>']
        digits = 3 if self.high - self.low < 0.1 else 2
        for i in range(4):
            value = self.low + i / 3 * (self.high - self.low)
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.{digits}f}</text>'
            )
        for step in (0, self.last / 2, self.last):
            parts.append(
                f'<text x="{self.x(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle">'
                f"{step:g}</text>"
            )
        return "".join(parts)


def line_chart(title: str, rows: Rows, name: str) -> str:
    """One metric over the steps: as measured, as a rolling mean, and held out as points.

    Empty where the run never logged it.
    """
    points = series(rows, name)
    held_out = series(rows, f"eval_{name}")
    if not points:
        return ""
    every = [value for _, value in points + held_out]
    frame = _Frame(max(row["step"] for row in rows), min(every), max(every))
    window = max(2, min(20, len(points) // 6))
    means = rolling_mean([value for _, value in points], window)
    smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
    body = (
        f'<polyline class="raw" points="{frame.path(points)}"/>'
        f'<polyline class="mean" points="{frame.path(smooth)}"/>'
    )
    for step, value in held_out:
        body += f'<circle class="held" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3.5"/>'
    note = f"mean of {window} steps" + ("; dots: held out, greedy" if held_out else "")
    return _svg(title, f"{frame.axes(f'{title} ({note})')}{body}")


def operations_chart(title: str, rows: Rows) -> str:
    """The shares of the operations over the steps, as stacked bands; empty without any."""
    having = [row for row in rows if row.get("op_add") is not None]
    if not having:
        return ""
    frame = _Frame(max(row["step"] for row in having), 0.0, 1.0)
    below = [0.0] * len(having)
    body = ""
    for i, name in enumerate(OPERATIONS):
        above = [b + float(row.get(name) or 0.0) for b, row in zip(below, having, strict=True)]
        steps = [float(row["step"]) for row in having]
        edge = [*zip(steps, above, strict=True), *reversed([*zip(steps, below, strict=True)])]
        body += f'<polygon class="op{i}" points="{frame.path(edge)}"/>'
        below = above
    key = "".join(
        f'<rect class="op{i}" x="{LEFT + 118 + i * 56}" y="5" width="9" height="9"/>'
        f'<text x="{LEFT + 130 + i * 56}" y="14">{name[3:].upper()}</text>'
        for i, name in enumerate(OPERATIONS)
    )
    return _svg(title, f"{frame.axes(title)}{body}{key}")


def series(rows: Rows, name: str) -> list[tuple[float, float]]:
    """(step, value) wherever a metric was logged."""
    return [(float(r["step"]), float(r[name])) for r in rows if r.get(name) is not None]


def _svg(label: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
    )

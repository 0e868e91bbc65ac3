"""A training stage while it runs: a live picture on a terminal, else a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from memory_r1.train.curves import rolling_mean

PLAIN_SECONDS = 10.0
WIDTH, HEIGHT = 56, 6
"""Of the reward curve, in characters; each holds 2 x 4 braille dots."""
WINDOW = 10
"""Steps the shown mean runs over."""
COLOURS = {"add": "blue", "update": "dark_orange", "delete": "green", "noop": "bright_black"}
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row from the top][column]


class StageView:
    """Shows one stage; a context manager, called after every step with its metrics.

    past: rows of metrics.jsonl from before an interruption.
    """

    def __init__(
        self,
        title: str,
        total: int,
        console: Console,
        past: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._title, self._total, self._console = title, total, console
        self._rows = [dict(row) for row in past]
        self._entered = self._said = time.monotonic()
        self._pace_from: tuple[int, float] | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._entered = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
            self._live.update(self._picture(), refresh=True)
        else:
            self._console.print(f"{self._title}: preparing", highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        if kind is None and self._rows:
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note a step; 0 is what was measured before the first."""
        now = time.monotonic()
        self._rows.append({"step": step, **metrics})
        self._pace_from = self._pace_from or (step, now)
        if self._console.is_terminal:
            self._live.update(self._picture(), refresh=True)
        elif now - self._said >= PLAIN_SECONDS:
            self._said = now
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def _line(self) -> str:
        parts = [f"{self._title}: {self._progress()}"]
        if rewards := self._series("reward_mean"):
            parts.append(f"reward {rolling_mean(rewards, WINDOW)[-1]:.3f}")
        if mix := self._mix():
            parts.append(" ".join(f"{op.upper()} {share:.0%}" for op, share in mix.items()))
        if entropy := self._series("entropy"):
            parts.append(f"entropy {entropy[-1]:.2f}")
        return ", ".join(parts)

    def _progress(self) -> str:
        step = int(self._rows[-1]["step"]) if self._rows else 0
        text = f"step {step} of {self._total}"
        if self._pace_from is not None and step > self._pace_from[0]:
            first, began = self._pace_from
            left = (time.monotonic() - began) / (step - first) * (self._total - step)
            text += f", {duration(left)} left" if step < self._total else ""
        return text

    def _series(self, name: str) -> list[float]:
        return [float(row[name]) for row in self._rows if row.get(name) is not None]

    def _mix(self) -> dict[str, float]:
        having = [row for row in self._rows if "op_add" in row][-WINDOW:]
        return {
            op: sum(float(row.get(f"op_{op}") or 0.0) for row in having) / len(having)
            for op in (COLOURS if having else ())
        }

    def _picture(self) -> Group:
        parts = [Text(f"{self._title}  ", style="bold").append(self._progress(), style="not bold")]
        rewards = self._series("reward_mean")
        if not rewards:
            return Group(*parts, Text("building memory banks to practise on ...", style="dim"))
        means = rolling_mean(rewards, WINDOW)
        rows = braille(means, WIDTH, HEIGHT)
        low, high = min(means), max(means)
        labels = [f"{high:.3f}", *[""] * (HEIGHT - 2), f"{low:.3f}"]
        for label, row in zip(labels, rows, strict=True):
            parts.append(Text(f"{label:>7} ").append(row, style="cyan"))
        parts.append(
            Text(f"        reward, mean of the last {min(WINDOW, len(means))} steps: ").append(
                f"{means[-1]:.3f}", style="bold"
            )
        )
        if mix := self._mix():
            bar = Text("        ")
            for op, share in mix.items():
                bar.append("█" * round(share * WIDTH), style=COLOURS[op])
            names = Text("        ")
            for op, share in mix.items():
                names.append(f"{op.upper()} {share:.0%}  ", style=COLOURS[op])
            parts += [bar, names]
        if entropy := self._series("entropy"):
            parts.append(Text(f"        entropy {entropy[-1]:.2f} nats per token"))
        return Group(*parts)


def braille(values: Sequence[float], width: int, height: int) -> list[str]:
    """A line chart as `height` strings of `width` characters, scaled to the values' range."""
    low, high = min(values), max(values)
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]
    for x in range(columns if len(values) > 1 else 1):
        left, between = divmod(x * (len(values) - 1) / (columns - 1), 1)
        right = min(int(left) + 1, len(values) - 1)
        value = (1 - between) * values[int(left)] + between * values[right]
        share = (value - low) / (high - low) if high > low else 0.5
        y = round((1 - share) * (rows - 1))
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(0x2800 + dots) for dots in row) for row in cells]


def duration(seconds: float) -> str:
    """Minutes and seconds, "3:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

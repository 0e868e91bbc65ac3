"""What every figure shares: what it is or what it lacks, its colours, bars, and the PNG."""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from memory_r1.bench.comparison import Table, averages
from memory_r1.bench.given import MEASURES, BenchRun
from memory_r1.bench.paper import NOTE
from memory_r1.errors import MissingExtra

WIDTH: Final = 5.8
"""Inches: narrow, so that letters are still read where a phone shows it 9 centimetres wide."""
DPI: Final = 150
LABEL_LENGTH: Final = 30
MARKERS: Final = "osD^vPX<>"
HATCHES: Final = ("//", "..", "xx", "--")
TINY_NOTE: Final = (
    "A bundled model of two million parameters has a part in these runs. tiny-base was taught bad "
    "habits on purpose (it deletes where it should merge), so gains over it show that training "
    "works, not how large models behave."
)
"""What must be said wherever the numbers of the tiny models are shown."""

Cell = str | float | None
Value = tuple[float, float, float]
"""A height, and from where to where its error bar goes."""


@dataclass(frozen=True)
class Theme:
    """Colours that colour-blind readers can tell apart too (after Okabe and Ito)."""

    page: str
    ink: str
    faint: str
    grid: str
    paper: str
    """What the paper reports: grey, and never one of `colours`."""
    colours: tuple[str, ...]

    def styles(self) -> Iterator[tuple[str, str]]:
        """Colour and marker of one line after another; no pair comes twice soon."""
        return zip(cycle(self.colours), cycle(MARKERS), strict=False)


LIGHT = Theme(
    page="#ffffff",
    ink="#1c1d1f",
    faint="#5c5f64",
    grid="#d9dadc",
    paper="#8a8d92",
    colours=("#0072b2", "#d55e00", "#009e73", "#b5578d", "#a87400", "#2f9fd8"),
)
DARK = Theme(
    page="#16171a",
    ink="#e8e8e6",
    faint="#a9acb2",
    grid="#3a3c41",
    paper="#8d9096",
    colours=("#5bb3e6", "#f0935a", "#3fbf9a", "#e08bb9", "#e6b13a", "#a9d8f5"),
)


@dataclass(frozen=True)
class Drawing:
    """A figure that the given runs can fill."""

    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """Every number it shows, for readers of tables."""
    size: tuple[float, float]
    """Inches."""
    draw: Callable[[Any, Theme], None]
    """Draws into an empty matplotlib figure."""


@dataclass(frozen=True)
class Missing:
    """A figure that the given runs can't fill."""

    title: str
    why: str
    commands: tuple[str, ...]
    """What makes the runs it lacks."""


Figure = Drawing | Missing


@dataclass(frozen=True)
class Panel:
    """Groups of bars side by side."""

    title: str
    ticks: Sequence[str]
    """One group each."""
    series: Mapping[str, Sequence[Value | None]]
    """One bar of each group: (ticks,) values."""
    unit: str = "%"
    paper: bool = False


def png(drawing: Drawing, theme: Theme = LIGHT) -> bytes:
    """Draw a figure; `drawing.size` inches at `DPI`.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingExtra("drawing figures", "matplotlib", "bench") from error
    with rc_context(_settings(theme)), _without_glyph_warnings():
        canvas = Canvas(figsize=drawing.size, layout="constrained")
        drawing.draw(canvas, theme)
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def bars(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Drawing:
    """A figure of one or more panels of bars, one below the other."""

    def draw(canvas: Any, theme: Theme) -> None:
        every = canvas.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _bars(axes, panel, theme)
            # Panels of one unit get one scale, or a low bar of one would look like a high one.
            axes.set_ylim(
                0, 1.15 * max(_top(other) for other in panels if other.unit == panel.unit)
            )

    rows = tuple(
        (panel.title, tick, series, value[0], value[1], value[2])
        for panel in panels
        for series, values in panel.series.items()
        for tick, value in zip(panel.ticks, values, strict=True)
        if value is not None
    )
    headings = ("panel", "bar", "measure", "value", "low", "high")
    return Drawing(name, title, caption, headings, rows, (WIDTH, 0.3 + 3.1 * len(panels)), draw)


def _bars(axes: Any, panel: Panel, theme: Theme) -> None:
    width = 0.8 / max(2, len(panel.series))
    for i, (name, values) in enumerate(panel.series.items()):
        colour = theme.paper if panel.paper else theme.colours[i % len(theme.colours)]
        look: dict[str, Any] = {"facecolor": colour, "edgecolor": colour}
        if panel.paper:
            look |= {"facecolor": "none", "hatch": HATCHES[i % len(HATCHES)]}
        shift = (i - (len(panel.series) - 1) / 2) * width
        held = [(place + shift, value) for place, value in enumerate(values) if value is not None]
        axes.bar(
            [x for x, _ in held],
            [mean for _, (mean, _, _) in held],
            0.9 * width,
            label=clipped(name, 22),
            **look,
        )
        for x, value in held:
            _tip(axes, x, value, theme)
    axes.set_xticks(range(len(panel.ticks)), [wrapped(tick, 14) for tick in panel.ticks])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, max(len(panel.ticks), 2) - 0.4)
    axes.set_ylabel(panel.unit)
    several = len(panel.series) > 1
    head(axes, panel.title, above=18 if several else 0)
    if several:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.1)


def _tip(axes: Any, x: float, value: Value, theme: Theme) -> None:
    """The error bar of a bar, and its height as a number above it."""
    height, low, high = value
    if high > low:
        spread = [[max(0.0, height - low)], [max(0.0, high - height)]]
        axes.errorbar(x, height, spread, color=theme.ink, capsize=2, linewidth=0.9)
    axes.annotate(
        _short(height),
        (x, max(height, high)),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=theme.ink,
    )


def _top(panel: Panel) -> float:
    values = [value for row in panel.series.values() for value in row if value is not None]
    return max((max(mean, high) for mean, _, high in values), default=0.0) or 1.0


def head(axes: Any, title: str, above: float = 0) -> None:
    """What all panels look like; above: points between panel and title, for a legend."""
    axes.set_title(clipped(title, 52), loc="left", pad=6 + above)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)


def key(canvas: Any, handles: Sequence[Any]) -> None:
    """One legend for all panels, below them."""
    canvas.legend(handles=handles, loc="outside lower left", ncols=2)


def room_for_key(labels: int) -> float:
    """Inches that the legend below a figure takes."""
    return 0.22 * math.ceil(labels / 2)


def each_label_once(every: Iterable[Any]) -> list[Any]:
    """Handles for one legend over several panels that share their labels."""
    found: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values())


def way(algorithm: str) -> str:
    """How a way of training is written: GRPO, PPO, SFT; base for none."""
    return algorithm if algorithm == "base" else algorithm.upper()


def plain(text: str) -> str:
    """One printable line: matplotlib hides labels that begin with _, and boxes control signs."""
    line = " ".join(
        "".join(" " if unicodedata.category(c)[0] == "C" else c for c in str(text)).split()
    )
    return f" {line}" if line.startswith("_") else line


def clipped(text: str, length: int = LABEL_LENGTH) -> str:
    """A label that leaves room for the figure."""
    line = plain(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def wrapped(text: str, width: int) -> str:
    """A label below a bar, in at most three lines."""
    lines = [""]
    for word in clipped(text, 3 * width).split():
        pieces = [word[i : i + width] for i in range(0, len(word), width)]
        for piece in pieces:
            joined = f"{lines[-1]} {piece}".strip()
            if len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return "\n".join(line for line in lines[:3] if line)


def measures(table: Table, runs: Sequence[BenchRun]) -> list[str]:
    """F1, B1 and J as in the paper; EM where no single judge saw the runs."""
    judged = table.comparable("judge") and any(r.overall.get("judge") is not None for r in runs)
    return ["f1", "bleu1", "judge" if judged else "em"]


def heights(
    arms: Sequence[Sequence[BenchRun]], names: Sequence[str]
) -> dict[str, list[Value | None]]:
    """Heading -> a value for each arm, which is a list of runs that differ in their seeds."""
    return {MEASURES[name]: [averages(runs, name) for runs in arms] for name in names}


def facts(
    table: Table, runs: Sequence[BenchRun], *, paper: bool = False, error_bars: bool = True
) -> str:
    """What a caption must say: questions, seeds, judge, error bars, and whose models."""
    counts = sorted({int(n) for run in runs if (n := run.overall.get("n")) is not None})
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    said = [f"{table.title}; n = {' or '.join(map(str, counts)) or '?'} questions"]
    if seeds:
        said.append(f"training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    if any(run.overall.get("judge") is not None for run in runs):
        said += [f"J by {name}, prompt {digest}" for name, digest in table.judges]
    text = "; ".join(said) + "."
    if error_bars:
        text += (
            " Error bars: 95% intervals over questions; where several seeds make one bar, its "
            "height is their mean and the error bar goes from the lowest to the highest."
        )
    if len(table.judges) > 1:
        text += " J is left out: the runs had different judges."
    if paper:
        text += f" Grey and hatched: what the paper reports. {NOTE}"
    if any(run.is_tiny for run in runs):
        text += f" {TINY_NOTE}"
    return text


def bench(table: Table, rest: str, out: str) -> str:
    """The command of a run that would join a table."""
    split = f" --split {table.split}" if table.split not in ("", "test") else ""
    return f"memory-r1 bench {table.benchmark} --data {table.data}{split} {rest} --out {out}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _settings(theme: Theme) -> dict[str, Any]:
    ink = dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"),
        theme.ink,
    )
    page = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.page)
    return {
        **ink,
        **page,
        "axes.edgecolor": theme.faint,
        "grid.color": theme.grid,
        "hatch.linewidth": 0.8,
        "font.family": "DejaVu Sans",  # comes with matplotlib: figures are the same everywhere
        "font.size": 10.5,
        "axes.titlesize": 11,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "text.parse_math": False,  # a label may hold a $
    }


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """A label in a script that the font lacks shows boxes; that is no reason to warn anybody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield

"""runs -> OUT/report.html, report.json, tables.md and figures/*.png."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory_r1
from memory_r1.bench import figures, html, tabulate
from memory_r1.bench.comparison import Table, tables
from memory_r1.bench.figures import Drawing, Figure, Missing
from memory_r1.bench.given import BenchRun, Given, TrainRun
from memory_r1.errors import ConfigError

TITLE = "Memory benchmark report"
FILES = ("report.html", "report.json", "tables.md", "figures")
"""What a report's folder holds."""


@dataclass(frozen=True)
class Report:
    """Everything a report tells."""

    title: str
    given: Given
    tables: tuple[Table, ...]
    of_table: tuple[tuple[Figure, ...], ...]
    """The figures of each table."""
    of_all: tuple[Figure, ...]

    @property
    def drawings(self) -> Iterator[tuple[str, Drawing]]:
        """(name of its file without the ending, figure) of all that can be drawn."""
        for table, found in zip(self.tables, self.of_table, strict=True):
            for figure in found:
                if isinstance(figure, Drawing):
                    yield f"{figure.name}-{slug(table.title)}", figure
        for figure in self.of_all:
            if isinstance(figure, Drawing):
                yield figure.name, figure


def report(given: Given, title: str = TITLE) -> Report:
    """Compare the runs; nothing is drawn yet."""
    found = tuple(tables(given.bench))
    return Report(
        title,
        given,
        found,
        tuple(tuple(figures.of_table(table)) for table in found),
        tuple(figures.of_all(given, found)),
    )


def write(made: Report, out: Path, *, force: bool = False) -> Path:
    """Draw and write everything; returns the path of the page.

    Raises ConfigError where OUT can't be written or holds something, unless it is a report and
    `force` is given; MissingExtra without matplotlib.
    """
    _room(out, force)
    light = {id(drawing): figures.png(drawing) for _, drawing in made.drawings}
    dark = {id(drawing): figures.png(drawing, figures.DARK) for _, drawing in made.drawings}
    try:
        folder = out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.png"):
            old.unlink()
        for name, drawing in made.drawings:
            (folder / f"{name}.png").write_bytes(light[id(drawing)])
        text = json.dumps(as_json(made), indent=1, ensure_ascii=False, allow_nan=False)
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
        (out / "tables.md").write_text(markdown(made), encoding="utf-8")
        page = out / "report.html"
        sections = [
            html.Section(table, drawn)
            for table, drawn in zip(made.tables, made.of_table, strict=True)
        ]
        runs: list[BenchRun | TrainRun] = [*made.given.bench, *made.given.training]
        page.write_text(
            html.page(made.title, sections, made.of_all, runs, light, dark), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    return page


def as_json(made: Report) -> dict[str, Any]:
    """The numbers of all tables and figures."""
    names = {id(drawing): name for name, drawing in made.drawings}

    def told(figure: Figure) -> dict[str, Any]:
        match figure:
            case Drawing():
                return {
                    "title": figure.title,
                    "file": f"figures/{names[id(figure)]}.png",
                    "caption": figure.caption,
                    "headings": list(figure.headings),
                    "rows": [list(row) for row in figure.rows],
                }
            case Missing():
                return {
                    "title": figure.title,
                    "missing": figure.why,
                    "commands": list(figure.commands),
                }

    return {
        "title": made.title,
        "version": memory_r1.__version__,
        "tables": [
            table.as_json() | {"figures": [told(figure) for figure in drawn]}
            for table, drawn in zip(made.tables, made.of_table, strict=True)
        ],
        "figures": [told(figure) for figure in made.of_all],
        "training": [
            {"run": run.label, "agent": run.kind, "algorithm": run.algorithm}
            for run in made.given.training
        ],
    }


def markdown(made: Report) -> str:
    """All tables, for pasting."""
    parts = [f"# {_md(made.title)}\n"]
    for table in made.tables:
        parts.append(f"## {_md(table.title)}\n")
        parts.append(_md_grid(tabulate.main(table)))
        parts.append("\n".join(f"- {_md(note)}" for note in tabulate.notes(table)) + "\n")
        for grid in tabulate.by_group(table):
            parts.append(f"### {_md(grid.title)}\n")
            parts.append(_md_grid(grid))
    return "\n".join(parts)


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"


def _md_grid(grid: tabulate.Grid) -> str:
    def row(cells: tuple[str, ...], best: frozenset[int] = frozenset()) -> str:
        marked = (f"**{_md(c)}**" if i in best else _md(c) for i, c in enumerate(cells))
        return f"| {' | '.join(marked)} |"

    ruler = "|---|" + "---:|" * (len(grid.headings) - 1)
    return "\n".join(
        [row(grid.headings), ruler, *(row(line.cells, line.best) for line in grid.lines), ""]
    )


def _md(text: str) -> str:
    """Text that Markdown shows as it is: a label must not end its cell, or be HTML."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|~#])", r"\\\1", safe).replace("\n", " ")


def _room(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names a folder")
    if not out.is_dir():
        return
    strange = sorted(path.name for path in out.iterdir() if path.name not in FILES)
    if strange:
        raise ConfigError(
            f"{out} holds more than a report ({', '.join(strange[:5])}); choose another --out"
        )
    if any(out.iterdir()) and not force:
        raise ConfigError(f"{out} holds a report; choose another --out, or replace it with --force")

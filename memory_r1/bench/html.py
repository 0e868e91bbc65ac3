"""tables and figures -> one page of HTML that needs nothing else: no network, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

import memory_r1
from memory_r1.bench import tabulate
from memory_r1.bench.comparison import Table
from memory_r1.bench.figures_draw import DPI, Cell, Drawing, Figure, Missing, plain
from memory_r1.bench.given import BenchRun, TrainRun
from memory_r1.bench.paper import SOURCE
from memory_r1.bench.tabulate import Grid

Pictures = Mapping[int, bytes]
"""id of a drawing -> its PNG."""


class Section(NamedTuple):
    """A table and its figures."""

    table: Table
    figures: Sequence[Figure]


def page(
    title: str,
    sections: Sequence[Section],
    rest: Sequence[Figure],
    runs: Sequence[BenchRun | TrainRun],
    light: Pictures,
    dark: Pictures,
) -> str:
    """The page. light, dark: the pictures of all drawings in `sections` and `rest`."""
    style = files("memory_r1.bench").joinpath("html.css").read_text("utf-8")
    parts = [
        "<!doctype html>",
        "<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        "<meta name='color-scheme' content='light dark'>",
        f"<title>{escape(plain(title))}</title><style>{style}</style></head><body><main>",
        f"<h1>{escape(plain(title))}</h1>",
        f"<p>{_told(sections, runs)} Grey rows and bars marked “paper” are what the paper "
        f"reports ({escape(SOURCE)}); they were not run here.</p>",
    ]
    for section in sections:
        parts += _section(section, light, dark)
    drawn = [figure for figure in rest if isinstance(figure, Drawing)]
    parts += [_drawing(figure, light, dark, heading="h2") for figure in drawn]
    parts += _missing([figure for figure in rest if isinstance(figure, Missing)])
    parts += ["<h2>The runs</h2>", _runs(runs), "</main></body></html>"]
    return "\n".join(parts) + "\n"


def _told(sections: Sequence[Section], runs: Sequence[BenchRun | TrainRun]) -> str:
    played = sum(isinstance(run, BenchRun) for run in runs)
    trained = len(runs) - played
    told = f"{played} benchmark runs in {len(sections)} tables and {trained} training runs."
    return told + " Runs of other data, another split or another protocol are never in one table."


def _section(section: Section, light: Pictures, dark: Pictures) -> Iterator[str]:
    table = section.table
    yield f"<h2>{escape(plain(table.title))}</h2>"
    yield _grid(tabulate.main(table), "all questions")
    yield "<ul class='notes'>"
    yield from (f"<li>{escape(note)}</li>" for note in tabulate.notes(table))
    yield "</ul>"
    if groups := list(tabulate.by_group(table)):
        count = f"{len(groups)} table{'s' if len(groups) > 1 else ''}"
        yield f"<details><summary>By kind of question ({count})</summary>"
        for grid in groups:
            yield f"<h4>{escape(plain(grid.title))}</h4>"
            yield _grid(grid, grid.title)
        yield "</details>"
    for figure in section.figures:
        if isinstance(figure, Drawing):
            yield _drawing(figure, light, dark, heading="h3")
    yield from _missing([f for f in section.figures if isinstance(f, Missing)])


def _grid(grid: Grid, caption: str) -> str:
    head = "".join(f"<th scope='col'>{escape(heading)}</th>" for heading in grid.headings)
    body = []
    for kind in ("run", "paper"):
        rows = []
        for line in (line for line in grid.lines if line.kind == kind):
            cells = [f"<th scope='row'>{escape(line.cells[0])}</th>"]
            for i, cell in enumerate(line.cells[1:], 1):
                cells.append(f"<td>{_number(cell, i in line.best)}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        if rows:
            body.append(f"<tbody class='{kind}'>{''.join(rows)}</tbody>")
    return _scrolling(caption, f"<thead><tr>{head}</tr></thead>{''.join(body)}")


def _number(cell: str, best: bool) -> str:
    """A number with its interval in small letters; the best of a column in bold."""
    value, bracket, interval = cell.partition(" [")
    shown = f"<b>{escape(value)}</b>" if best else escape(value)
    return shown + (f" <small>[{escape(interval)}</small>" if bracket else "")


def _drawing(drawing: Drawing, light: Pictures, dark: Pictures, *, heading: str) -> str:
    width, height = (round(side * DPI) for side in drawing.size)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(cell))}</td>" for cell in row) + "</tr>"
        for row in drawing.rows
    )
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in drawing.headings)
    numbers = _scrolling(drawing.title, f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")
    return (
        f"<{heading}>{escape(drawing.title)}</{heading}><figure><picture>"
        f"<source media='(prefers-color-scheme: dark)' srcset='{_data(dark[id(drawing)])}'>"
        f"<img src='{_data(light[id(drawing)])}' width='{width}' height='{height}' "
        f"alt='{escape(drawing.title)}; the numbers are in the table below'></picture>"
        f"<figcaption>{escape(plain(drawing.caption))}</figcaption>"
        f"<details><summary>The numbers</summary>{numbers}</details></figure>"
    )


def _missing(missing: Sequence[Missing]) -> Iterator[str]:
    if not missing:
        return
    titles = "; ".join(one.title for one in missing)
    yield f"<details class='missing'><summary>Not drawn: {escape(titles)}</summary><dl>"
    for one in missing:
        commands = "\n".join(one.commands)
        yield (
            f"<dt>{escape(one.title)}</dt><dd>{escape(plain(one.why))}. It is made by, for "
            f"instance:<pre>{escape(commands)}</pre></dd>"
        )
    yield "</dl></details>"


def _runs(runs: Sequence[BenchRun | TrainRun]) -> str:
    rows = []
    for run in runs:
        match run:
            case BenchRun():
                players = ", ".join(f"{role}: {name}" for role, name in run.players.items())
                cells = (run.label, run.folder.name, players, run.text("version"))
            case TrainRun():
                what = f"training of {run.kind}, {run.algorithm}, seed {run.config.get('seed')}"
                cells = (run.label, run.folder.name, what, str(run.about.get("memory_r1", "")))
        rows.append(
            f"<tr><th scope='row'>{escape(plain(cells[0]))}</th>"
            + "".join(f"<td>{escape(plain(cell))}</td>" for cell in cells[1:])
            + "</tr>"
        )
    headings = ("run", "folder", "who", "memory-r1")
    head = "".join(f"<th scope='col'>{name}</th>" for name in headings)
    return _scrolling(
        f"made with memory-r1 {memory_r1.__version__}",
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>",
        "words",
    )


def _scrolling(caption: str, inside: str, look: str = "numbers") -> str:
    """A table that scrolls sideways by itself, also by keyboard."""
    name = escape(plain(caption))
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{name}'>"
        f"<table class='{look}'><caption>{name}</caption>{inside}</table></div>"
    )


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case str():
            return plain(cell)
    return f"{cell:.4g}" if abs(cell) < 1 else f"{cell:.1f}".removesuffix(".0")


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

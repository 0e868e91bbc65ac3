"""A table of runs -> its cells as text, for the page, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from memory_r1.bench.comparison import Table
from memory_r1.bench.figures_draw import TINY_NOTE, plain
from memory_r1.bench.given import MEASURES, BenchRun, Row
from memory_r1.bench.paper import NOTE, Reference

HEADINGS = {**MEASURES, "rouge_l_recall": "R-L"}
"""Of every measure; ROUGE-L recall (R-L) only where it is the benchmark's own: MSC."""


@dataclass(frozen=True)
class Line:
    """One row."""

    kind: Literal["run", "paper"]
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Columns in which it is the best of the runs; a row of the paper never is."""


@dataclass(frozen=True)
class Grid:
    """A table as text: the first column names the rows, the others are numbers."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]


def main(table: Table, *, intervals: bool = True) -> Grid:
    """All questions: one line for each run, then those of the paper."""
    shown = _measures(table, table.runs, table.references)
    headings = ["system", "n", *(HEADINGS[name] for name in shown), "words"]
    differs = table.baseline is not None and len(table.runs) > 1
    if differs:
        headings.append("F1 - baseline")
    lines = []
    for run in table.runs:
        cells, best = _run(table, run, run.overall, shown, None, intervals)
        lines.append(Line("run", cells + ((_gap(table, run),) if differs else ()), best))
    empty = ("",) if differs else ()
    for reference in table.references:
        lines.append(Line("paper", _reference(reference, shown) + empty))
    return Grid(table.title, tuple(headings), tuple(lines))


def by_group(table: Table, *, intervals: bool = True) -> Iterator[Grid]:
    """One grid for each kind of question."""
    for group in table.groups:
        runs = [run for run in table.runs if group in run.groups]
        reference = table.reference(group)
        references = [reference] if reference else []
        shown = _measures(table, runs, ())
        lines = []
        for run in runs:
            cells, best = _run(table, run, run.groups[group], shown, group, intervals)
            lines.append(Line("run", cells, best))
        lines += [Line("paper", _reference(one, shown)) for one in references]
        headings = ("system", "n", *(HEADINGS[name] for name in shown), "words")
        yield Grid(group, headings, tuple(lines))


def notes(table: Table) -> list[str]:
    """What must be said below a table."""
    said = ["Shares are 0 to 100; in brackets: 95% intervals, by resampling the questions."]
    if table.baseline is not None and len(table.runs) > 1:
        said.append(
            f"F1 - baseline: points above {plain(table.baseline.label)}, the untrained system with "
            "the highest F1, on the questions of both (paired bootstrap)."
        )
    elif len(table.runs) > 1:
        said.append("No untrained system was given, so there is no baseline to compare with.")
    if not table.same_questions:
        said.append("The runs did not answer the same questions, so no row is marked as the best.")
    if len(table.judges) > 1:
        said.append("The runs had different judges, so their J can't be compared.")
    for name, digest in table.judges:
        who = [plain(run.label) for run in table.runs if run.judge == (name, digest)]
        whose = "" if len(table.judges) == 1 else f" of {', '.join(who)}"
        said.append(f"J{whose} by {plain(name)}, prompt {plain(digest)}; above about 93 is noise.")
    if table.references:
        said.append(f"paper: what the paper reports, not run here. {NOTE}")
        remarks = sorted({row.note for row in table.references if row.note})
        for remark in remarks:
            rows = [row for row in table.references if row.note == remark]
            whose = "all its rows" if len(rows) == len(table.references) else _paper_name(rows[0])
            said.append(f"{whose}: {remark}.")
    if any(run.is_tiny for run in table.runs):
        said.append(TINY_NOTE)
    return said


def _measures(table: Table, runs: Sequence[BenchRun], references: Sequence[Reference]) -> list[str]:
    judged = any(run.judge for run in runs) or any(row.judge is not None for row in references)
    shown = [name for name in MEASURES if name != "judge" or judged]
    return [*shown, "rouge_l_recall"] if table.benchmark == "msc" else shown


def _run(
    table: Table,
    run: BenchRun,
    row: Row,
    shown: Sequence[str],
    group: str | None,
    intervals: bool,
) -> tuple[tuple[str, ...], frozenset[int]]:
    cells, best = [plain(run.label), _count(row.get("n"))], set()
    for name in shown:
        value = row.get(name)
        spread = run.interval(name, group) if intervals else None
        if value is not None and value == table.best(name, group):
            best.add(len(cells))
        cells.append(_share(value) + (f" [{spread[0]:.1f}, {spread[1]:.1f}]" if spread else ""))
    cells.append(_share(row.get("answer_words")))
    return tuple(cells), frozenset(best)


def _reference(row: Reference, shown: Sequence[str]) -> tuple[str, ...]:
    values = {"f1": row.f1, "bleu1": row.bleu1, "judge": row.judge}
    # As many decimals as the paper prints there.
    digits = 1 if all(v is None or round(v, 1) == v for v in values.values()) else 2
    known = ("-" if (v := values.get(name)) is None else f"{v:.{digits}f}" for name in shown)
    return (_paper_name(row), "-", *known, "-")


def _paper_name(row: Reference) -> str:
    return f"paper: {row.system}, {row.model}"


def _gap(table: Table, run: BenchRun) -> str:
    if run is table.baseline:
        return "baseline"
    found = table.difference(run, "f1")
    if found is None:
        return "-"
    some = "" if found.n == run.overall.get("n") else f", n = {found.n}"
    return f"{found.points:+.1f} [{found.low:+.1f}, {found.high:+.1f}]{some}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

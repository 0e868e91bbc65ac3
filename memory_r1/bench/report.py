"""scores.json -> tables in the terminal; and how far a run has come, with the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_COLUMNS = {
    "n": "n",
    "em": "EM",
    "f1": "F1",
    "f1_official": "F1off",
    "bleu1": "B1",
    "recall@60": "r@60",
    "all@60": "all@60",
    "answer_words": "words",
}
"""What the tables show of `score.measures`, in short headings: a row fits 80 columns."""
_EVERY_SECONDS = 10.0


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished run."""
    console.print(scores_table(scores))
    console.print(_bank_line(scores), soft_wrap=True)
    if scores["bank"]["by_phenomenon"]:
        console.print(operations_table(scores["bank"]["by_phenomenon"]))
    if scores["latency"]:
        batch = "" if scores["batch"] == 1 else f", {scores['batch']} questions at once"
        rows = (f"{name} {v['p50']}/{v['p95']}" for name, v in scores["latency"].items())
        console.print(f"seconds p50/p95{batch}: {', '.join(rows)}", soft_wrap=True)


def scores_table(scores: Mapping[str, Any]) -> Table:
    """One row per group and one for all; shares are 0..100."""
    shown = scores["shown"]
    who = f"{shown['per_speaker']} per speaker" if shown["per_speaker"] else f"best {shown['k']}"
    players = ", ".join(f"{role}: {name}" for role, name in scores["players"].items())
    swapped = any("(paper: " in name for name in scores["groups"])
    paper = "; in brackets: the paper's name of the category" if swapped else ""
    table = Table(
        title=f"{scores['benchmark']} {scores['split']}: {scores['system']}",
        caption=f"{players}; answers are made from the {who} entries{paper}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("questions", no_wrap=True)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for name, row in scores["groups"].items():
        table.add_row(name.replace("(paper: ", "("), *_cells(row))
    table.add_section()
    table.add_row("all", *_cells(scores["overall"]), style="bold")
    return table


def operations_table(by_phenomenon: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the Memory Manager did with the turns of each phenomenon, in shares of its operations.

    "right": share of turns that got exactly the operation the world's author holds right;
    "entry": share of UPDATE and DELETE that named the entry it is right to change.
    """
    names = ("ADD", "UPDATE", "DELETE", "NOOP")
    table = Table(title="operations by phenomenon", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("phenomenon")
    for heading in ("turns", "right", "entry", *names):
        table.add_column(heading, justify="right")
    for phenomenon, row in by_phenomenon.items():
        counts = [row["operations"].get(name, 0) for name in names]
        shares = [f"{100 * count / max(1, sum(counts)):.1f}" for count in counts]
        table.add_row(
            phenomenon, str(row["n"]), _cell(row["right"]), _cell(row["right_entry"]), *shares
        )
    return table


def _bank_line(scores: Mapping[str, Any]) -> str:
    bank, sources = scores["bank"], scores["overall"]["sources_per_entry"]
    operations = ", ".join(f"{name} {count}" for name, count in bank["operations"].items())
    line = (
        f"banks: {bank['entries']} entries on average, {_cell(sources)} source turns per retrieved "
        f"entry; operations: {operations or 'none'}"
    )
    if bank["deferred_turns"]:
        line += f"; {bank['deferred_turns']} turns deferred: the manager's reply was no operation"
    return line


def _cells(row: Mapping[str, float | int | None]) -> list[str]:
    return [_cell(row[name]) for name in _COLUMNS]


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value)


class Watch:
    """Shows how far a run has come: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note that `done` of `total` are finished; see `run.Progress`."""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done)
            return
        now = time.monotonic()
        # What an earlier run had finished comes at once and says nothing about the pace.
        start, already = self._began.setdefault(stage, (now, done))
        if now - self._said < _EVERY_SECONDS:
            return
        self._said = now
        pace = (done - already) / (now - start) if now > start else 0.0
        left = f", about {_duration((total - done) / pace)} left" if pace else ""
        self._console.print(f"{stage}: {done} of {total}{left}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

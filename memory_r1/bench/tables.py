"""scores.json -> tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_COLUMNS = {
    "n": "n",
    "em": "EM",
    "f1": "F1",
    "f1_official": "F1off",
    "bleu1": "B1",
    "rouge_l_recall": "R-L",
    "judge": "J",
    "recall@60": "r@60",
    "all@60": "all@60",
    "session_recall_all@10": "ses@10",
    "session_ndcg@10": "ndcg@10",
    "answer_words": "words",
}
"""What the tables show of `score.measures`, in short headings: a row fits 80 columns."""
_ONLY = {
    "f1_official": ("locomo", "world", "jsonl"),
    "rouge_l_recall": ("msc",),
    "recall@60": ("locomo", "world", "jsonl"),
    "all@60": ("locomo", "world", "jsonl"),
    "session_recall_all@10": ("longmemeval",),
    "session_ndcg@10": ("longmemeval",),
}
"""Columns that belong to some benchmarks alone."""


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a finished run."""
    console.print(scores_table(scores))
    intervals = scores["overall"]["intervals"]
    shown = (
        f"{_COLUMNS[name]} {intervals[name][0]}-{intervals[name][1]}"
        for name in _columns(scores)
        if intervals.get(name)
    )
    console.print(f"95% intervals of all: {', '.join(shown)}", soft_wrap=True)
    if scores["judge"]:
        judge = scores["judge"]
        console.print(
            f"judge: {judge['name']}, instruction {judge['prompt_hash']}, "
            f"{_cell(judge['unscored'])}% unscored",
            soft_wrap=True,
        )
    if scores["curve"]:
        console.print(curve_table(scores["curve"]))
    console.print(_bank_line(scores), soft_wrap=True)
    if scores["bank"]["by_phenomenon"]:
        console.print(operations_table(scores["bank"]["by_phenomenon"]))
    if scores["latency"]:
        rows = (f"{name} {v['p50']}/{v['p95']}" for name, v in scores["latency"].items())
        console.print(f"seconds p50/p95: {', '.join(rows)}", soft_wrap=True)
    console.print(_cost_line(scores["cost"]), soft_wrap=True)


def scores_table(scores: Mapping[str, Any]) -> Table:
    """One row per group and one for all; shares are 0..100."""
    shown = scores["shown"]
    who = f"{shown['per_speaker']} per speaker" if shown["per_speaker"] else f"best {shown['k']}"
    players = ", ".join(f"{role}: {name}" for role, name in scores["players"].items())
    swapped = any("(paper: " in name for name in scores["groups"])
    paper = "; in brackets: the paper's name of the category" if swapped else ""
    table = Table(
        title=f"{scores['benchmark']} {scores['split']}: {scores['label']}",
        caption=f"{players}; answers are made from the {who} entries{paper}",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    columns = _columns(scores)
    table.add_column("questions", no_wrap=True)
    for name in columns:
        table.add_column(_COLUMNS[name], justify="right")
    for group, row in scores["groups"].items():
        table.add_row(group.replace("(paper: ", "("), *(_cell(row[name]) for name in columns))
    table.add_section()
    table.add_row("all", *(_cell(scores["overall"][name]) for name in columns), style="bold")
    return table


def _columns(scores: Mapping[str, Any]) -> list[str]:
    """The measures that this run has."""
    rows = [*scores["groups"].values(), scores["overall"]]
    benchmark = scores["benchmark"]
    return [
        name
        for name in _COLUMNS
        if benchmark in _ONLY.get(name, (benchmark,))
        and any(row.get(name) is not None for row in rows)
    ]


def curve_table(curve: Sequence[Mapping[str, Any]]) -> Table:
    """Streaming: how good the answers were after so many sessions."""
    table = Table(title="as the dialogues unfold", box=box.SIMPLE_HEAD, collapse_padding=True)
    columns = {
        "sessions": "sessions",
        "dialogues": "dialogues",
        "memories": "memories",
        "n": "n",
        "em": "EM",
        "f1": "F1",
        "judge": "J",
        "kept": "still right",
    }
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for point in curve:
        table.add_row(*(_cell(point[name]) for name in columns))
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


def _cost_line(cost: Mapping[str, Any]) -> str:
    line = (
        f"{cost['calls']:,} calls of models, {cost['prompt_tokens']:,} prompt and "
        f"{cost['completion_tokens']:,} completion tokens (without the judge)"
    )
    return line if cost["dollars"] is None else f"{line}: ${cost['dollars']:,.2f}"


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value)

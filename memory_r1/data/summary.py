"""What a benchmark file holds, counted: the answer of `memory-r1 data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from memory_r1.data.categories import CATEGORIES
from memory_r1.data.dialogues import Dialogue, Irregularity, Report, Split, scored
from memory_r1.data.formats import recognise

SHOWN = 20
"""Dialogues, and irregularities of one sort, that the text form lists."""
_COLUMNS = ("sessions", "turns", "questions", "scored", "with_evidence", "observations")


def describe(path: str | Path, format: str | None = None) -> dict[str, Any]:
    """What a file holds, ready for JSON: counts per dialogue, group and split, irregularities.

    Reads one dialogue at a time where the format allows. Raises as `load` does. `table` prints it.
    """
    path, report = Path(path), Report()
    known = recognise(path, format)
    rows = []
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("categories", "phenomena", "groups")
    }
    splits = {split: {"dialogues": 0, "scored": 0} for split in get_args(Split)}
    for dialogue in known.stream(path, report):
        rows.append(_row(dialogue))
        splits[dialogue.split]["dialogues"] += 1
        splits[dialogue.split]["scored"] += rows[-1]["scored"]
        for question in dialogue.questions:
            counts["categories"][f"{question.category} {CATEGORIES[question.category]}"] += 1
            counts["phenomena"].update([question.phenomenon] if question.phenomenon else [])
            counts["groups"].update(question.groups)
    return {
        "file": str(path),
        "format": known.name,
        "title": known.title,
        "dialogues": rows,
        **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "splits": splits,
        "notes": report.notes,
        "irregularities": [
            {"record": one.record, "seen": one.seen, "mend": one.mend}
            for one in report.irregularities
        ],
    }


def _row(dialogue: Dialogue) -> dict[str, Any]:
    counted = scored([dialogue])
    return {
        "id": dialogue.id,
        "split": dialogue.split,
        "speakers": list(dialogue.speakers),
        "sessions": len(dialogue.sessions),
        "turns": len(dialogue.turns),
        "questions": len(dialogue.questions),
        "scored": len(counted),
        "with_evidence": sum(bool(question.evidence) for question in counted),
        "observations": len(dialogue.observations),
    }


def table(description: Mapping[str, Any], everything: bool = False) -> str:
    """The text form of what `describe` returns.

    everything: list all dialogues and irregularities, not the first `SHOWN` of each sort.
    """
    rows = description["dialogues"]
    shown = rows if everything else rows[:SHOWN]
    total = {"id": "total", "split": "", **{c: sum(row[c] for row in rows) for c in _COLUMNS}}
    width = max(8, *(len(row["id"]) for row in [*shown, total]))
    widths = {column: max(len(column), len(f"{total[column]:,}")) for column in _COLUMNS}
    head = "  ".join(f"{column:>{widths[column]}}" for column in _COLUMNS)
    lines = [f"{'dialogue':{width}}  {'split':10}  {head}"]
    for row in [*shown, None, total] if len(shown) < len(rows) else [*shown, total]:
        if row is None:
            lines.append(f"... {len(rows) - len(shown):,} more (--all lists all)")
            continue
        cells = "  ".join(f"{row[column]:>{widths[column]},}" for column in _COLUMNS)
        lines.append(f"{row['id']:{width}}  {row['split']:10}  {cells}")
    groups = (f"{name}: {count:,}" for name, count in description["groups"].items())
    splits = (
        f"{split}: {part['scored']:,} in {part['dialogues']:,} dialogues"
        for split, part in description["splits"].items()
    )
    lines += ["", f"format:  {description['title']}"]
    lines += ["", "questions by group:  " + "   ".join(groups)]
    lines += ["", "scored questions by split:  " + "   ".join(splits), ""]
    lines += [f"note: {note}" for note in description["notes"]]
    found = [Irregularity(**one) for one in description["irregularities"]]
    lines.append(f"{len(found):,} irregular records")
    return "\n".join([*lines, *_listed(found, everything)])


def _listed(found: Iterable[Irregularity], everything: bool) -> list[str]:
    """A line for each; of many of one sort, the first, and how many more there are."""
    sorts: dict[str, list[Irregularity]] = {}
    if everything:
        return [f"  {one}" for one in found]
    for one in found:
        sorts.setdefault(one.sort, []).append(one)
    lines = []
    for of_sort in sorts.values():
        lines += [f"  {one}" for one in of_sort[:SHOWN]]
        if (more := len(of_sort) - SHOWN) > 0:
            lines.append(f"  ... {more:,} more like the last (--all lists all)")
    return lines

"""a benchmark file -> dialogues with their questions, and a report of all that was irregular."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from memory_r1.errors import DataError
from memory_r1.types import Turn

Split = Literal["train", "validation", "test"]

CATEGORIES: Mapping[int, str] = {
    1: "multi-hop",
    2: "temporal",
    3: "open-domain",
    4: "single-hop",
    5: "adversarial",
}
"""LoCoMo's own names. Several papers swap them, so every table prints the number too."""

SINGLE_HOP = 4
ADVERSARIAL = 5
DECISIONS = "decisions"
"""Key of `Dialogue.meta`: operations known to be right (`memory_r1.practice`), each a dict with
"fact", "speaker", and the texts of the "memories" before it and, as "right", after it."""


@dataclass(frozen=True)
class Session:
    """One sitting of a dialogue."""

    number: int
    date: datetime | None
    """When it began (UTC)."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Question:
    """A question about a dialogue with its right answer."""

    id: str
    dialogue_id: str
    text: str
    answer: str
    """The gold answer; `memory_r1.types.NOT_MENTIONED` where the dialogue doesn't tell."""
    evidence: tuple[str, ...]
    """Ids of the turns that hold the answer, in dialogue order."""
    category: int
    """A key of `CATEGORIES`."""
    accepted: tuple[str, ...] = ()
    """Further right answers."""
    kind: str = ""
    """World files: what it asks for, e.g. "count" or "two_memory"."""
    phenomenon: str = ""
    """World files: the skill it tests, e.g. "overwrite"."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the record holds, e.g. `adversarial_answer`."""

    @property
    def golds(self) -> tuple[str, ...]:
        """The gold answer, then the further accepted ones."""
        return (self.answer, *self.accepted)


@dataclass(frozen=True)
class Observation:
    """A ready-made fact about a dialogue, with the turns it comes from."""

    speaker: str
    text: str
    sources: tuple[str, ...]
    session: int


@dataclass(frozen=True)
class Dialogue:
    """Some sessions between two speakers, and questions about them. One dialogue is one owner."""

    id: str
    speakers: tuple[str, ...]
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...] = ()
    observations: tuple[Observation, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """World files: the generator's own notes, under "world"."""
    own_split: Split | None = None
    """The part its file puts it in; None: by its id."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, oldest first."""
        return tuple(turn for session in self.sessions for turn in session.turns)

    @property
    def split(self) -> Split:
        """Which part of the benchmark it belongs to."""
        return self.own_split or split_of(self.id)


@dataclass(frozen=True)
class Irregularity:
    """One thing in a file that isn't as its format says, and what was made of it."""

    record: str
    """E.g. "conv-26 qa #37"."""
    seen: str
    mend: str

    def __str__(self) -> str:
        return f"{self.record}: {self.seen}; {self.mend}"


@dataclass
class Report:
    """Collects irregularities while a file is read."""

    irregularities: list[Irregularity] = field(default_factory=list)

    def add(self, record: str, seen: str, mend: str) -> None:
        """Note one irregularity."""
        self.irregularities.append(Irregularity(record, seen, mend))


def split_of(dialogue_id: str) -> Split:
    """LoCoMo by conversation, as the paper splits it; all other dialogues are test."""
    match dialogue_id:
        case "conv-26":
            return "train"
        case "conv-30":
            return "validation"
        case _:
            return "test"


def scored(dialogues: Iterable[Dialogue], adversarial: bool = False) -> list[Question]:
    """The questions that count.

    LoCoMo's category 5 is left out, as in the paper, unless `adversarial`; the world's
    unanswerable questions (they have a `kind`) always count.
    """
    return [
        question
        for dialogue in dialogues
        for question in dialogue.questions
        if adversarial or question.kind or question.category != ADVERSARIAL
    ]


def load(
    path: str | Path, format: str | None = None, report: Report | None = None
) -> list[Dialogue]:
    """Read a benchmark file.

    format: "locomo" (which the world's files are too) or "jsonl" (docs/data.md); None looks at
    the file.
    report: receives the irregularities met; None drops them.
    Raises DataError when the file is missing, is something else, or a record can't be mended.
    """
    from memory_r1.data import jsonl, locomo

    path, report = Path(path), Report() if report is None else report
    match format or ("jsonl" if jsonl.fits(path) else "locomo"):
        case "jsonl":
            return jsonl.load(path, report)
        case "locomo":
            return locomo.load(path, report)
    raise DataError(f"unknown data format {format!r}; known: 'locomo', 'jsonl'")


def describe(path: str | Path, format: str | None = None) -> dict[str, Any]:
    """What a file holds, ready for JSON: counts per dialogue, category and split, irregularities.

    Raises DataError as `load` does. `table` prints it.
    """
    report = Report()
    dialogues = load(path, format, report)
    return {
        "file": str(path),
        "dialogues": [
            {
                "id": dialogue.id,
                "split": dialogue.split,
                "speakers": list(dialogue.speakers),
                "sessions": len(dialogue.sessions),
                "turns": len(dialogue.turns),
                "questions": len(dialogue.questions),
                "scored": len(scored([dialogue])),
                "with_evidence": sum(bool(q.evidence) for q in scored([dialogue])),
                "observations": len(dialogue.observations),
            }
            for dialogue in dialogues
        ],
        "categories": _count(f"{q.category} {CATEGORIES[q.category]}" for q in _asked(dialogues)),
        "phenomena": _count(q.phenomenon for q in _asked(dialogues) if q.phenomenon),
        "splits": {
            split: {
                "dialogues": sum(d.split == split for d in dialogues),
                "scored": len(scored(d for d in dialogues if d.split == split)),
            }
            for split in get_args(Split)
        },
        "irregularities": [vars(irregularity) for irregularity in report.irregularities],
    }


def table(description: Mapping[str, Any]) -> str:
    """The text form of what `describe` returns."""
    columns = ("sessions", "turns", "questions", "scored", "with_evidence", "observations")
    dialogues = description["dialogues"]
    total = {"id": "total", "split": "", **{c: sum(d[c] for d in dialogues) for c in columns}}
    width = max(len(d["id"]) for d in [*dialogues, total])
    lines = [f"{'dialogue':{max(width, 8)}}  {'split':10}  " + "  ".join(columns)]
    for row in [*dialogues, total]:
        cells = "  ".join(f"{row[column]:>{len(column)},}" for column in columns)
        lines.append(f"{row['id']:{max(width, 8)}}  {row['split']:10}  {cells}")
    for name in ("categories", "phenomena"):
        if description[name]:
            counts = (f"{key}: {count:,}" for key, count in description[name].items())
            lines += ["", f"questions by {name}:  " + "   ".join(counts)]
    splits = (
        f"{split}: {part['scored']:,} in {part['dialogues']} dialogues"
        for split, part in description["splits"].items()
    )
    lines += ["", "scored questions by split:  " + "   ".join(splits), ""]
    irregularities = description["irregularities"]
    lines.append(f"{len(irregularities)} irregular records")
    lines += [f"  {one['record']}: {one['seen']}; {one['mend']}" for one in irregularities]
    return "\n".join(lines)


def _asked(dialogues: Iterable[Dialogue]) -> list[Question]:
    return [question for dialogue in dialogues for question in dialogue.questions]


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))

"""The vocabulary of benchmark files: dialogue, session, question, and what was irregular."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from memory_r1.data.categories import ADVERSARIAL
from memory_r1.types import Turn

Split = Literal["train", "validation", "test"]

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
    """LoCoMo's, a key of `CATEGORIES`; elsewhere 4, and 5 where the dialogue doesn't tell."""
    accepted: tuple[str, ...] = ()
    """Further right answers."""
    kind: str = ""
    """World files: what it asks for, e.g. "count" or "two_memory"."""
    phenomenon: str = ""
    """World files: the skill it tests, e.g. "overwrite"."""
    groups: tuple[str, ...] = ()
    """The rows of a table that it counts in, e.g. "2 temporal"."""
    asked: datetime | None = None
    """When it is asked (UTC), where the benchmark says so."""
    guidance: str = ""
    """What a judge must know to grade this kind of question, beyond the common instruction."""
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

    @property
    def sort(self) -> str:
        """What those of one sort have in common: all but numbers, lists and quoted words."""
        told = f"{self.seen}; {self.mend}"
        return re.sub(r"\[[^]]*\]|'[^']*'|\"[^\"]*\"|\d+", "_", told)

    def __str__(self) -> str:
        return f"{self.record}: {self.seen}; {self.mend}"


@dataclass
class Report:
    """Collects irregularities while a file is read."""

    irregularities: list[Irregularity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is regular and still to be known of the file as a whole, e.g. that it has no dates."""

    def add(self, record: str, seen: str, mend: str) -> None:
        """Note one irregularity."""
        self.irregularities.append(Irregularity(record, seen, mend))


def session_of(turn_id: str) -> int | None:
    """The number of the session of a turn such as "D3:11"; None for ids of another form."""
    match = re.fullmatch(r"D(\d+):\d+", turn_id)
    return int(match[1]) if match else None


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

"""A plan -> which dialogues are played and what is asked when, without holding the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memory_r1 import data
from memory_r1.bench.plan import Plan
from memory_r1.data import Dialogue, Question, scored
from memory_r1.errors import DataError


@dataclass(frozen=True)
class Round:
    """A part of a dialogue to be remembered, and what is asked after it."""

    begins: int
    ends: int
    """Turns from..to, as indices."""
    questions: tuple[Question, ...]
    sessions: int = 0
    """How many sessions the memory has then seen; 0: the whole dialogue."""


@dataclass(frozen=True)
class Survey:
    """What a run will play."""

    plan: Plan
    questions: Mapping[str, Sequence[Question]]
    """What is asked, by dialogue."""
    turns: int
    """How many turns will be remembered."""
    keys: Sequence[tuple[str, int]]
    """What will be asked: question ids, each with the sessions seen by then."""

    @property
    def asked(self) -> int:
        """How many times a question will be asked."""
        return len(self.keys)

    def dialogues(self) -> Iterator[Dialogue]:
        """The dialogues that are played, read as they are needed."""
        for dialogue in data.stream(self.plan.data, self.plan.benchmark):
            if dialogue.id in self.questions:
                yield dialogue


def survey(plan: Plan) -> Survey:
    """Look through the file once. DataError when nothing in it can be played."""
    questions: dict[str, list[Question]] = {}
    turns: dict[str, int] = {}
    keys: list[tuple[str, int]] = []
    for dialogue in data.stream(plan.data, plan.benchmark):
        if plan.split not in ("all", dialogue.split):
            continue
        if not dialogue.turns:
            raise DataError(f"{plan.data.name}: dialogue {dialogue.id!r} is empty: it has no turns")
        questions[dialogue.id] = scored([dialogue])
        turns[dialogue.id] = len(dialogue.turns)
        for part in rounds(dialogue, questions[dialogue.id], plan):
            keys += [(question.id, part.sessions) for question in part.questions]
    if not questions:
        raise DataError(
            f"{plan.data.name} has no dialogue in split {plan.split!r}; try --split all"
        )
    chosen = _chosen([q for of in questions.values() for q in of], plan)
    if not chosen:
        raise DataError(f"{plan.data.name} asks no question in split {plan.split!r}")
    kept = {name: [q for q in of if q.id in chosen] for name, of in questions.items()}
    kept = {name: of for name, of in kept.items() if of}
    return Survey(
        plan,
        kept,
        sum(turns[name] for name in kept),
        [key for key in keys if key[0] in chosen],
    )


def _chosen(questions: Sequence[Question], plan: Plan) -> set[str]:
    """Ids of the questions that are asked: the first ones, or a sample that a larger one holds."""
    ids = [question.id for question in questions]
    if plan.seed is not None:
        ids.sort(key=lambda one: hashlib.sha256(f"{plan.seed} {one}".encode()).digest())
    return set(ids[: plan.limit])


def rounds(dialogue: Dialogue, questions: Sequence[Question], plan: Plan) -> list[Round]:
    """When what is asked about a dialogue.

    Streaming, a question is asked from the first round on that has seen all its evidence, and
    again in every later one; one whose evidence isn't known only at the end. A question that the
    dialogue doesn't answer is always asked.
    """
    count = len(dialogue.turns)
    if plan.protocol == "build":
        return [Round(0, count, tuple(questions))]
    ends, seen = [], 0
    place: dict[str, int] = {}
    for number, session in enumerate(dialogue.sessions, start=1):
        seen += len(session.turns)
        ends.append(seen)
        place |= {turn.id: number for turn in session.turns}
    last = len(ends)
    stops = [*range(plan.every, last, plan.every), last]
    known = {q.id: _known_after(q, place, last) for q in questions}
    found, begins = [], 0
    for stop in stops:
        now = tuple(question for question in questions if known[question.id] <= stop)
        found.append(Round(begins, ends[stop - 1], now, stop))
        begins = ends[stop - 1]
    return found


def _known_after(question: Question, place: Mapping[str, int], last: int) -> int:
    """After how many sessions a question can be answered."""
    if question.evidence:
        return max(place.get(turn, last) for turn in question.evidence)
    return 0 if question.category == data.ADVERSARIAL else last

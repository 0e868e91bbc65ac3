"""Plain JSON lines that a person can write -> dialogues, and back; docs/data.md describes them.

A line is a turn, a question, an observation, or what there is to say about a dialogue as a whole.
What is missing has a default; what isn't known is refused by line, so that no slip goes unseen.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

from memory_r1.data.categories import (
    ADVERSARIAL,
    CATEGORIES,
    SINGLE_HOP,
    groups_of,
    guidance_of,
)
from memory_r1.data.dialogues import Dialogue, Observation, Question, Report, Session, Split
from memory_r1.data.jsonl_records import records, written
from memory_r1.data.reading import Format, lines, objects
from memory_r1.errors import DataError
from memory_r1.types import NOT_MENTIONED, Turn, as_utc

DOCUMENT: Final = "docs/data.md describes plain JSON lines"

_KEYS: Final = {
    "question": (
        *("dialogue", "question", "answer", "accepted", "evidence", "category", "id", "kind"),
        *("phenomenon", "groups", "asked", "guidance", "meta"),
    ),
    "fact": ("dialogue", "fact", "speaker", "sources", "session"),
    "text": ("dialogue", "speaker", "text", "said", "session", "id", "caption", "role"),
    "dialogue": ("dialogue", "speakers", "split", "sessions", "meta"),
}
"""What a line may hold, by the key that tells which kind it is; looked for in this order."""
_TYPES: Final[Mapping[type, str]] = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
}


@dataclass
class _Line:
    """One line of the file."""

    number: int
    record: dict[str, Any]
    file: str

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.number}"

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.where}: {problem}; {DOCUMENT}")

    @property
    def dialogue(self) -> str:
        """The dialogue that the line belongs to."""
        if not (name := self.need("dialogue", str)):
            raise self.error("'dialogue' is empty; it names the dialogue the line belongs to")
        return str(name)

    def get(self, key: str, expected: type, default: Any = None) -> Any:
        """A value of the type expected; the default where the key is missing."""
        value = self.record.get(key, default)
        fits = isinstance(value, expected) and not isinstance(value, bool)
        if not fits and not (value is None and key not in self.record):
            raise self.error(f"{key!r} should be {_TYPES[expected]}, found {json.dumps(value):.60}")
        return value

    def need(self, key: str, expected: type) -> Any:
        """A value that must be there."""
        if key not in self.record:
            raise self.error(f"{key!r} is missing")
        return self.get(key, expected)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; one text is a list of one; nothing is an empty one."""
        given = self.record.get(key, [])
        items = [given] if isinstance(given, str) else given
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.error(f"{key!r} should be a list of texts, found {json.dumps(given):.60}")
        return tuple(items)

    def moment(self, key: str, value: Any) -> datetime | None:
        """A moment (UTC where no zone is given); null: not known."""
        if value is None:
            return None
        try:
            return as_utc(datetime.fromisoformat(value))
        except (TypeError, ValueError, OverflowError):
            raise self.error(
                f"{key!r} should be a date such as 2023-05-08 or 2023-05-08T13:56, "
                f"found {json.dumps(value):.60}"
            ) from None


@dataclass
class _Draft:
    """What the lines of one dialogue have told so far."""

    head: _Line | None = None
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    """By session."""
    session: int = 1
    """Of the line before."""
    lines: dict[str, int] = field(default_factory=dict)
    """Turn id -> the line it is on."""
    questions: list[_Line] = field(default_factory=list)
    observations: list[_Line] = field(default_factory=list)


def stream(path: Path, report: Report) -> Iterator[Dialogue]:
    """The dialogues of a file, in the order in which it first names them.

    The file is read twice, so that a dialogue can go as soon as its last line is read: where the
    lines of two aren't mixed, one dialogue at a time is in memory.
    """
    last: dict[str, int] = {}
    for line in _lines(lines(path), path.name):
        last[line.dialogue] = line.number
    yield from _dialogues(_lines(lines(path), path.name), path.name, last, report)


def read(text: str, name: str, report: Report) -> list[Dialogue]:
    """Dialogues from the lines of a file, in the order in which the file first names them."""
    # Not splitlines(), which also splits where a text holds U+2028 and its like.
    found = list(_lines(text.split("\n"), name))
    last = {line.dialogue: line.number for line in found}
    return list(_dialogues(found, name, last, report))


def _dialogues(
    found: Iterable[_Line], name: str, last: Mapping[str, int], report: Report
) -> Iterator[Dialogue]:
    """Each dialogue once its `last` line, and those of all named before it, are read."""
    if not last:
        raise DataError(f"{name} holds no lines; {DOCUMENT}")
    drafts: dict[str, _Draft] = {}
    for line in found:
        _note(line, drafts.setdefault(line.dialogue, _Draft()), report)
        while drafts and last[first := next(iter(drafts))] <= line.number:
            yield _dialogue(first, drafts.pop(first), report)


def _lines(given: Iterable[str], name: str) -> Iterator[_Line]:
    for number, record in objects(given, name, DOCUMENT):
        yield _Line(number, record, name)


def _note(line: _Line, draft: _Draft, report: Report) -> None:
    """Sort a line into what is known of its dialogue."""
    kind = next(key for key in _KEYS if key in line.record)
    if kind == "dialogue" and "speaker" in line.record:
        raise line.error("'text' is missing: what was said")
    for key in line.record:
        if key not in _KEYS[kind]:
            near = difflib.get_close_matches(key, _KEYS[kind], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS[kind])}"
            raise line.error(f"unknown key {key!r} in a line with {kind!r}; {hint}")
    match kind:
        case "question":
            draft.questions.append(line)
        case "fact":
            draft.observations.append(line)
        case "text":
            _add_turn(line, draft, report)
        case _:
            if draft.head is not None:
                raise line.error(f"the dialogue is described on line {draft.head.number} already")
            draft.head = line


def _add_turn(line: _Line, draft: _Draft, report: Report) -> None:
    session = line.get("session", int, draft.session)
    if session < draft.session:
        report.add(line.where, f"session {session} after {draft.session}", "put in its place")
    turns = draft.turns.setdefault(session, [])
    before = turns[-1].said if turns else None
    turn_id = line.get("id", str, f"D{session}:{len(turns) + 1}")
    if (earlier := draft.lines.setdefault(turn_id, line.number)) != line.number:
        raise line.error(f"the turn {turn_id!r} is on line {earlier} already")
    draft.session = session
    turns.append(
        Turn(
            speaker=line.need("speaker", str),
            text=line.need("text", str),
            said=line.moment("said", line.record["said"]) if "said" in line.record else before,
            id=turn_id,
            caption=line.get("caption", str, ""),
            role=line.get("role", str, "user"),
        )
    )


def _dialogue(name: str, draft: _Draft, report: Report) -> Dialogue:
    head = draft.head or _Line(0, {}, "")
    split = head.get("split", str)
    if split is not None and split not in get_args(Split):
        raise head.error(f"'split' is {split!r}; expected {', '.join(get_args(Split))}")
    sessions = _sessions(head, draft)
    turns = [turn for session in sessions for turn in session.turns]
    speakers = tuple(dict.fromkeys(turn.speaker for turn in turns))
    order = {turn.id: i for i, turn in enumerate(turns)}
    if not turns:
        report.add(name, "no turns", "kept, with nothing to remember")
    elif undated := sum(turn.said is None for turn in turns):
        report.add(name, f"{undated} turns without a date", "kept without")
    if not draft.questions:
        report.add(name, "no questions", "kept without")
    questions, first = [], dict[str, int]()
    for i, line in enumerate(draft.questions):
        questions.append(_question(line, name, i, order, report))
        if (earlier := first.setdefault(questions[-1].text, line.number)) != line.number:
            report.add(line.where, f"asks the same as line {earlier}", "both kept")
    return Dialogue(
        id=name,
        speakers=head.texts("speakers") if "speakers" in head.record else speakers,
        sessions=sessions,
        questions=tuple(questions),
        observations=tuple(_observation(line, order, report) for line in draft.observations),
        meta=head.get("meta", dict, {}),
        own_split=split,
    )


def _sessions(head: _Line, draft: _Draft) -> tuple[Session, ...]:
    """The sessions by number; each began when its first turn was said, unless the head says."""
    stated: dict[int, datetime | None] = {}
    for number, date in head.get("sessions", dict, {}).items():
        if not number.removeprefix("-").isdecimal():
            raise head.error(f"'sessions' should have numbers as keys, found {number!r}")
        stated[int(number)] = head.moment("sessions", date)
    sessions = []
    for number in sorted(draft.turns.keys() | stated):
        turns = tuple(draft.turns.get(number, ()))
        date = stated[number] if number in stated else turns[0].said
        sessions.append(Session(number, date, turns))
    return tuple(sessions)


def _question(
    line: _Line, dialogue: str, number: int, order: Mapping[str, int], report: Report
) -> Question:
    answer, category = line.record.get("answer"), _category(line)
    kind = line.get("kind", str, "")
    if category is None:
        # What isn't known counts in every score, which LoCoMo's category 5 alone does not.
        unknown = "answer" in line.record and answer is None
        category = ADVERSARIAL if unknown else SINGLE_HOP
        kind = kind or ("unanswerable" if unknown else "")
    if answer is None:
        if category != ADVERSARIAL:
            raise line.error("'answer' is missing; write null when the dialogue doesn't tell")
        answer = NOT_MENTIONED
    elif not isinstance(answer, str):
        if not isinstance(answer, int | float) or isinstance(answer, bool):
            raise line.error(f"'answer' should be a text, found {json.dumps(answer):.60}")
        report.add(line.where, f"the answer {answer!r} is not a text", f"read as {str(answer)!r}")
        answer = str(answer)
    evidence = _turns_named(line, "evidence", order, report)
    if not evidence and category != ADVERSARIAL:
        report.add(line.where, "no evidence", "not scored for retrieval")
    phenomenon = line.get("phenomenon", str, "")
    groups = groups_of(category, kind, phenomenon)
    return Question(
        id=line.get("id", str, f"{dialogue}#{number}"),
        dialogue_id=dialogue,
        text=line.need("question", str),
        answer=answer,
        evidence=evidence,
        category=category,
        accepted=line.texts("accepted"),
        kind=kind,
        phenomenon=phenomenon,
        groups=line.texts("groups") if "groups" in line.record else groups,
        asked=line.moment("asked", line.record.get("asked")),
        guidance=line.get("guidance", str, guidance_of(category)),
        meta=line.get("meta", dict, {}),
    )


def _category(line: _Line) -> int | None:
    """Its number; None where the line doesn't say."""
    given = line.record.get("category")
    numbers = {name: number for number, name in CATEGORIES.items()}
    number = numbers.get(given) if isinstance(given, str) else given
    if "category" in line.record and (type(number) is not int or number not in CATEGORIES):
        known = ", ".join(f"{number} {name}" for number, name in CATEGORIES.items())
        raise line.error(f"'category' is {json.dumps(given):.60}; expected one of {known}")
    return number


def _observation(line: _Line, order: Mapping[str, int], report: Report) -> Observation:
    return Observation(
        speaker=line.need("speaker", str),
        text=line.need("fact", str),
        sources=_turns_named(line, "sources", order, report),
        session=line.get("session", int, 1),
    )


def _turns_named(
    line: _Line, key: str, order: Mapping[str, int], report: Report
) -> tuple[str, ...]:
    """The turns a line names that exist, each once, in the order of the dialogue."""
    given = line.texts(key)
    for turn in dict.fromkeys(given):
        if turn not in order:
            report.add(line.where, f"{key} {turn!r} is no turn of the dialogue", "dropped")
        elif given.count(turn) > 1:
            report.add(line.where, f"{key} {turn!r} is named twice", "counted once")
    return tuple(sorted(order.keys() & set(given), key=order.__getitem__))


def dump(dialogues: Iterable[Dialogue]) -> str:
    """The lines of a file that reads back as equal dialogues; raises as `texts` does."""
    return "".join(texts(dialogues))


def texts(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    """The lines of each dialogue, for files that don't fit into memory.

    Raises DataError for what a file of this format can't hold: a dialogue or a turn id given
    twice, sessions out of order, evidence that isn't in the order of the dialogue.
    """
    seen = set[str]()
    for dialogue in dialogues:
        try:
            text = "".join(f"{written(record)}\n" for record in records(dialogue))
        except (TypeError, ValueError) as error:
            raise DataError(f"the dialogues can't be written as JSON: {error}") from error
        if dialogue.id in seen or read(text, "what was written", Report()) != [dialogue]:
            raise DataError(
                f"the dialogue {dialogue.id!r} can't be written without loss: expected each "
                "dialogue once, sessions in ascending order, every turn id once in its dialogue, "
                "evidence in the dialogue's order, JSON in meta"
            )
        seen.add(dialogue.id)
        yield text


FORMAT: Final = Format(
    name="jsonl",
    title="plain JSON lines",
    a_file="a file of plain JSON lines",
    source=DOCUMENT,
    fits=lambda record: not record.keys().isdisjoint(("dialogue", "text", "fact")),
    stream=stream,
)

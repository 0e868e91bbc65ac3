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

from memory_r1.data import (
    ADVERSARIAL,
    CATEGORIES,
    SINGLE_HOP,
    Dialogue,
    Observation,
    Question,
    Report,
    Session,
    Split,
)
from memory_r1.errors import DataError
from memory_r1.types import NOT_MENTIONED, Turn, as_utc

DOCUMENT: Final = "the format is described in docs/data.md"

_KEYS: Final = {
    "question": (
        *("dialogue", "question", "answer", "accepted", "evidence", "category", "id", "kind"),
        *("phenomenon", "meta"),
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


def fits(path: Path) -> bool:
    """Whether a file looks like this format: by its first line, or its name if that is broken."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = next((line for line in file if line.strip()), "")
    except OSError:
        return False
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return path.suffix in (".jsonl", ".ndjson")
    return isinstance(record, dict) and not record.keys().isdisjoint(("dialogue", "text", "fact"))


def load(path: Path, report: Report) -> list[Dialogue]:
    """Read a file; DataError when it can't be read, or for a line that isn't as it should be."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    return read(text, path.name, report)


def read(text: str, name: str, report: Report) -> list[Dialogue]:
    """Dialogues from the lines of a file, in the order in which the file first names them."""
    drafts: dict[str, _Draft] = {}
    for line in _lines(text, name):
        dialogue = line.need("dialogue", str)
        if not dialogue:
            raise line.error("'dialogue' is empty; it names the dialogue the line belongs to")
        _note(line, drafts.setdefault(dialogue, _Draft()), report)
    if not drafts:
        raise DataError(f"{name} holds no lines; {DOCUMENT}")
    return [_dialogue(dialogue, draft, report) for dialogue, draft in drafts.items()]


def _lines(text: str, name: str) -> Iterator[_Line]:
    # Not splitlines(), which also splits where a text holds U+2028 and its like.
    for number, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            record = json.loads(written, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: not JSON ({error}); {DOCUMENT}") from None
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}: expected an object in braces; {DOCUMENT}")
        yield _Line(number, record, name)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


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
    return Question(
        id=line.get("id", str, f"{dialogue}#{number}"),
        dialogue_id=dialogue,
        text=line.need("question", str),
        answer=answer,
        evidence=evidence,
        category=category,
        accepted=line.texts("accepted"),
        kind=kind,
        phenomenon=line.get("phenomenon", str, ""),
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
    """The lines of a file that reads back as equal dialogues.

    Raises DataError for what a file of this format can't hold: sessions out of order, a turn id
    given twice, evidence that isn't in the order of the dialogue.
    """
    kept = list(dialogues)
    records = [record for dialogue in kept for record in _records(dialogue)]
    try:
        text = "".join(f"{_json(record)}\n" for record in records)
    except (TypeError, ValueError) as error:
        raise DataError(f"the dialogues can't be written as JSON: {error}") from error
    if kept and read(text, "what was written", Report()) != kept:
        raise DataError(
            "the dialogues can't be written without loss: expected sessions in ascending order, "
            "every turn id once in its dialogue, evidence in the dialogue's order, JSON in meta"
        )
    return text


def _json(record: Mapping[str, Any]) -> str:
    """One line; half a surrogate pair, which UTF-8 can't hold, is escaped."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text


def _records(dialogue: Dialogue) -> Iterator[dict[str, Any]]:
    """The lines of one dialogue: its head where there is something to say, then the rest."""
    of = {"dialogue": dialogue.id}
    head = _head(dialogue)
    if head or not dialogue.turns:
        yield of | head
    for session in dialogue.sessions:
        for turn in session.turns:
            told = {
                "speaker": turn.speaker,
                "text": turn.text,
                "said": _written(turn.said),
                "session": session.number,
                "id": turn.id,
            }
            role = {"role": turn.role} if turn.role != "user" else {}
            yield of | _filled(told | role, caption=turn.caption)
    for observed in dialogue.observations:
        yield of | {
            "fact": observed.text,
            "speaker": observed.speaker,
            "sources": list(observed.sources),
            "session": observed.session,
        }
    for question in dialogue.questions:
        yield of | _filled(
            {
                "question": question.text,
                "answer": question.answer,
                "evidence": list(question.evidence),
                "category": question.category,
                "id": question.id,
            },
            accepted=list(question.accepted),
            kind=question.kind,
            phenomenon=question.phenomenon,
            meta=dict(question.meta),
        )


def _head(dialogue: Dialogue) -> dict[str, Any]:
    """What the turns of a dialogue don't tell."""
    speakers = tuple(dict.fromkeys(turn.speaker for turn in dialogue.turns))
    dates = {
        str(session.number): _written(session.date)
        for session in dialogue.sessions
        if not session.turns or session.turns[0].said != session.date
    }
    return _filled(
        {"speakers": list(dialogue.speakers)} if dialogue.speakers != speakers else {},
        split=dialogue.own_split,
        sessions=dates,
        meta=dict(dialogue.meta),
    )


def _filled(record: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """The record with those of the optional values that hold something."""
    return record | {key: value for key, value in optional.items() if value}


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else as_utc(moment).isoformat().replace("+00:00", "Z")

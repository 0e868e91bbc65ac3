"""LongMemEval's JSON (oracle, S and M, cleaned or not) -> one dialogue per question, streamed.

A record is a question and the sessions, perhaps hundreds, in which its answer has to be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from memory_r1.data.categories import ADVERSARIAL, SINGLE_HOP
from memory_r1.data.dialogues import Dialogue, Question, Report, Session
from memory_r1.data.reading import Format, fresh, items, named, needed
from memory_r1.errors import DataError
from memory_r1.types import NOT_MENTIONED, Turn

SOURCE: Final = (
    "LongMemEval is longmemeval_oracle.json, longmemeval_s_cleaned.json and "
    "longmemeval_m_cleaned.json at huggingface.co/datasets/xiaowu0162/longmemeval-cleaned (MIT)"
)
ABSTENTION: Final = "abstention"
"""The row of questions that can't be answered, beside that of their type."""

_WHOLE: Final = (
    "An answer that says the same in other words is right, and so is one that holds all that the "
    "gold answer asks for and more; one that holds only a part of it is wrong."
)
_GUIDANCE: Final[Mapping[str, str]] = {
    "single-session-user": _WHOLE,
    "single-session-assistant": _WHOLE,
    "multi-session": _WHOLE,
    "temporal-reasoning": f"{_WHOLE} A number of days, weeks or months that is off by one is right "
    "too, since it depends on whether the first day counts.",
    "knowledge-update": "The gold answer is the latest value. An answer that also tells an earlier "
    "one is right as long as it gives the latest as what holds now.",
    "single-session-preference": "The gold answer is no text to match: it describes what a good "
    "personal answer takes into account. The answer is right when it recalls what this user told "
    "and makes use of it; it need not cover every point.",
}
"""What a judge must know, by question type."""
_ABSTAIN: Final = (
    "The conversation does not tell this, and the gold answer says why. The answer is right "
    "exactly when it says that it can't be known; it may add what else is known."
)
_DATE: Final = re.compile(r"(\d{4})/(\d{1,2})/(\d{1,2})(?:\s*\(\w+\))?\s+(\d{1,2}):(\d{2})")


def stream(path: Path, report: Report) -> Iterator[Dialogue]:
    """The dialogues of a file of any size; DataError for a record that can't be mended."""
    taken = set[str]()
    for i, record in enumerate(items(path, "reading LongMemEval", SOURCE)):
        yield _dialogue(record, f"{path.name}, record {i}", taken, report)
    if not taken:
        raise DataError(f"{path} holds no record; {SOURCE}")


def parse_date(text: object) -> datetime | None:
    """The moment (UTC) in a date such as "2023/05/20 (Sat) 02:21"; None when it isn't one."""
    if not isinstance(text, str) or not (match := _DATE.fullmatch(text.strip())):
        return None
    year, month, day, hour, minute = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True)
class _Sitting:
    """A session as the file holds it."""

    id: str
    date: datetime | None
    turns: list[Any]


@dataclass(frozen=True)
class _Haystack:
    """The sessions in order of time, and which of their turns are marked to hold the answer."""

    ids: tuple[str, ...]
    """Of all sessions, also those without turns: the first is that of session 1."""
    sessions: tuple[Session, ...]
    marked: tuple[str, ...]


def _dialogue(record: Any, where: str, taken: set[str], report: Report) -> Dialogue:
    given = named(record, "question_id", where)
    where = f"{where} ({given})"
    name = fresh(given, taken, where, report)
    haystack = _haystack(record, name, where, report)
    if not haystack.sessions:
        report.add(name, "no turns", "kept, with nothing to remember")
    return Dialogue(
        id=name,
        speakers=("user", "assistant"),
        sessions=haystack.sessions,
        questions=(_question(record, name, haystack, where, report),),
        meta={"session_ids": {str(n): one for n, one in enumerate(haystack.ids, 1) if one}},
    )


def _question(
    record: Mapping[str, Any], name: str, haystack: _Haystack, where: str, report: Report
) -> Question:
    abstain = "_abs" in record["question_id"]
    stated = record.get("question_type")
    kind = stated if isinstance(stated, str) and stated else "unknown"
    if kind not in _GUIDANCE:
        report.add(name, f"the question type {_shown(stated)} is not known", f"kept as {kind!r}")
    if (asked := parse_date(record.get("question_date"))) is None:
        report.add(name, f"no question date, found {_shown(record.get('question_date'))}", "none")
    if not haystack.marked and not abstain:
        report.add(name, "no turn is marked as evidence", "not scored for retrieval")
    return Question(
        id=name,
        dialogue_id=name,
        text=needed(record, "question", str, where),
        answer=_answer(record.get("answer"), abstain, name, where, report),
        evidence=haystack.marked,
        category=ADVERSARIAL if abstain else SINGLE_HOP,
        accepted=(NOT_MENTIONED,) if abstain else (),
        kind=kind,
        groups=(kind, ABSTENTION) if abstain else (kind,),
        asked=asked,
        guidance=_ABSTAIN if abstain else _GUIDANCE.get(kind, _WHOLE),
        meta={
            "question_type": kind,
            "evidence_sessions": _evidence_sessions(record, name, haystack.ids, report),
        },
    )


def _answer(given: object, abstain: bool, name: str, where: str, report: Report) -> str:
    match given:
        case str():
            return given
        case None if abstain:
            report.add(name, "no answer", f"read as {NOT_MENTIONED!r}")
            return NOT_MENTIONED
        case int() | float() | Decimal() if not isinstance(given, bool):
            report.add(name, f"the answer {given} is not a text", f"read as '{given}'")
            return str(given)
    raise DataError(f"{where}: 'answer' should be a text, found {_shown(given)}")


def _evidence_sessions(
    record: Mapping[str, Any], name: str, ids: Sequence[str], report: Report
) -> list[int]:
    """The numbers of the sessions that hold the answer, by the ids the record names."""
    named = record.get("answer_session_ids")
    if not isinstance(named, list):
        report.add(name, f"no list of answer sessions, found {_shown(named)}", "none known")
        return []
    for one in named:
        if one not in ids:
            report.add(name, f"the answer session {_shown(one)} is no session", "dropped")
    return [number for number, one in enumerate(ids, start=1) if one and one in named]


def _haystack(record: Mapping[str, Any], name: str, where: str, report: Report) -> _Haystack:
    sittings = _in_order(_sittings(record, name, where, report), name, report)
    sessions, marked = [], list[str]()
    for number, sitting in enumerate(sittings, start=1):
        turns = []
        for i, given in enumerate(sitting.turns, start=1):
            turn = _turn(given, f"D{number}:{i}", sitting.date, name, report)
            if turn is not None:
                turns.append(turn)
                if given.get("has_answer") is True:
                    marked.append(turn.id)
        if turns:
            sessions.append(Session(number, sitting.date, tuple(turns)))
        else:
            report.add(f"{name} session {number}", "no turns", "left out")
    return _Haystack(tuple(s.id for s in sittings), tuple(sessions), tuple(marked))


def _sittings(
    record: Mapping[str, Any], name: str, where: str, report: Report
) -> Iterator[_Sitting]:
    """The three lists of a record, zipped; the list of sessions says how many there are."""
    sessions = needed(record, "haystack_sessions", list, where)
    lists = {}
    for key in ("haystack_dates", "haystack_session_ids"):
        given = record.get(key)
        lists[key] = given if isinstance(given, list) else []
        if not isinstance(given, list):
            report.add(name, f"{key} is no list but {_shown(given)}", "read as empty")
        elif len(given) != len(sessions):
            report.add(
                name,
                f"{len(given)} {key} for {len(sessions)} sessions",
                "paired from the first on",
            )
    seen = set[str]()
    for i, turns in enumerate(sessions):
        dates, ids = (given[i : i + 1] for given in lists.values())
        one = ids[0] if ids and isinstance(ids[0], str) else ""
        if one and one in seen:
            report.add(name, f"the session id {one!r} occurs again", "both kept")
        seen.add(one)
        date = parse_date(dates[0]) if dates else None
        if dates and date is None:
            report.add(name, f"no date of a session, found {_shown(dates[0])}", "undated")
        if not isinstance(turns, list):
            report.add(name, f"a session is no list but {_shown(turns)}", "left out")
            turns = []
        yield _Sitting(one, date, turns)


def _in_order(sittings: Iterator[_Sitting], name: str, report: Report) -> list[_Sitting]:
    """By time, those of one time as in the file; an undated one stays behind the one before it."""
    dated, before = [], datetime.min.replace(tzinfo=UTC)
    for sitting in sittings:
        before = sitting.date or before
        dated.append((before, sitting))
    ordered = sorted(dated, key=lambda one: one[0])
    if [moment for moment, _ in ordered] != [moment for moment, _ in dated]:
        report.add(name, "sessions that are not in order of time", "sorted")
    return [sitting for _, sitting in ordered]


def _turn(
    given: Any, turn_id: str, said: datetime | None, name: str, report: Report
) -> Turn | None:
    """A turn; None where nothing was said."""
    where = f"{name} turn {turn_id}"
    if not isinstance(given, dict):
        report.add(where, f"a turn should be an object, found {_shown(given)}", "left out")
        return None
    text, role = given.get("content"), given.get("role")
    if not isinstance(text, str):
        report.add(where, f"the content should be a text, found {_shown(text)}", "left out")
        return None
    if not text.strip():
        marked = " and marked as evidence" if given.get("has_answer") is True else ""
        report.add(where, f"blank{marked}", "left out")
        return None
    if not isinstance(role, str) or not role:
        report.add(where, f"no role, found {_shown(role)}", "read as 'user'")
        role = "user"
    elif role not in ("user", "assistant"):
        report.add(where, f"the role {role!r} is not known", "kept, but not remembered")
    return Turn(speaker=role, text=text, said=said, id=turn_id, role=role)


def _shown(value: object) -> str:
    """A value as a message shows it, however large it is."""
    match value:
        case dict() | list():
            return f"{type(value).__name__} of {len(value)}"
        case _:
            return f"{value!r:.60}"


FORMAT: Final = Format(
    name="longmemeval",
    title="LongMemEval",
    a_file="a LongMemEval file",
    source=SOURCE,
    fits=lambda record: "haystack_sessions" in record or "haystack_dates" in record,
    stream=stream,
    files=("longmemeval_oracle.json", "longmemeval_s_cleaned.json", "longmemeval_s.json"),
)

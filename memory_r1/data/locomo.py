"""LoCoMo's JSON (and the world's, which is the same and more) -> dialogues.

Every irregular record is mended, and said to be; what can't be mended is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from memory_r1.data import (
    ADVERSARIAL,
    CATEGORIES,
    Dialogue,
    Observation,
    Question,
    Report,
    Session,
)
from memory_r1.errors import DataError
from memory_r1.types import NOT_MENTIONED, Turn

SOURCE: Final = (
    "LoCoMo is locomo10.json in github.com/snap-research/locomo, folder data (CC BY-NC 4.0)"
)

_MONTHS: Final = (
    "january february march april may june july august september october november december"
).split()
_DATE: Final = re.compile(
    r"(\d{1,2}):(\d{2})\s*([ap])\.?m\.?\s+on\s+(\d{1,2})\s+([a-z]+),?\s+(\d{4})", re.IGNORECASE
)
_EVIDENCE: Final = re.compile(r"D\s*:?\s*(\d+)\s*:\s*(\d+)")
_EXACT_ID: Final = re.compile(r"D([1-9]\d*):([1-9]\d*)")


def load(path: Path, report: Report) -> list[Dialogue]:
    """Read a file; DataError when it is missing, something else, or holds a broken record."""
    data = _read(path)
    if not isinstance(data, list):
        data = [data]
    if not data:
        raise DataError(f"{path} holds an empty list; {SOURCE}")
    return read(data, path.name, report)


def read(records: Sequence[Any], name: str, report: Report) -> list[Dialogue]:
    """Dialogues from records as the file holds them; `name` is what errors call their source."""
    dialogues: dict[str, Dialogue] = {}
    for i, record in enumerate(records):
        dialogue = _dialogue(record, f"{name}, dialogue {i}", report)
        if dialogue.id in dialogues:
            raise DataError(f"{name}, dialogue {i}: sample_id {dialogue.id!r} occurs twice")
        dialogues[dialogue.id] = dialogue
    return list(dialogues.values())


def parse_date(text: str) -> datetime | None:
    """The moment (UTC) in a date such as "1:56 pm on 8 May, 2023"; None when it isn't one.

    English month names whatever the locale, which `strptime` would not promise.
    """
    if not (match := _DATE.fullmatch(text.strip())):
        return None
    hour, minute, half, day, month, year = match.groups()
    try:
        return datetime(
            int(year),
            _MONTHS.index(month.lower()) + 1,
            int(day),
            int(hour) % 12 + (12 if half.lower() == "p" else 0),
            int(minute),
            tzinfo=UTC,
        )
    except ValueError:
        return None


def _read(path: Path) -> Any:
    """The JSON of a file that looks like LoCoMo's; DataError says what it is instead."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no file {path}; {SOURCE}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text, so not the JSON expected; {SOURCE}") from None
    if text.startswith("version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself; run:  git lfs pull")
    if text.lstrip().startswith("<"):
        raise DataError(f"{path} is a web page; download the raw file instead; {SOURCE}")
    if not text.strip():
        raise DataError(f"{path} is empty; {SOURCE}")
    try:
        data = json.loads(text)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply to be a dialogue file") from None
    except json.JSONDecodeError as error:
        if kind := _foreign(text.splitlines()[0]):
            raise DataError(f"{path} is {kind}, not LoCoMo; {SOURCE}") from None
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise DataError(
                f"{path} breaks off after {len(text):,} characters: the download was cut short; "
                "fetch it again"
            ) from None
        raise DataError(f"{path} is not JSON: {error}") from None
    first = data[0] if isinstance(data, list) and data else data
    if kind := _foreign(first):
        raise DataError(f"{path} is {kind}, not LoCoMo; {SOURCE}")
    return data


def _foreign(record: object) -> str:
    """Which other benchmark a record (or a line of JSON) belongs to; empty if to none."""
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            return ""
    if isinstance(record, dict):
        if "haystack_sessions" in record or "haystack_dates" in record:
            return "a LongMemEval file"
        if "previous_dialogs" in record or "self_instruct" in record:
            return "an MSC (MSC-Self-Instruct) file"
    return ""


def _dialogue(record: Any, where: str, report: Report) -> Dialogue:
    sample_id = _field(record, "sample_id", str, where)
    conversation = _field(record, "conversation", dict, f"{where} ({sample_id})")
    sessions = _sessions(conversation, sample_id, report)
    turn_ids = {turn.id for session in sessions for turn in session.turns}
    if not turn_ids:
        report.add(sample_id, "no turns", "kept, with nothing to remember")
    speakers = tuple(str(conversation[k]) for k in ("speaker_a", "speaker_b") if k in conversation)
    if not speakers:
        speakers = tuple(dict.fromkeys(t.speaker for s in sessions for t in s.turns))
        report.add(sample_id, "no speaker_a and speaker_b", "taken from the turns")
    questions = _field(record, "qa", list, sample_id) if "qa" in record else []
    observed = _field(record, "observation", dict, sample_id) if "observation" in record else {}
    if not questions:
        report.add(sample_id, "no questions", "kept without")
    return Dialogue(
        id=sample_id,
        speakers=speakers,
        sessions=sessions,
        questions=_questions(questions, sample_id, turn_ids, report),
        observations=_observations(observed, sample_id, turn_ids, report),
        meta={"world": record["world"]} if "world" in record else {},
    )


def _sessions(
    conversation: Mapping[str, Any], sample_id: str, report: Report
) -> tuple[Session, ...]:
    numbers = sorted(int(k[8:]) for k in conversation if re.fullmatch(r"session_\d+", k))
    dated = (re.fullmatch(r"session_(\d+)_date_time", key) for key in conversation)
    idle = sorted({int(match[1]) for match in dated if match} - set(numbers))
    if idle:
        report.add(
            sample_id,
            f"{len(idle)} dates without a session ({idle[0]}-{idle[-1]})",
            "ignored",
        )
    sessions, seen = [], set[str]()
    for number in numbers:
        where = f"{sample_id} session {number}"
        turns = _field(conversation, f"session_{number}", list, sample_id)
        if not turns:
            report.add(where, "no turns", "left out")
            continue
        stamp = conversation.get(f"session_{number}_date_time")
        date = parse_date(stamp) if isinstance(stamp, str) else None
        if date is None:
            report.add(where, f"no date of the form '1:56 pm on 8 May, 2023': {stamp!r}", "undated")
        sessions.append(
            Session(
                number,
                date,
                tuple(
                    _turn(turn, number, i, date, seen, where, report)
                    for i, turn in enumerate(turns, start=1)
                ),
            )
        )
    captioned = [t for n in numbers for t in conversation[f"session_{n}"] if t.get("blip_caption")]
    if bare := sum("img_url" not in turn for turn in captioned):
        report.add(sample_id, f"{bare} turns with a caption and no img_url", "captions kept")
    return tuple(sessions)


def _turn(
    record: Any,
    session: int,
    number: int,
    date: datetime | None,
    seen: set[str],
    where: str,
    report: Report,
) -> Turn:
    where = f"{where}, turn {number}"
    turn_id = _field(record, "dia_id", str, where)
    if not _EXACT_ID.fullmatch(turn_id) or turn_id in seen:
        mended = f"D{session}:{number}"
        report.add(where, f"dia_id {turn_id!r} is malformed or repeated", f"read as {mended!r}")
        turn_id = mended
    seen.add(turn_id)
    return Turn(
        speaker=_field(record, "speaker", str, where),
        text=_field(record, "text", str, where),
        said=date,
        id=turn_id,
        caption=str(record.get("blip_caption") or ""),
    )


def _questions(
    records: list[Any], sample_id: str, turn_ids: set[str], report: Report
) -> tuple[Question, ...]:
    questions, first_asked = [], dict[str, int]()
    for i, record in enumerate(records):
        where = f"{sample_id} qa #{i}"
        text = _field(record, "question", str, where)
        category = _field(record, "category", int, where)
        if category not in CATEGORIES:
            raise DataError(f"{where}: category is {category}; expected 1 to 5")
        if (earlier := first_asked.setdefault(text, i)) != i:
            report.add(where, f"asks the same as #{earlier}", "both kept")
        evidence = record.get("evidence") or []
        if not evidence and category != ADVERSARIAL:
            report.add(where, "no evidence", "not scored for retrieval")
        answer, accepted = _answers(record, category, where, report)
        questions.append(
            Question(
                id=str(record.get("id") or f"{sample_id}#{i}"),
                dialogue_id=sample_id,
                text=text,
                answer=answer,
                evidence=_evidence(evidence, turn_ids, where, report),
                category=category,
                accepted=accepted,
                kind=str(record.get("kind") or ""),
                phenomenon=str(record.get("phenomenon") or ""),
                meta={k: record[k] for k in ("adversarial_answer",) if k in record},
            )
        )
    return tuple(questions)


def _answers(
    record: Mapping[str, Any], category: int, where: str, report: Report
) -> tuple[str, tuple[str, ...]]:
    """The gold answer and the further accepted ones."""
    answer = record.get("answer")
    accepted: tuple[str, ...] = ()
    if "accepted" in record:
        accepted = tuple(map(str, _field(record, "accepted", list, where)))
    if category == ADVERSARIAL:
        if answer is None or str(answer) == NOT_MENTIONED:
            return NOT_MENTIONED, accepted
        if "adversarial_answer" in record:
            report.add(where, f"an answer ({answer!r}) beside the adversarial one", "accepted too")
        return NOT_MENTIONED, (str(answer), *accepted)
    if answer is None:
        raise DataError(f"{where}: 'answer' is missing")
    if not isinstance(answer, str):
        report.add(where, f"the answer {answer!r} is not a text", f"read as {str(answer)!r}")
    return str(answer), accepted


def _evidence(given: object, turn_ids: set[str], where: str, report: Report) -> tuple[str, ...]:
    """The existing turns that are named, each once, in the order of the dialogue."""
    if not isinstance(given, list):
        report.add(where, f"the evidence {given!r} is not a list", "read as a list of one")
        given = [given]
    found: list[tuple[int, int]] = []
    for item in map(str, given):
        ids = [(int(session), int(turn)) for session, turn in _EVIDENCE.findall(item)]
        names = [f"D{session}:{turn}" for session, turn in ids]
        if not ids:
            report.add(where, f"evidence {item!r} names no turn", "dropped")
        elif len(ids) > 1:
            report.add(where, f"{len(ids)} ids in one string {item!r}", f"read as {names}")
        elif names[0] != item:
            report.add(where, f"evidence {item!r} is misspelt", f"read as {names[0]!r}")
        for place, name in zip(ids, names, strict=True):
            if name not in turn_ids:
                report.add(where, f"evidence {name!r} is no turn of the dialogue", "dropped")
            elif place in found:
                report.add(where, f"evidence {name!r} is named twice", "counted once")
            else:
                found.append(place)
    return tuple(f"D{session}:{turn}" for session, turn in sorted(found))


def _observations(
    records: Mapping[str, Any], sample_id: str, turn_ids: set[str], report: Report
) -> tuple[Observation, ...]:
    observations = []
    for session, speaker, i, item in _observed(records, sample_id):
        where = f"{sample_id} observation, session {session}, {speaker} #{i}"
        match item:
            case [str(text), sources]:
                if isinstance(sources, list):
                    report.add(where, f"a list of ids {sources}", "all kept")
                else:
                    sources = [sources]
                kept = _evidence(sources, turn_ids, where, report)
                observations.append(Observation(speaker, text, kept, session))
            case _:
                report.add(where, f"expected [fact, dia_id], found {item!r:.80}", "left out")
    return tuple(observations)


def _observed(records: Mapping[str, Any], where: str) -> Iterable[tuple[int, str, int, Any]]:
    """(session, speaker, number, item) of every observation, oldest first."""
    sessions = ((re.fullmatch(r"session_(\d+)_observation", key), key) for key in records)
    for session, key in sorted((int(match[1]), key) for match, key in sessions if match):
        said = _field(records, key, dict, where)
        for speaker in said:
            for i, item in enumerate(_field(said, speaker, list, f"{where} {key}")):
                yield session, speaker, i, item


def _field(record: Any, name: str, expected: type, where: str) -> Any:
    """A field of a record; DataError says which record lacks it."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    if name not in record:
        raise DataError(f"{where}: {name!r} is missing")
    if not isinstance(record[name], expected):
        raise DataError(
            f"{where}: {name!r} should be {_JSON_NAMES[expected]}, "
            f"found {type(record[name]).__name__}"
        )
    return record[name]


_JSON_NAMES: Final = {str: "a string", int: "a number", list: "a list", dict: "an object"}

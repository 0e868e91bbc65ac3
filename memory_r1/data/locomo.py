"""LoCoMo's JSON (and the world's, which is the same and more) -> dialogues.

Every irregular record is mended, and said to be; what can't be mended is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from memory_r1.data.categories import ADVERSARIAL, CATEGORIES, groups_of, guidance_of
from memory_r1.data.dialogues import Dialogue, Observation, Question, Report, Session
from memory_r1.data.reading import Format, named, needed, whole
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


def stream(path: Path, report: Report) -> Iterator[Dialogue]:
    """The dialogues of a file; DataError for a broken record.

    The file is read at once: a record of LoCoMo holds the longest dialogue there is, and ten of
    them are 3 MB.
    """
    records = whole(path, SOURCE)
    if not isinstance(records, list):
        records = [records]
    if not records:
        raise DataError(f"{path} holds an empty list; {SOURCE}")
    yield from _dialogues(records, path.name, report)


def read(records: Iterable[Any], name: str, report: Report) -> list[Dialogue]:
    """Dialogues from records as the file holds them; `name` is what errors call their source."""
    return list(_dialogues(records, name, report))


def _dialogues(records: Iterable[Any], name: str, report: Report) -> Iterator[Dialogue]:
    seen = set[str]()
    for i, record in enumerate(records):
        dialogue = _dialogue(record, f"{name}, dialogue {i}", report)
        if dialogue.id in seen:
            raise DataError(f"{name}, dialogue {i}: sample_id {dialogue.id!r} occurs twice")
        seen.add(dialogue.id)
        yield dialogue


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


def _dialogue(record: Any, where: str, report: Report) -> Dialogue:
    sample_id = named(record, "sample_id", where)
    conversation = needed(record, "conversation", dict, f"{where} ({sample_id})")
    sessions = _sessions(conversation, sample_id, report)
    turn_ids = {turn.id for session in sessions for turn in session.turns}
    if not turn_ids:
        report.add(sample_id, "no turns", "kept, with nothing to remember")
    speakers = tuple(str(conversation[k]) for k in ("speaker_a", "speaker_b") if k in conversation)
    if not speakers:
        speakers = tuple(dict.fromkeys(t.speaker for s in sessions for t in s.turns))
        report.add(sample_id, "no speaker_a and speaker_b", "taken from the turns")
    questions = needed(record, "qa", list, sample_id) if "qa" in record else []
    observed = needed(record, "observation", dict, sample_id) if "observation" in record else {}
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
        turns = needed(conversation, f"session_{number}", list, sample_id)
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
    turn_id = needed(record, "dia_id", str, where)
    if not _EXACT_ID.fullmatch(turn_id) or turn_id in seen:
        mended = f"D{session}:{number}"
        report.add(where, f"dia_id {turn_id!r} is malformed or repeated", f"read as {mended!r}")
        turn_id = mended
    seen.add(turn_id)
    return Turn(
        speaker=needed(record, "speaker", str, where),
        text=needed(record, "text", str, where),
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
        text = needed(record, "question", str, where)
        category = needed(record, "category", int, where)
        if category not in CATEGORIES:
            raise DataError(f"{where}: category is {category}; expected 1 to 5")
        if (earlier := first_asked.setdefault(text, i)) != i:
            report.add(where, f"asks the same as #{earlier}", "both kept")
        evidence = record.get("evidence") or []
        if not evidence and category != ADVERSARIAL:
            report.add(where, "no evidence", "not scored for retrieval")
        answer, accepted = _answers(record, category, where, report)
        kind, phenomenon = (str(record.get(key) or "") for key in ("kind", "phenomenon"))
        questions.append(
            Question(
                id=str(record.get("id") or f"{sample_id}#{i}"),
                dialogue_id=sample_id,
                text=text,
                answer=answer,
                evidence=_evidence(evidence, turn_ids, where, report),
                category=category,
                accepted=accepted,
                kind=kind,
                phenomenon=phenomenon,
                groups=groups_of(category, kind, phenomenon),
                guidance=guidance_of(category),
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
        accepted = tuple(map(str, needed(record, "accepted", list, where)))
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
        said = needed(records, key, dict, where)
        for speaker in said:
            for i, item in enumerate(needed(said, speaker, list, f"{where} {key}")):
                yield session, speaker, i, item


def _fits(record: Mapping[str, Any]) -> bool:
    return "conversation" in record or "sample_id" in record


FORMAT: Final = Format(
    name="locomo",
    title="LoCoMo",
    a_file="a LoCoMo file",
    source=SOURCE,
    fits=lambda record: _fits(record) and "world" not in record,
    stream=stream,
    files=("locomo10.json",),
)
WORLD: Final = Format(
    name="world",
    title="the synthetic world",
    a_file="a world file",
    source="`memory-r1 world --out world.json` writes a world file (MIT)",
    fits=lambda record: _fits(record) and "world" in record,
    stream=stream,
    files=("world.json",),
)

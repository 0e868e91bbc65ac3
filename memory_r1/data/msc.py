"""MSC-Self-Instruct's JSON lines (deep memory retrieval, DMR) -> dialogues, streamed by line.

A record holds four earlier sessions of two people, perhaps a fifth, and a question that one asks
the other about what was said. It also holds personas and summaries that tell the answers: nothing
of them is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memory_r1.data.categories import SINGLE_HOP
from memory_r1.data.dialogues import Dialogue, Question, Report, Session
from memory_r1.data.reading import Format, fresh, lines, needed, objects
from memory_r1.errors import DataError
from memory_r1.types import Turn

SOURCE: Final = (
    "MSC-Self-Instruct is msc_self_instruct.jsonl at huggingface.co/datasets/MemGPT/"
    "MSC-Self-Instruct (Apache-2.0)"
)
SPEAKERS: Final = ("Speaker 1", "Speaker 2")
GUIDANCE: Final = (
    "The gold answer is one friend's casual reply to another. An answer is right if it gives what "
    "the gold answer tells, in whatever words and at whatever length, in the first person or the "
    "third; be generous."
)


@dataclass
class _Count:
    """What the file as a whole is told by."""

    records: int = 0
    with_current: int = 0
    """Records whose fifth session, `dialog`, is there."""


def stream(path: Path, report: Report) -> Iterator[Dialogue]:
    """The dialogues of a file; DataError, with the line, for a record that can't be mended.

    A record without a question is left out. The report's notes say, after the last line, whether
    the fifth sessions are stored.
    """
    taken, count = set[str](), _Count()
    for number, record in objects(lines(path), path.name, SOURCE):
        where = f"{path.name}, line {number}"
        if asked := _asked(record, where, report):
            name = fresh(_name(record, number, where, report), taken, where, report)
            yield _dialogue(record, name, asked, where, count, report)
    if not taken:
        raise DataError(f"{path} holds no record with a question in 'self_instruct'; {SOURCE}")
    report.notes += [
        f"session 5 (`dialog`) is there, and stored, in {count.with_current:,} of "
        f"{count.records:,} records",
        "sessions have no dates, so nothing is dated; the file's own words for how long ago they "
        "were are in a dialogue's meta, 'time_back'",
        "personas and summaries are not stored: they tell the answers",
    ]


def _name(record: Mapping[str, Any], number: int, where: str, report: Report) -> str:
    match record.get("metadata"):
        case {"initial_data_id": str(name)} if name:
            return name
    report.add(where, "no initial_data_id in 'metadata'", f"called 'line-{number}'")
    return f"line-{number}"


def _asked(record: Mapping[str, Any], where: str, report: Report) -> tuple[str, str] | None:
    """The question and its answer; None where the record has none."""
    match record.get("self_instruct"):
        case {"B": str(question), "A": str(answer)} if question.strip() and answer.strip():
            return question, answer
    report.add(where, "no question and answer in 'self_instruct'", "left out")
    return None


def _dialogue(
    record: Mapping[str, Any],
    name: str,
    asked: tuple[str, str],
    where: str,
    count: _Count,
    report: Report,
) -> Dialogue:
    earlier = needed(record, "previous_dialogs", list, where)
    sittings, ago = [], dict[str, str]()
    for number, sitting in enumerate(earlier, start=1):
        sittings.append(needed(sitting, "dialog", list, f"{where}, session {number}"))
        if words := _time_back(sitting):
            ago[str(number)] = words
    count.records += 1
    if record.get("dialog") is not None:
        count.with_current += 1
        sittings.append(needed(record, "dialog", list, where))
    sessions = []
    for number, turns in enumerate(sittings, start=1):
        if read := _turns(turns, number, name, report):
            sessions.append(Session(number, None, read))
        else:
            report.add(f"{name} session {number}", "no turns", "left out")
    if not sessions:
        report.add(name, "no turns", "kept, with nothing to remember")
    question, answer = asked
    return Dialogue(
        id=name,
        speakers=SPEAKERS,
        sessions=tuple(sessions),
        questions=(
            Question(
                id=name,
                dialogue_id=name,
                text=question,
                answer=answer,
                evidence=(),
                category=SINGLE_HOP,
                kind="dmr",
                groups=("DMR",),
                guidance=GUIDANCE,
            ),
        ),
        meta={"time_back": ago} if ago else {},
    )


def _time_back(sitting: Mapping[str, Any]) -> str:
    """How long ago a session was, in the file's words; "" where it doesn't say."""
    for key in ("time_back", "time_back_rel_session_3"):
        if isinstance(words := sitting.get(key), str) and words.strip():
            return words.strip()
    match sitting.get("time_num"), sitting.get("time_unit"):
        case int(number), str(unit) if unit:
            return f"{number} {unit} ago"
    return ""


def _turns(given: list[Any], session: int, name: str, report: Report) -> tuple[Turn, ...]:
    """The turns of a session; speakers who aren't named take turns, Speaker 1 first."""
    turns = []
    for i, turn in enumerate(given):
        turn_id = f"D{session}:{i + 1}"
        match turn:
            case {"text": str(text)} if text.strip():
                speaker = turn.get("id")
                if not isinstance(speaker, str) or not speaker.strip():
                    speaker = SPEAKERS[i % 2]
                turns.append(Turn(speaker=speaker, text=text, id=turn_id))
            case {"text": str()}:
                report.add(f"{name} turn {turn_id}", "blank", "left out")
            case _:
                report.add(f"{name} turn {turn_id}", "no object with a 'text'", "left out")
    return tuple(turns)


FORMAT: Final = Format(
    name="msc",
    title="MSC-Self-Instruct",
    a_file="an MSC (MSC-Self-Instruct) file",
    source=SOURCE,
    fits=lambda record: "self_instruct" in record or "previous_dialogs" in record,
    stream=stream,
    files=("msc_self_instruct.jsonl",),
)

"""A dialogue -> the records of its lines in plain JSON lines; `jsonl` reads them back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from memory_r1.data.categories import groups_of, guidance_of
from memory_r1.data.dialogues import Dialogue, Question
from memory_r1.types import as_utc


def written(record: Mapping[str, Any]) -> str:
    """One line; half a surrogate pair, which UTF-8 can't hold, is escaped."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text


def records(dialogue: Dialogue) -> Iterator[dict[str, Any]]:
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
                "said": _moment(turn.said),
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
        yield of | _question_record(question)


def _question_record(question: Question) -> dict[str, Any]:
    """The line of a question; what a reader takes for granted is left out."""
    record = _filled(
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
        asked=_moment(question.asked),
        meta=dict(question.meta),
    )
    if question.groups != groups_of(question.category, question.kind, question.phenomenon):
        record["groups"] = list(question.groups)
    if question.guidance != guidance_of(question.category):
        record["guidance"] = question.guidance
    return record


def _head(dialogue: Dialogue) -> dict[str, Any]:
    """What the turns of a dialogue don't tell."""
    speakers = tuple(dict.fromkeys(turn.speaker for turn in dialogue.turns))
    dates = {
        str(session.number): _moment(session.date)
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


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else as_utc(moment).isoformat().replace("+00:00", "Z")

"""entry, journal row, message <-> JSON text, exactly; and what every store refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from memory_r1.errors import StoreError
from memory_r1.store import Vector
from memory_r1.types import (
    Entry,
    Feedback,
    JournalRow,
    Message,
    Owner,
    Record,
    RowState,
    Turn,
    as_utc,
)

Json = dict[str, Any]


def pack(value: object) -> str | bytes:
    """JSON text for a column: readable UTF-8, every NUL escaped.

    Half of a surrogate pair (models cut emoji in two) has no UTF-8; such a text becomes bytes,
    which `unpack` reads back without loss.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def unpack(column: str | bytes) -> Any:
    """What `pack` was given."""
    if isinstance(column, bytes):
        column = column.decode("utf-8", "surrogatepass")
    return json.loads(column)


def owner_key(owner: Owner) -> str | bytes:
    """One value that names an owner."""
    return pack([owner.user_id, owner.agent_id, owner.run_id])


def owner_of_key(key: str | bytes) -> Owner:
    """The owner a key names."""
    return Owner(*unpack(key))


def entry_to_json(entry: Entry) -> Json:
    """All of an entry but its owner."""
    return {
        "id": entry.id,
        "text": entry.text,
        "stored": _moment(entry.stored),
        "speaker": entry.speaker,
        "sources": list(entry.sources),
        "quote": entry.quote,
        "said": _moment(entry.said),
        "happened": None if entry.happened is None else [_moment(m) for m in entry.happened],
        "superseded": _moment(entry.superseded),
        "expires": _moment(entry.expires),
        "version": entry.version,
        "metadata": dict(entry.metadata),
    }


def entry_from_json(fields: Json, owner: Owner) -> Entry:
    """The entry that `entry_to_json` wrote."""
    happened = fields["happened"]
    return Entry(
        id=fields["id"],
        text=fields["text"],
        owner=owner,
        stored=datetime.fromisoformat(fields["stored"]),
        speaker=fields["speaker"],
        sources=tuple(fields["sources"]),
        quote=fields["quote"],
        said=_read_moment(fields["said"]),
        happened=happened and (_read(happened[0]), _read(happened[1])),
        superseded=_read_moment(fields["superseded"]),
        expires=_read_moment(fields["expires"]),
        version=fields["version"],
        metadata=_object(fields["metadata"]),
    )


def journal_to_json(row: JournalRow) -> Json:
    """All of a journal row but its owner and its state, which changes and has its own column."""
    return {
        "id": row.id,
        "op": row.op,
        "at": _moment(row.at),
        "entry_id": row.entry_id,
        "before": row.before and entry_to_json(row.before),
        "after": row.after and entry_to_json(row.after),
        "turn_id": row.turn_id,
        "reason": row.reason,
        "model": row.model,
        "prompt_hash": row.prompt_hash,
    }


def journal_from_json(fields: Json, owner: Owner, state: RowState) -> JournalRow:
    """The row that `journal_to_json` wrote."""
    before, after = fields["before"], fields["after"]
    return JournalRow(
        id=fields["id"],
        owner=owner,
        op=fields["op"],
        at=_read(fields["at"]),
        entry_id=fields["entry_id"],
        before=before and entry_from_json(before, owner),
        after=after and entry_from_json(after, owner),
        turn_id=fields["turn_id"],
        reason=fields["reason"],
        model=fields["model"],
        prompt_hash=fields["prompt_hash"],
        state=state,
    )


def message_to_json(message: Message) -> Json:
    """All of a message but its owner."""
    turn = message.turn
    return {
        "id": message.id,
        "speaker": turn.speaker,
        "text": turn.text,
        "said": _moment(turn.said),
        "turn_id": turn.id,
        "caption": turn.caption,
        "role": turn.role,
        "received": _moment(message.received),
        "state": message.state,
        "error": message.error,
        "metadata": dict(message.metadata),
        "expires": _moment(message.expires),
        "verbatim": message.verbatim,
        "since": _moment(message.since),
        "usage": dict(message.usage),
    }


def message_from_json(fields: Json, owner: Owner) -> Message:
    """The message that `message_to_json` wrote."""
    turn = Turn(
        speaker=fields["speaker"],
        text=fields["text"],
        said=_read_moment(fields["said"]),
        id=fields["turn_id"],
        caption=fields["caption"],
        role=fields["role"],
    )
    return Message(
        fields["id"],
        owner,
        turn,
        received=_read(fields["received"]),
        state=fields["state"],
        error=fields["error"],
        metadata=_object(fields["metadata"]),
        expires=_read_moment(fields["expires"]),
        verbatim=fields["verbatim"],
        since=_read_moment(fields["since"]),
        usage=fields["usage"],
    )


def feedback_to_json(feedback: Feedback) -> Json:
    """All of what was said of an answer but its owner."""
    return {
        "id": feedback.id,
        "at": _moment(feedback.at),
        "question": feedback.question,
        "answer": feedback.answer,
        "right": feedback.right,
        "correct": feedback.correct,
        "used": list(feedback.used),
    }


def feedback_from_json(fields: Json, owner: Owner) -> Feedback:
    """What `feedback_to_json` wrote."""
    given = {name: fields[name] for name in ("id", "question", "answer", "right", "correct")}
    return Feedback(owner=owner, at=_read(fields["at"]), used=tuple(fields["used"]), **given)


def record_of_row(row: tuple[Any, ...]) -> Record:
    """The record of a row: kind, key, moment, packed owner or None, packed body."""
    kind, key, at, owner, body = row
    moment = datetime.fromisoformat(at) if isinstance(at, str) else as_utc(at)
    whose = None if owner is None else owner_of_key(owner)
    return Record(kind, key, moment, unpack(body), whose)


def clean_record(record: Record) -> Record:
    """The record with its moment in UTC and its body its own; StoreError when that isn't JSON."""
    return replace(record, at=as_utc(record.at), body=_own(record.body, "the body of a record"))


def clean_entry(entry: Entry, last_version: int) -> Entry:
    """The entry with its moments in UTC and its metadata its own; StoreError if it can't be put.

    last_version: the version its id has now, 0 for none.
    """
    if not 1 <= entry.version <= last_version + 1:
        raise StoreError(
            f"entry {entry.id!r} can't get version {entry.version}: its last is {last_version}; "
            "read it again, it may have been changed meanwhile"
        )
    moments = (entry.stored, entry.said, entry.superseded, entry.expires)
    if not _all_utc(*moments, *(entry.happened or ())):
        entry = replace(
            entry,
            stored=as_utc(entry.stored),
            said=entry.said and as_utc(entry.said),
            superseded=entry.superseded and as_utc(entry.superseded),
            expires=entry.expires and as_utc(entry.expires),
            happened=entry.happened and (as_utc(entry.happened[0]), as_utc(entry.happened[1])),
        )
    return replace(entry, metadata=_own(entry.metadata)) if entry.metadata else entry


def clean_row(row: JournalRow) -> JournalRow:
    """The journal row with its moment in UTC."""
    return row if _all_utc(row.at) else replace(row, at=as_utc(row.at))


def clean_message(message: Message) -> Message:
    """The message with its moments in UTC and its metadata its own; StoreError if not JSON."""
    if not _all_utc(message.received, message.turn.said, message.expires, message.since):
        said = message.turn.said and as_utc(message.turn.said)
        message = replace(
            message,
            turn=replace(message.turn, said=said),
            received=as_utc(message.received),
            expires=message.expires and as_utc(message.expires),
            since=message.since and as_utc(message.since),
        )
    return replace(message, metadata=_own(message.metadata)) if message.metadata else message


def clean_feedback(feedback: Feedback) -> Feedback:
    """What was said of an answer, with its moment in UTC."""
    return feedback if _all_utc(feedback.at) else replace(feedback, at=as_utc(feedback.at))


def same_state(one: Message, other: Message) -> bool:
    """Whether a message is still as it was: in the same state since the same moment."""
    return (one.state, one.since) == (other.state, other.since)


def clean_vector(vector: ArrayLike) -> Vector:
    """(d,) float32; StoreError for another shape and for what isn't a finite number."""
    array = np.asarray(vector, np.float32)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise StoreError(
            f"expected a vector of finite numbers, got an array of shape {array.shape}"
            f" with {int((~np.isfinite(array)).sum())} that are not finite; check the embedder"
        )
    return array


def line_of(versions: Sequence[Entry]) -> list[Entry]:
    """Versions of one id, each but the last superseded at the moment its next one was stored."""
    followed = [
        entry if entry.superseded else replace(entry, superseded=following.stored)
        for entry, following in zip(versions, versions[1:], strict=False)
    ]
    return [*followed, *versions[-1:]]


def _object(value: object) -> Json:
    """What a file says is an object; TypeError when it is something else."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.80}")
    return value


def _own(metadata: Mapping[str, Any], what: str = "metadata") -> Json:
    """A copy no caller can change, of what JSON gives back as it got it (no tuples, no NaN)."""
    given = dict(metadata)
    try:
        copy: Json = unpack(pack(given))
    except (TypeError, ValueError, RecursionError) as err:
        raise StoreError(f"{what} must be JSON: {err}; got {given!r:.200}") from err
    if copy != given:
        raise StoreError(
            f"{what} must read back from JSON as it was (string keys, lists not tuples); "
            f"got {given!r:.200}"
        )
    return copy


def _all_utc(*moments: datetime | None) -> bool:
    return all(moment is None or moment.tzinfo is UTC for moment in moments)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else as_utc(moment).isoformat()


def _read(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _read_moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)

"""store -> JSON lines -> store, without loss: backup, moving, and reading by other programs.

One line per thing, owners in order, each thing in the order it was written. The last line counts
them, so that a file that was cut off is told from a whole one. Vectors are left out: the text is
what counts, and the embedder that restores it may be another.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TextIO

from memory_r1.bank import check_embedder
from memory_r1.embed import Embedder
from memory_r1.errors import DataError, StoreError
from memory_r1.store import Store, codec
from memory_r1.types import Entry, Owner

FORM = 1
"""Version of the form; written into the first line."""
_BATCH = 256
_KINDS = ("message", "entry", "journal", "feedback")


def export(store: Store, out: TextIO, user_id: str | None = None) -> dict[str, int]:
    """Write all that a store holds, or what it holds of one user; returns how much of what.

    The same content always gives the same bytes.
    """
    counts = dict.fromkeys(("owners", *_KINDS), 0)
    _write(out, {"memory_r1": FORM})
    for owner in sorted(store.owners(user_id), key=lambda owner: codec.pack(list(_key(owner)))):
        counts["owners"] += 1
        _write(out, {"owner": _key(owner)})
        for kind, fields in _things(store, owner):
            counts[kind] += 1
            _write(out, {kind: fields})
    _write(out, {"end": counts})
    return counts


def _key(owner: Owner) -> tuple[str, str, str]:
    return owner.user_id, owner.agent_id, owner.run_id


def _write(out: TextIO, line: Any) -> None:
    # ASCII only: half a surrogate pair survives too.
    out.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def _things(store: Store, owner: Owner) -> Iterator[tuple[str, dict[str, Any]]]:
    for message in store.messages(owner):
        yield "message", codec.message_to_json(message)
    for entry in store.entries(owner, superseded=True):
        for version in _as_put(store, owner, entry):
            yield "entry", codec.entry_to_json(version)
    for row in store.journal(owner):
        yield "journal", codec.journal_to_json(row) | {"state": row.state}
    for said in store.feedback(owner):
        yield "feedback", codec.feedback_to_json(said)


def _as_put(store: Store, owner: Owner, last: Entry) -> Iterator[Entry]:
    """The versions of an entry as they were put: when one ended is told by the next."""
    versions = store.versions(owner, last.id)
    for version, following in zip(versions, versions[1:], strict=False):
        ended_by_next = version.superseded == following.stored
        yield replace(version, superseded=None) if ended_by_next else version
    yield last


def restore(store: Store, lines: Iterable[str], embedder: Embedder) -> dict[str, int]:
    """Put what `export` wrote into a store, all or nothing; returns how much of what.

    Raises DataError with the number of a line that can't be read, or when lines are missing, and
    StoreError when an owner has something in the store already, or its vectors are another
    embedder's.
    """
    check_embedder(store, embedder)
    counts = dict.fromkeys(("owners", *_KINDS), 0)
    entries: list[Entry] = []

    def put() -> None:
        vectors = embedder.embed([entry.text for entry in entries])
        for entry, vector in zip(entries, vectors, strict=True):
            store.put(entry, vector)
        entries.clear()

    owner: Owner | None = None
    taken: Owner | None = None
    with store.transaction():
        for number, kind, fields in _read(lines):
            if kind == "end":
                _check_end(number, fields, counts)
                continue
            try:
                if kind == "owner":
                    put()
                    owner = Owner(*fields)
                    if owner in store.owners(owner.user_id):
                        taken = taken or owner
                    counts["owners"] += 1
                    continue
                if owner is None:
                    raise DataError(f"line {number}: a {kind} before any owner")
                counts[kind] += 1
                if taken:  # read on: nobody should `forget` for the sake of a file that is cut off
                    continue
                match kind:
                    case "message":
                        store.add_message(codec.message_from_json(fields, owner))
                    case "entry":
                        entries.append(codec.entry_from_json(fields, owner))
                    case "journal":
                        store.add_journal(codec.journal_from_json(fields, owner, fields["state"]))
                    case _:
                        store.add_feedback(codec.feedback_from_json(fields, owner))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"line {number}: not a whole {kind}: {error!r}") from error
            if len(entries) >= _BATCH:
                put()
        if taken:
            raise _in_the_way(taken)
        put()
    return counts


def _read(lines: Iterable[str]) -> Iterator[tuple[int, str, Any]]:
    """(line number, kind, fields) of every line after the first, which must be ours.

    The end comes last; DataError when it is missing.
    """
    form, ended, number = None, False, 0
    for number, line in enumerate(lines, 1):
        try:
            ((kind, fields),) = json.loads(line).items()
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"line {number}: not a line of an export: {line[:80]!r}; nothing was restored. If "
                "this is its last line, the file was cut off: use another copy, or export again"
            ) from error
        if form is None:
            if kind != "memory_r1" or fields != FORM:
                raise DataError(
                    f'line 1: expected {{"memory_r1":{FORM}}}, the first line of an export, got '
                    f"{line[:80]!r}; exports of other programs: `memory-r1 import --from`"
                )
            form = fields
            continue
        if ended:
            raise DataError(
                f"line {number}: a line after the end; expected one export, and nothing behind it"
            )
        if kind not in ("owner", *_KINDS, "end"):
            raise DataError(f"line {number}: unknown kind {kind!r}; expected {', '.join(_KINDS)}")
        ended = kind == "end"
        yield number, kind, fields
    if not number:
        raise DataError("the file is empty; expected what `memory-r1 export` wrote")
    if not ended:
        raise DataError(
            f"the file was cut off: it stops at line {number}, and the line that ends an export "
            "is missing. Nothing was restored; use another copy, or export again"
        )


def _check_end(number: int, told: Any, read: dict[str, int]) -> None:
    """DataError when the end counts other things than were read."""
    if told != read:
        raise DataError(
            f"line {number}: the end of the export counts {json.dumps(told)}, but the lines before "
            f"it are {json.dumps(read)}: the file was cut, or changed. Nothing was restored; use "
            "another copy, or export again"
        )


def _in_the_way(owner: Owner) -> StoreError:
    return StoreError(
        f"{owner} has memories or messages in this store already, so nothing was restored: an "
        "export goes where its owners have nothing. Give another store, or first erase all of "
        f"this user with:  memory-r1 forget {shlex.quote(owner.user_id)}"
    )

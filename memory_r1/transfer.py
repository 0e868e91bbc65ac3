"""store -> JSON lines -> store, without loss: backup, moving, and reading by other programs.

One line per thing, owners in order, each thing in the order it was written. Vectors are left out:
the text is what counts, and the embedder that restores it may be another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
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

    Raises DataError with the number of a line that can't be read, and StoreError when an owner
    has something in the store already, or its vectors are another embedder's.
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
    with store.transaction():
        for number, kind, fields in _read(lines):
            try:
                if kind == "owner":
                    put()
                    owner = _new_owner(store, fields)
                    counts["owners"] += 1
                    continue
                if owner is None:
                    raise DataError(f"line {number}: a {kind} before any owner")
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
            counts[kind] += 1
            if len(entries) >= _BATCH:
                put()
        put()
    return counts


def _read(lines: Iterable[str]) -> Iterator[tuple[int, str, Any]]:
    """(line number, kind, fields) of every line after the first, which must be ours."""
    form = None
    for number, line in enumerate(lines, 1):
        try:
            ((kind, fields),) = json.loads(line).items()
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"line {number}: not a line of an export: {line[:80]!r}") from error
        if form is None:
            if kind != "memory_r1" or fields != FORM:
                raise DataError(
                    f'line 1: expected {{"memory_r1":{FORM}}}, the first line of an export, got '
                    f"{line[:80]!r}; exports of other programs: `memory-r1 import --from`"
                )
            form = fields
            continue
        if kind not in ("owner", *_KINDS):
            raise DataError(f"line {number}: unknown kind {kind!r}; expected {', '.join(_KINDS)}")
        yield number, kind, fields


def _new_owner(store: Store, key: Sequence[str]) -> Owner:
    owner = Owner(*key)
    if owner in store.owners(owner.user_id):
        raise StoreError(
            f"{owner} has memories in this store already; restore into another store, or `forget` "
            "them first"
        )
    return owner

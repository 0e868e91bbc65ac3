"""memory operations -> a changed bank and its journal, all or nothing, each step undoable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, assert_never

from memory_r1.embed import Embedder
from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.store import Index, Store, Vector, new_id
from memory_r1.types import (
    Add,
    Delete,
    Entry,
    JournalRow,
    MemoryOp,
    Noop,
    OpName,
    Owner,
    Turn,
    Update,
    as_utc,
)


def utc_now() -> datetime:
    """The moment it is, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class _Cause:
    """What an `apply` rests on; the same for all its operations."""

    at: datetime
    turn: Turn
    source: str
    message_id: str
    reason: str
    model: str
    prompt_hash: str
    quote: str
    happened: tuple[datetime, datetime] | None
    metadata: Mapping[str, Any]


class Bank:
    """One owner's memories: what the Memory Manager edits and the Answer Agent reads."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        owner: Owner,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """StoreError when the store holds vectors of another embedder."""
        self.store = store
        self.embedder = embedder
        self.owner = owner
        self._now = now
        _check_embedder(store, embedder)

    @property
    def index(self) -> Index:
        """The current entries in columns, for retrieval; later writes don't change it."""
        return self.store.index(self.owner)

    def entries(self, superseded: bool = False) -> list[Entry]:
        """The current entries, oldest first; the superseded ones too when asked."""
        return self.store.entries(self.owner, superseded)

    def get(self, entry_id: str) -> Entry:
        """An entry, current or superseded. UnknownEntry if not here."""
        return self.store.get(self.owner, entry_id)

    def history(self, entry_id: str) -> list[Entry]:
        """How an entry read over time, first version first. UnknownEntry if not here.

        What was undone is not in it; the journal keeps that too.
        """
        return self.store.versions(self.owner, entry_id)

    def journal(self, entry_id: str | None = None) -> list[JournalRow]:
        """What was done, in order; to one entry when asked."""
        return self.store.journal(self.owner, entry_id)

    def as_of(self, moment: datetime) -> list[Entry]:
        """What was believed then, oldest first: the entries as the journal left them."""
        moment = as_utc(moment)
        believed: dict[str, Entry | None] = {
            row.entry_id: row.after for row in self.journal() if row.at <= moment
        }
        current = [entry for entry in believed.values() if entry and not entry.superseded]
        return sorted(current, key=lambda entry: entry.id)

    def apply(
        self,
        ops: Sequence[MemoryOp],
        *,
        turn: Turn | None = None,
        message_id: str = "",
        reason: str = "",
        model: str = "",
        prompt_hash: str = "",
        quote: str = "",
        happened: tuple[datetime, datetime] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[JournalRow]:
        """Do all operations in order, or none, with one journal row each.

        turn, message_id: what the operations rest on, and the stored message it came as.
        quote, happened, metadata: kept with every entry written; an update merges metadata.
        UnknownEntry when one names an entry that isn't here or isn't current.
        """
        turn = turn or Turn(speaker="", text="")
        cause = _Cause(
            at=as_utc(self._now()),
            turn=turn,
            source=turn.id or message_id,
            message_id=message_id or turn.id,
            reason=reason,
            model=model,
            prompt_hash=prompt_hash,
            quote=quote,
            happened=happened and (as_utc(happened[0]), as_utc(happened[1])),
            metadata=deepcopy(dict(metadata or {})),
        )
        # A model may compute them: before the transaction, which keeps other writers waiting.
        texts = [op.text for op in ops if isinstance(op, Add | Update)]
        vectors = iter(self.embedder.embed(texts) if texts else ())
        with self.store.transaction():
            return [self._apply_one(op, cause, vectors.__next__) for op in ops]

    def undo(self, journal_id: str) -> JournalRow:
        """Restore exactly what was before one operation; returns the UNDO row.

        An UNDO row can be undone too. StoreError when the row is unknown, undone already, or
        the entry has been changed since; the later operations have to be undone first.
        """
        with self.store.transaction():
            row = self.store.journal_row(self.owner, journal_id)
            self._refuse_undo(row)
            if row.before is not None:
                self.store.put(row.before, self._vector(row.before))
            elif row.after is not None:
                self.store.remove(self.owner, row.entry_id)
            self.store.mark_undone(self.owner, row.id)
            undo = JournalRow(
                id=new_id(),
                owner=self.owner,
                op="UNDO",
                at=as_utc(self._now()),
                entry_id=row.entry_id,
                before=row.after,
                after=row.before,
                turn_id=row.turn_id,
                reason=f"undo of {row.op} {row.id}",
            )
            self.store.add_journal(undo)
            return undo

    def fork(self) -> Bank:
        """An independent copy in RAM, which never writes back."""
        return Bank(self.store.fork(self.owner), self.embedder, self.owner, self._now)

    def _apply_one(
        self, op: MemoryOp, cause: _Cause, next_vector: Callable[[], Vector]
    ) -> JournalRow:
        match op:
            case Add(text):
                entry = self._new_entry(text, cause)
                self.store.put(entry, next_vector())
                return self._write_row("ADD", None, entry, cause)
            case Update(entry_id, text):
                before = self._current(entry_id)
                entry = _next_version(before, text, cause)
                self.store.put(entry, next_vector())
                return self._write_row("UPDATE", before, entry, cause)
            case Delete(entry_id):
                before = self._current(entry_id)
                entry = replace(before, superseded=cause.at)
                self.store.put(entry, self.store.vector(self.owner, entry_id))
                return self._write_row("DELETE", before, entry, cause)
            case Noop():
                return self._write_row("NOOP", None, None, cause)
            case _:
                assert_never(op)

    def _new_entry(self, text: str, cause: _Cause) -> Entry:
        return Entry(
            id=new_id(),
            text=text,
            owner=self.owner,
            stored=cause.at,
            speaker=cause.turn.speaker,
            sources=(cause.source,) if cause.source else (),
            quote=cause.quote,
            said=cause.turn.said and as_utc(cause.turn.said),
            happened=cause.happened,
            metadata=dict(cause.metadata),
        )

    def _current(self, entry_id: str) -> Entry:
        entry = self.get(entry_id)
        if entry.superseded is not None:
            raise UnknownEntry(
                f"entry {entry_id!r} was deleted at {entry.superseded.isoformat()}; "
                "undo that, or add the memory anew"
            )
        return entry

    def _write_row(
        self, op: OpName, before: Entry | None, after: Entry | None, cause: _Cause
    ) -> JournalRow:
        row = JournalRow(
            id=new_id(),
            owner=self.owner,
            op=op,
            at=cause.at,
            entry_id=after.id if after else "",
            before=before,
            after=after,
            turn_id=cause.message_id,
            reason=cause.reason,
            model=cause.model,
            prompt_hash=cause.prompt_hash,
        )
        self.store.add_journal(row)
        return row

    def _refuse_undo(self, row: JournalRow) -> None:
        """The entry must be as the operation left it: only then is its `before` what was before."""
        if row.undone:
            raise StoreError(f"{row.op} {row.id} is undone already; undo its UNDO row to redo it")
        if not row.entry_id:
            return
        try:
            now: Entry | None = self.get(row.entry_id)
        except UnknownEntry:
            now = None
        if now != row.after:
            in_force = [later for later in self.journal(row.entry_id) if not later.undone]
            raise StoreError(
                f"can't undo {row.op} {row.id}: entry {row.entry_id} has been changed since; first "
                f"undo {in_force[-1].op} {in_force[-1].id} ({in_force[-1].at.isoformat()})"
            )

    def _vector(self, entry: Entry) -> Vector:
        """The vector a version has; computed again when an undo took the version away."""
        try:
            return self.store.vector(self.owner, entry.id, entry.version)
        except UnknownEntry:
            vector: Vector = self.embedder.embed([entry.text])[0]
            return vector


def reindex(store: Store, embedder: Embedder) -> int:
    """Compute all vectors of a store again with another embedder; returns how many.

    One transaction: other writers wait, and a failure leaves the store as it was.
    """
    count = 0
    with store.transaction():
        for owner in store.owners():
            ids = [entry.id for entry in store.entries(owner, superseded=True)]
            lines = [store.versions(owner, entry_id) for entry_id in ids]
            for entry_id in ids:
                store.remove(owner, entry_id)
            versions = [entry for line in lines for entry in line]
            for start in range(0, len(versions), 256):
                batch = versions[start : start + 256]
                vectors = embedder.embed([entry.text for entry in batch])
                for entry, vector in zip(batch, vectors, strict=True):
                    store.put(entry, vector)
            count += len(versions)
        store.set_meta("embedder", embedder.name)
        store.set_meta("dimension", str(embedder.dim))
    return count


def _next_version(before: Entry, text: str, cause: _Cause) -> Entry:
    """The entry with a new text, resting on its old sources and the new turn."""
    said = cause.turn.said and as_utc(cause.turn.said)
    new = (cause.source,) if cause.source and cause.source not in before.sources else ()
    return replace(
        before,
        text=text,
        stored=cause.at,
        speaker=before.speaker or cause.turn.speaker,
        sources=(*before.sources, *new),
        quote=cause.quote or before.quote,
        said=max(filter(None, (before.said, said)), default=None),
        happened=cause.happened or before.happened,
        version=before.version + 1,
        metadata={**before.metadata, **cause.metadata},
    )


def _check_embedder(store: Store, embedder: Embedder) -> None:
    """Vectors of two embedders can't be compared: a store belongs to the first one it met."""
    name, dimension = store.get_meta("embedder"), store.get_meta("dimension")
    if name is None:
        with store.transaction():
            if store.get_meta("embedder") is None:
                store.set_meta("embedder", embedder.name)
                store.set_meta("dimension", str(embedder.dim))
        name, dimension = store.get_meta("embedder"), store.get_meta("dimension")
    if (name, dimension) != (embedder.name, str(embedder.dim)):
        raise StoreError(
            f"the store's vectors were made by embedder {name!r} ({dimension} dimensions), this "
            f"is {embedder.name!r} ({embedder.dim} dimensions); open it with the first, or run "
            "`memory-r1 reindex`"
        )

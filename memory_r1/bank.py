"""memory operations -> a changed bank and its journal, all or nothing, each step undoable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, assert_never

from memory_r1.embed import Embedder
from memory_r1.errors import Conflict, StoreError, UnknownEntry
from memory_r1.store import Index, Store, Vector, new_id
from memory_r1.types import (
    NEVER,
    Add,
    Delete,
    Entry,
    JournalRow,
    MemoryOp,
    Noop,
    OpName,
    Owner,
    Policy,
    RowState,
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
    expires: datetime | None
    policy: Policy


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
        check_embedder(store, embedder)

    def now(self) -> datetime:
        """The moment it is, in UTC."""
        return as_utc(self._now())

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
            row.entry_id: row.after
            for row in self.journal()
            if row.at <= moment and row.state in ("done", "undone") and row.op != "NOOP"
        }
        current = [entry for entry in believed.values() if entry and not entry.superseded]
        return sorted(current, key=lambda entry: entry.id)

    def valid_at(self, moment: datetime) -> list[Entry]:
        """What was so then, as far as is known today, oldest first.

        A version tells of the time from when it `happened` to when that ended; where that isn't
        known, from when it was said to when the next version, or its end, was said.
        """
        moment = as_utc(moment)
        ended = {row.entry_id: self._said(row) for row in self.journal() if row.op == "DELETE"}
        found: list[Entry] = []
        for entry in self.entries(superseded=True):
            versions = self.history(entry.id)
            last = ended.get(entry.id) if entry.superseded else None
            ends = [*map(_begins, versions[1:]), last]
            for version, end in zip(versions, ends, strict=True):
                if version.happened is not None:
                    begin, end = version.happened
                    holds = begin <= moment <= end
                else:
                    holds = _begins(version) <= moment and (end is None or moment < end)
                if holds:
                    found.append(replace(version, superseded=None))
        return found

    def _said(self, row: JournalRow) -> datetime:
        """When the turn behind an operation was said; when it was done, where nothing was said."""
        if not row.turn_id:
            return row.at
        try:
            return self.store.message(self.owner, row.turn_id).turn.said or row.at
        except StoreError:  # a bank filled without an outbox
            return row.at

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
        expires: datetime | None = None,
        policy: Policy = "auto",
    ) -> list[JournalRow]:
        """Do all operations in order, or none, with one journal row each.

        turn, message_id: what the operations rest on, and the stored message it came as.
        quote, happened, metadata, expires: kept with every entry written; an update merges
        metadata, and NEVER takes an expiry away. policy: what is only proposed, see `approve`.
        UnknownEntry when one names an entry that isn't here or isn't current.
        """
        turn = turn or Turn(speaker="", text="")
        cause = _Cause(
            at=self.now(),
            turn=turn,
            source=turn.id or message_id,
            message_id=message_id or turn.id,
            reason=reason,
            model=model,
            prompt_hash=prompt_hash,
            quote=quote,
            happened=happened and (as_utc(happened[0]), as_utc(happened[1])),
            metadata=deepcopy(dict(metadata or {})),
            expires=expires and as_utc(expires),
            policy=policy,
        )
        # A model may compute them: before the transaction, which keeps other writers waiting.
        texts = [op.text for op in ops if isinstance(op, Add | Update)]
        vectors = iter(self.embedder.embed(texts) if texts else ())
        with self.store.transaction():
            return [self._apply_one(op, cause, vectors.__next__) for op in ops]

    def proposals(self) -> list[JournalRow]:
        """What waits for `approve` or `reject`, in order."""
        return [row for row in self.journal() if row.state == "proposed"]

    def approve(self, journal_id: str) -> JournalRow:
        """Do what was proposed, from now on; returns the row of the operation.

        Conflict when the row is no waiting proposal, or its entry has been changed since.
        """
        # A model may compute its vector: before the transaction, which keeps other writers waiting.
        wanted = self._proposal(journal_id).after
        self.embedder.embed([wanted.text] if wanted else [])
        with self.store.transaction():
            proposal = self._proposal(journal_id)
            if proposal.before != (self._known(proposal.entry_id)):
                raise Conflict(
                    f"can't approve {proposal.op} {proposal.id}: entry {proposal.entry_id} has "
                    "been changed since it was proposed; reject it, and tell the fact again"
                )
            now = self.now()
            after = proposal.after
            assert after is not None
            if proposal.op == "DELETE":
                after = replace(after, superseded=now)
                vector = self.store.vector(self.owner, after.id)
            else:
                after = replace(after, stored=now)
                vector = self.embedder.embed([after.text])[0]
            self.store.put(after, vector)
            self.store.mark(self.owner, proposal.id, "approved")
            row = replace(proposal, id=new_id(), at=now, after=after, state="done")
            self.store.add_journal(row)
            return row

    def reject(self, journal_id: str) -> JournalRow:
        """Leave undone what was proposed; returns the proposal. Conflict as for `approve`."""
        with self.store.transaction():
            proposal = self._proposal(journal_id)
            self.store.mark(self.owner, proposal.id, "rejected")
            return replace(proposal, state="rejected")

    def _proposal(self, journal_id: str) -> JournalRow:
        row = self.store.journal_row(self.owner, journal_id)
        if row.state != "proposed":
            raise Conflict(
                f"{row.op} {row.id} is {row.state}; only what is proposed can be approved or "
                "rejected, see `proposals`"
            )
        return row

    def _known(self, entry_id: str) -> Entry | None:
        try:
            return self.get(entry_id)
        except UnknownEntry:
            return None

    def undo_since(self, moment: datetime) -> list[JournalRow]:
        """Take back all that was done from a moment on, the latest first, or nothing."""
        moment = as_utc(moment)
        with self.store.transaction():
            rows = [
                row
                for row in self.journal()
                if row.at >= moment and row.state == "done" and row.op not in ("UNDO", "NOOP")
            ]
            return [self.undo(row.id) for row in reversed(rows)]

    def undo(self, journal_id: str) -> JournalRow:
        """Restore exactly what was before one operation; returns the UNDO row.

        An UNDO row can be undone too. UnknownRow; Conflict when it is undone already, or the
        entry has been changed since: the later operations have to be undone first.
        """
        with self.store.transaction():
            row = self.store.journal_row(self.owner, journal_id)
            self._refuse_undo(row)
            if row.before is not None:
                self.store.put(row.before, self._vector(row.before))
            elif row.after is not None:
                self.store.remove(self.owner, row.entry_id)
            self.store.mark(self.owner, row.id, "undone")
            undo = JournalRow(
                id=new_id(),
                owner=self.owner,
                op="UNDO",
                at=self.now(),
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
                entry, vector = self._new_entry(text, cause), next_vector()
                if cause.policy == "confirm_all":
                    return self._write_row("ADD", None, entry, cause, "proposed")
                self.store.put(entry, vector)
                return self._write_row("ADD", None, entry, cause)
            case Update(entry_id, text):
                before, vector = self._current(entry_id), next_vector()
                entry = _next_version(before, text, cause)
                if cause.policy == "confirm_all":
                    return self._write_row("UPDATE", before, entry, cause, "proposed")
                self.store.put(entry, vector)
                return self._write_row("UPDATE", before, entry, cause)
            case Delete(entry_id):
                before = self._current(entry_id)
                entry = replace(before, superseded=cause.at)
                if cause.policy != "auto":
                    return self._write_row("DELETE", before, entry, cause, "proposed")
                self.store.put(entry, self.store.vector(self.owner, entry_id))
                return self._write_row("DELETE", before, entry, cause)
            case Noop(entry_id):
                return self._write_row("NOOP", None, None, cause, entry_id=entry_id)
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
            expires=None if cause.expires == NEVER else cause.expires,
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
        self,
        op: OpName,
        before: Entry | None,
        after: Entry | None,
        cause: _Cause,
        state: RowState = "done",
        entry_id: str = "",
    ) -> JournalRow:
        row = JournalRow(
            id=new_id(),
            owner=self.owner,
            op=op,
            at=cause.at,
            entry_id=after.id if after else entry_id,
            before=before,
            after=after,
            turn_id=cause.message_id,
            reason=cause.reason,
            model=cause.model,
            prompt_hash=cause.prompt_hash,
            state=state,
        )
        self.store.add_journal(row)
        return row

    def _refuse_undo(self, row: JournalRow) -> None:
        """The entry must be as the operation left it: only then is its `before` what was before."""
        if row.undone:
            raise Conflict(f"{row.op} {row.id} is undone already; undo its UNDO row to redo it")
        if row.state != "done":
            raise Conflict(f"{row.op} {row.id} was {row.state}, not done: nothing to undo")
        if row.op == "NOOP":
            return
        try:
            now: Entry | None = self.get(row.entry_id)
        except UnknownEntry:
            now = None
        if now != row.after:
            rows = self.journal(row.entry_id)
            in_force = [later for later in rows if later.state == "done" and later.op != "NOOP"]
            raise Conflict(
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


def _begins(version: Entry) -> datetime:
    """When what a version tells began, as far as is known."""
    return version.happened[0] if version.happened else version.said or version.stored


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
        expires=None if cause.expires == NEVER else cause.expires or before.expires,
        version=before.version + 1,
        metadata={**before.metadata, **cause.metadata},
    )


def check_embedder(store: Store, embedder: Embedder) -> None:
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

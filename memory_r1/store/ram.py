"""A store in memory: for tests, and forked once per rollout."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter

from memory_r1.errors import StoreError, UnknownEntry, UnknownRow
from memory_r1.store import Vector
from memory_r1.store.codec import (
    clean_entry,
    clean_feedback,
    clean_message,
    clean_record,
    clean_row,
    clean_vector,
    line_of,
    same_state,
)
from memory_r1.store.counts import Counts
from memory_r1.store.index import Index
from memory_r1.types import (
    Entry,
    Feedback,
    JournalRow,
    Message,
    MessageState,
    Owner,
    Record,
    RowState,
    as_utc,
)

_Line = tuple[tuple[Entry, Vector], ...]
"""The versions of one id."""


@dataclass
class _Owned:
    """What one owner has. Values are immutable, so that a copy copies only the containers."""

    lines: dict[str, _Line] = field(default_factory=dict)
    journal: dict[str, JournalRow] = field(default_factory=dict)
    messages: dict[str, Message] = field(default_factory=dict)
    feedback: dict[str, Feedback] = field(default_factory=dict)
    index: Index = field(default_factory=Index)

    def copy(self) -> _Owned:
        return _Owned(
            self.lines.copy(),
            self.journal.copy(),
            self.messages.copy(),
            self.feedback.copy(),
            self.index.copy(),
        )


class RamStore:
    """The Store contract in dictionaries; gone when the process ends.

    Copy on write: a fork, a transaction and a handed-out index all share an owner's containers
    until someone writes, and only an owner in `_mine` may be written in place.
    """

    def __init__(self) -> None:
        self._owned: dict[Owner, _Owned] = {}
        self._mine: set[Owner] = set()
        self._meta: dict[str, str] = {}
        self._records: dict[tuple[str, str], Record] = {}
        self._lock = threading.RLock()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See Store.transaction."""
        with self._lock:
            before = self._owned, self._meta, self._records
            self._owned, self._meta, self._mine = self._owned.copy(), self._meta.copy(), set()
            self._records = self._records.copy()
            try:
                yield
            except BaseException:
                self._owned, self._meta, self._records = before
                self._mine = set()
                raise

    def put(self, entry: Entry, vector: Vector) -> None:
        """See Store.put."""
        vector = clean_vector(vector)
        with self._lock:
            line = self._read(entry.owner).lines.get(entry.id, ())
            entry = clean_entry(entry, last_version=len(line))
            owned = self._write(entry.owner)
            if entry.superseded is None:
                owned.index.put(entry, vector)
            elif entry.id in owned.index:
                owned.index.drop(entry.id)
            owned.lines[entry.id] = (*line[: entry.version - 1], (entry, vector))

    def remove(self, owner: Owner, entry_id: str) -> None:
        """See Store.remove."""
        with self._lock:
            self._line(owner, entry_id)
            owned = self._write(owner)
            del owned.lines[entry_id]
            if not owned.lines:
                owned.index = Index()  # the next vector may be of another embedder
            elif entry_id in owned.index:
                owned.index.drop(entry_id)

    def get(self, owner: Owner, entry_id: str) -> Entry:
        """See Store.get."""
        with self._lock:
            return self._line(owner, entry_id)[-1][0]

    def entries(self, owner: Owner, superseded: bool = False) -> list[Entry]:
        """See Store.entries."""
        with self._lock:
            owned = self._read(owner)
            if not superseded:
                return owned.index.entries
            return sorted((line[-1][0] for line in owned.lines.values()), key=attrgetter("id"))

    def versions(self, owner: Owner, entry_id: str) -> list[Entry]:
        """See Store.versions."""
        with self._lock:
            return line_of([entry for entry, _ in self._line(owner, entry_id)])

    def vector(self, owner: Owner, entry_id: str, version: int | None = None) -> Vector:
        """See Store.vector."""
        with self._lock:
            line = self._line(owner, entry_id)
        if version is None:
            version = len(line)
        if not 1 <= version <= len(line):
            raise UnknownEntry(f"entry {entry_id!r} has versions 1..{len(line)}, not {version}")
        return line[version - 1][1]

    def index(self, owner: Owner) -> Index:
        """See Store.index."""
        with self._lock:
            self._mine.discard(owner)
            return self._read(owner).index

    def add_message(self, message: Message) -> None:
        """See Store.add_message."""
        with self._lock:
            owned = self._write(message.owner)
            if message.id in owned.messages:
                raise StoreError(f"there is a message {message.id!r} already; ids are given once")
            owned.messages[message.id] = clean_message(message)

    def messages(self, owner: Owner, state: MessageState | None = None) -> list[Message]:
        """See Store.messages."""
        with self._lock:
            kept = self._read(owner).messages.values()
            return [message for message in kept if state is None or message.state == state]

    def message(self, owner: Owner, message_id: str) -> Message:
        """See Store.message."""
        with self._lock:
            message = self._read(owner).messages.get(message_id)
        if message is None:
            raise UnknownRow(f"no message {message_id!r} of {owner}")
        return message

    def set_message(self, message: Message, was: Message | None = None) -> bool:
        """See Store.set_message."""
        message = clean_message(message)
        with self._lock:
            known = self.message(message.owner, message.id)
            if was is not None and not same_state(known, was):
                return False
            self._write(message.owner).messages[message.id] = message
            return True

    def waiting(self) -> list[Owner]:
        """See Store.waiting."""
        with self._lock:
            return [
                owner
                for owner, owned in self._owned.items()
                if any(message.state != "done" for message in owned.messages.values())
            ]

    def add_journal(self, row: JournalRow) -> None:
        """See Store.add_journal."""
        with self._lock:
            owned = self._write(row.owner)
            if row.id in owned.journal:
                raise StoreError(f"there is a journal row {row.id!r} already; ids are given once")
            owned.journal[row.id] = clean_row(row)

    def journal(self, owner: Owner, entry_id: str | None = None) -> list[JournalRow]:
        """See Store.journal."""
        with self._lock:
            rows = self._read(owner).journal.values()
            return [row for row in rows if entry_id is None or row.entry_id == entry_id]

    def journal_page(
        self, owner: Owner, *, after: str = "", before: str = "", limit: int | None = None
    ) -> list[JournalRow]:
        """See Store.journal_page."""
        with self._lock:
            rows = self._read(owner).journal
            ids = sorted(
                (i for i in rows if after < i and (not before or i < before)), reverse=True
            )
            return [rows[i] for i in ids[:limit]]

    def journal_row(self, owner: Owner, journal_id: str) -> JournalRow:
        """See Store.journal_row."""
        with self._lock:
            row = self._read(owner).journal.get(journal_id)
        if row is None:
            raise UnknownRow(f"no journal row {journal_id!r} of {owner}")
        return row

    def mark(self, owner: Owner, journal_id: str, state: RowState) -> None:
        """See Store.mark."""
        with self._lock:
            row = self.journal_row(owner, journal_id)
            self._write(owner).journal[journal_id] = replace(row, state=state)

    def add_feedback(self, feedback: Feedback) -> None:
        """See Store.add_feedback."""
        with self._lock:
            owned = self._write(feedback.owner)
            if feedback.id in owned.feedback:
                raise StoreError(f"there is feedback {feedback.id!r} already; ids are given once")
            owned.feedback[feedback.id] = clean_feedback(feedback)

    def feedback(self, owner: Owner) -> list[Feedback]:
        """See Store.feedback."""
        with self._lock:
            return list(self._read(owner).feedback.values())

    def get_meta(self, key: str) -> str | None:
        """See Store.get_meta."""
        with self._lock:
            return self._meta.get(key)

    def set_meta(self, key: str, value: str) -> None:
        """See Store.set_meta."""
        with self._lock:
            self._meta[key] = value

    def put_record(self, record: Record, new: bool = False) -> bool:
        """See Store.put_record."""
        record = clean_record(record)
        with self._lock:
            if new and (record.kind, record.key) in self._records:
                return False
            self._records[record.kind, record.key] = record
            return True

    def record(self, kind: str, key: str) -> Record | None:
        """See Store.record."""
        with self._lock:
            return self._records.get((kind, key))

    def records(self, kind: str) -> list[Record]:
        """See Store.records."""
        with self._lock:
            return [record for of, record in sorted(self._records.items()) if of[0] == kind]

    def drop_records(
        self, kind: str, *, key: str | None = None, before: datetime | None = None
    ) -> int:
        """See Store.drop_records."""
        until = as_utc(before) if before else None
        with self._lock:
            gone = [
                of
                for of, record in self._records.items()
                if of[0] == kind
                and (key is None or of[1] == key)
                and (until is None or record.at < until)
            ]
            for of in gone:
                del self._records[of]
            return len(gone)

    def owners(self, user_id: str | None = None) -> list[Owner]:
        """See Store.owners."""
        with self._lock:
            return [owner for owner in self._owned if user_id in (None, owner.user_id)]

    def counts(self, user_id: str | None = None) -> Counts:
        """See Store.counts."""
        with self._lock:
            owners = self.owners(user_id)
            owned = [self._owned[owner] for owner in owners]
            last = [line[-1][0] for each in owned for line in each.lines.values()]
            rows = [row for each in owned for row in each.journal.values()]
            messages = [message for each in owned for message in each.messages.values()]
            feedback = sum(len(each.feedback) for each in owned)
        usage: Counter[str] = Counter()
        for message in messages:
            usage.update(message.usage)
        return Counts(
            owners=len(owners),
            entries=sum(entry.superseded is None for entry in last),
            superseded=sum(entry.superseded is not None for entry in last),
            operations=dict(Counter(row.op for row in rows)),
            proposals=sum(row.state == "proposed" for row in rows),
            messages=dict(Counter(message.state for message in messages)),
            feedback=feedback,
            usage=dict(usage),
        )

    def holding(self, entry_id: str) -> list[Owner]:
        """See Store.holding."""
        with self._lock:
            return [owner for owner, owned in self._owned.items() if entry_id in owned.lines]

    def problems(self) -> list[str]:
        """See Store.problems: what a process has in memory is sound."""
        return []

    def forget(self, owner: Owner) -> dict[str, int]:
        """See Store.forget."""
        with self._lock:
            self._mine.discard(owner)
            owned = self._owned.pop(owner, _Owned())
            theirs = [of for of, record in self._records.items() if record.owner == owner]
            for of in theirs:
                del self._records[of]
        versions = sum(len(line) for line in owned.lines.values())
        return {
            "entries": len(owned.lines),
            "versions": versions,
            "vectors": versions,
            "journal": len(owned.journal),
            "messages": len(owned.messages),
            "feedback": len(owned.feedback),
            "records": len(theirs),
        }

    def fork(self, owner: Owner | None = None) -> RamStore:
        """See Store.fork; without an owner, all of them."""
        twin = RamStore()
        with self._lock:
            if owner is None:
                twin._owned = self._owned.copy()
                self._mine = set()
            elif owner in self._owned:
                twin._owned = {owner: self._owned[owner]}
                self._mine.discard(owner)
            twin._meta = self._meta.copy()
        return twin

    def close(self) -> None:
        """Nothing to let go of."""

    def _read(self, owner: Owner) -> _Owned:
        return self._owned.get(owner) or _Owned()

    def _write(self, owner: Owner) -> _Owned:
        """The owner's containers, to be changed in place."""
        if owner not in self._mine:
            known = self._owned.get(owner)
            self._owned[owner] = known.copy() if known else _Owned()
            self._mine.add(owner)
        return self._owned[owner]

    def _line(self, owner: Owner, entry_id: str) -> _Line:
        line = self._read(owner).lines.get(entry_id)
        if line is None:
            raise UnknownEntry(f"no entry {entry_id!r} of {owner}")
        return line

"""A store in one SQLite file, shared by threads and by processes on one machine."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from memory_r1.errors import StoreError, UnknownEntry, UnknownRow
from memory_r1.store import Vector, codec
from memory_r1.store.cache import IndexCache
from memory_r1.store.counts import IN_SQLITE, Counts
from memory_r1.store.index import Index, packed
from memory_r1.store.ram import RamStore
from memory_r1.store.schema import connect, storage_errors
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

Row = tuple[Any, ...]

_FLOAT32 = np.dtype("<f4")
_ORPHANS = "SELECT owner, id FROM {} WHERE owner NOT IN (SELECT number FROM owners)"
_CHECKS = {
    "an entry's last version is not the one noted": (
        "SELECT owner, id, version FROM heads WHERE version != coalesce((SELECT max(version)"
        " FROM versions v WHERE v.owner = heads.owner AND v.id = heads.id), 0)"
    ),
    "versions with a gap": (
        "SELECT owner, id FROM versions GROUP BY owner, id HAVING max(version) != count(*)"
    ),
    "versions without an entry": (
        "SELECT owner, id FROM versions v WHERE NOT EXISTS"
        " (SELECT 1 FROM heads h WHERE h.owner = v.owner AND h.id = v.id)"
    ),
    "vectors of different lengths": (
        "SELECT owner, count(DISTINCT length(vector)) FROM versions GROUP BY owner"
        " HAVING count(DISTINCT length(vector)) > 1"
    ),
    **{
        f"{table} of nobody": _ORPHANS.format(table)
        for table in ("heads", "versions", "journal", "messages", "feedback")
    },
}
"""What must not be found in a sound file, and how to look for it."""

_AT_ONCE = 100
"""Owners that are counted in one statement; between two, other threads have their turn."""


@dataclass(frozen=True)
class _Cached:
    owner: int
    """The owner's number: another one after a `forget`."""
    revision: int
    index: Index


class SqliteStore:
    """The Store contract in one file (write-ahead log).

    One connection, used by one thread at a time. Writers take the file's lock at the start of
    their transaction, so that what they read in it is still true when they write. A killed
    process leaves nothing of its transaction. Every write counts its owner's revision up; an
    index reads only what changed since the revision it has seen.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 30.0, power_safe: bool = False
    ) -> None:
        """Open or create the file. timeout: seconds to wait for other writers.

        What a transaction wrote survives the death of the process; with power_safe it is also on
        the disk when the transaction ends, which makes each wait for the disk.
        """
        self._path = Path(path).expanduser()
        self._connection = connect(self._path, timeout, power_safe)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._depth = 0
        self._wipe_log = False
        self._indexes: IndexCache[_Cached] = IndexCache()
        self._touched: dict[Owner, tuple[int, int]] = {}
        """Number and revision of those written to in this transaction, since it was last read."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See Store.transaction."""
        with self._lock:
            depth = self._depth
            self._run(f"SAVEPOINT nested_{depth}" if depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self._run(f"RELEASE nested_{depth}" if depth else "COMMIT")
            except BaseException:
                self._indexes.clear()  # they may have seen what is now taken back
                self._wipe_log &= bool(depth)
                with suppress(StoreError):  # the reason for it matters more, and is raised
                    self._run(f"ROLLBACK TO nested_{depth}" if depth else "ROLLBACK")
                    if depth:
                        self._run(f"RELEASE nested_{depth}")
                raise
            finally:
                self._depth = depth
                self._touched.clear()
            if self._wipe_log and not depth:
                self._empty_log()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The transaction around one write: the outer one, where there is one.

        A write checks all before it changes anything, so it has nothing to take back by itself.
        """
        if self._depth:
            yield
        else:
            with self.transaction():
                yield

    def put(self, entry: Entry, vector: Vector) -> None:
        """See Store.put."""
        vector = codec.clean_vector(vector).astype(_FLOAT32)
        with self._writing():
            owner, _ = self._number(entry.owner)
            last = self._last_version(owner, entry.id)
            entry = codec.clean_entry(entry, last)
            self._check_size(owner, entry.id, vector)
            body = codec.pack(codec.entry_to_json(entry))
            owner, revision = self._touch(entry.owner)
            key = (owner, entry.id)
            if entry.version <= last:
                self._run(
                    "DELETE FROM versions WHERE owner = ? AND id = ? AND version >= ?",
                    *(*key, entry.version),
                )
            self._run(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
                *(*key, entry.version, codec.pack(entry.speaker), packed(entry)),
                *(body, vector.tobytes()),
            )
            self._run(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
                *(*key, entry.version, entry.superseded is None, revision),
            )

    def remove(self, owner: Owner, entry_id: str) -> None:
        """See Store.remove."""
        with self._writing():
            if not self._last_version(self._number(owner)[0], entry_id):
                raise UnknownEntry(f"no entry {entry_id!r} of {owner}")
            number, revision = self._touch(owner)
            self._run("DELETE FROM versions WHERE owner = ? AND id = ?", number, entry_id)
            self._run(
                "UPDATE heads SET version = 0, current = 0, revision = ?"
                " WHERE owner = ? AND id = ?",
                *(revision, number, entry_id),
            )

    def get(self, owner: Owner, entry_id: str) -> Entry:
        """See Store.get."""
        return self._bodies(owner, entry_id)[-1]

    def entries(self, owner: Owner, superseded: bool = False) -> list[Entry]:
        """See Store.entries."""
        rows = self._run(
            "SELECT body FROM heads JOIN versions USING (owner, id, version)"
            " WHERE owner = (SELECT number FROM owners WHERE key = ?) AND current >= ? ORDER BY id",
            *(codec.owner_key(owner), not superseded),
        )
        return [codec.entry_from_json(codec.unpack(body), owner) for (body,) in rows]

    def versions(self, owner: Owner, entry_id: str) -> list[Entry]:
        """See Store.versions."""
        return codec.line_of(self._bodies(owner, entry_id))

    def vector(self, owner: Owner, entry_id: str, version: int | None = None) -> Vector:
        """See Store.vector."""
        rows = self._run(
            "SELECT vector FROM versions WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            " AND id = ? AND version = coalesce(?, version) ORDER BY version DESC LIMIT 1",
            *(codec.owner_key(owner), entry_id, version),
        )
        if not rows:
            raise UnknownEntry(f"no entry {entry_id!r} (version {version or 'any'}) of {owner}")
        return np.frombuffer(rows[0][0], _FLOAT32)

    def index(self, owner: Owner) -> Index:
        """See Store.index."""
        with self._lock:
            cached = self._indexes.get(owner)
            if cached and (cached.owner, cached.revision) == self._number(owner):
                return cached.index
            self._touched.clear()  # what is written from now on is not in this index
            with self._one_view():
                fresh = self._refreshed(owner, cached)
            self._indexes.put(owner, fresh)
            return fresh.index

    def add_message(self, message: Message) -> None:
        """See Store.add_message."""
        message = codec.clean_message(message)
        body = codec.pack(codec.message_to_json(message))
        with self._writing():
            number, _ = self._touch(message.owner)
            self._run(
                "INSERT INTO messages (owner, id, state, body) VALUES (?, ?, ?, ?)",
                *(number, message.id, message.state, body),
            )

    def messages(self, owner: Owner, state: MessageState | None = None) -> list[Message]:
        """See Store.messages."""
        # The index of what waits is only used where the query says that it waits.
        some = "" if state is None else " AND state = ?"
        some += " AND state != 'done'" if state not in (None, "done") else ""
        rows = self._run(
            "SELECT body FROM messages WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            f"{some} ORDER BY number",
            *(codec.owner_key(owner), *([state] if state else [])),
        )
        return [codec.message_from_json(codec.unpack(body), owner) for (body,) in rows]

    def message(self, owner: Owner, message_id: str) -> Message:
        """See Store.message."""
        rows = self._run(
            "SELECT body FROM messages WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            " AND id = ?",
            *(codec.owner_key(owner), message_id),
        )
        if not rows:
            raise UnknownRow(f"no message {message_id!r} of {owner}")
        return codec.message_from_json(codec.unpack(rows[0][0]), owner)

    def set_message(self, message: Message, was: Message | None = None) -> bool:
        """See Store.set_message."""
        message = codec.clean_message(message)
        with self._writing():
            known = self.message(message.owner, message.id)
            if was is not None and not codec.same_state(known, was):
                return False
            self._run(
                "UPDATE messages SET state = ?, body = ?"
                " WHERE owner = (SELECT number FROM owners WHERE key = ?) AND id = ?",
                *(message.state, codec.pack(codec.message_to_json(message))),
                *(codec.owner_key(message.owner), message.id),
            )
        return True

    def waiting(self) -> list[Owner]:
        """See Store.waiting."""
        rows = self._run(
            "SELECT key FROM owners WHERE number IN"
            " (SELECT owner FROM messages WHERE state != 'done') ORDER BY number"
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def add_journal(self, row: JournalRow) -> None:
        """See Store.add_journal."""
        row = codec.clean_row(row)
        body = codec.pack(codec.journal_to_json(row))
        with self._writing():
            number, _ = self._touch(row.owner)
            self._run(
                "INSERT INTO journal (owner, id, entry_id, state, body) VALUES (?, ?, ?, ?, ?)",
                *(number, row.id, row.entry_id, row.state, body),
            )

    def journal(self, owner: Owner, entry_id: str | None = None) -> list[JournalRow]:
        """See Store.journal."""
        rows = self._run(
            "SELECT body, state FROM journal"
            " WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            f"{'' if entry_id is None else ' AND entry_id = ?'} ORDER BY number",
            *(codec.owner_key(owner), *(() if entry_id is None else (entry_id,))),
        )
        return [codec.journal_from_json(codec.unpack(body), owner, state) for body, state in rows]

    def journal_page(
        self, owner: Owner, *, after: str = "", before: str = "", limit: int | None = None
    ) -> list[JournalRow]:
        """See Store.journal_page."""
        rows = self._run(
            "SELECT body, state FROM journal"
            " WHERE owner = (SELECT number FROM owners WHERE key = ?) AND id > ?"
            f"{' AND id < ?' if before else ''} ORDER BY id DESC LIMIT ?",
            *(codec.owner_key(owner), after, *((before,) if before else ())),
            -1 if limit is None else limit,
        )
        return [codec.journal_from_json(codec.unpack(body), owner, state) for body, state in rows]

    def journal_row(self, owner: Owner, journal_id: str) -> JournalRow:
        """See Store.journal_row."""
        rows = self._run(
            "SELECT body, state FROM journal"
            " WHERE owner = (SELECT number FROM owners WHERE key = ?) AND id = ?",
            *(codec.owner_key(owner), journal_id),
        )
        if not rows:
            raise UnknownRow(f"no journal row {journal_id!r} of {owner}")
        return codec.journal_from_json(codec.unpack(rows[0][0]), owner, rows[0][1])

    def mark(self, owner: Owner, journal_id: str, state: RowState) -> None:
        """See Store.mark."""
        with self._writing():
            self.journal_row(owner, journal_id)
            self._run(
                "UPDATE journal SET state = ?"
                " WHERE owner = (SELECT number FROM owners WHERE key = ?) AND id = ?",
                *(state, codec.owner_key(owner), journal_id),
            )

    def add_feedback(self, feedback: Feedback) -> None:
        """See Store.add_feedback."""
        feedback = codec.clean_feedback(feedback)
        with self._writing():
            number, _ = self._touch(feedback.owner)
            self._run(
                "INSERT INTO feedback (owner, id, body) VALUES (?, ?, ?)",
                *(number, feedback.id, codec.pack(codec.feedback_to_json(feedback))),
            )

    def feedback(self, owner: Owner) -> list[Feedback]:
        """See Store.feedback."""
        rows = self._run(
            "SELECT body FROM feedback WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            " ORDER BY number",
            codec.owner_key(owner),
        )
        return [codec.feedback_from_json(codec.unpack(body), owner) for (body,) in rows]

    def get_meta(self, key: str) -> str | None:
        """See Store.get_meta."""
        rows = self._run("SELECT value FROM meta WHERE key = ?", key)
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """See Store.set_meta."""
        with self._writing():
            self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def put_record(self, record: Record, new: bool = False) -> bool:
        """See Store.put_record."""
        record = codec.clean_record(record)
        owner = codec.owner_key(record.owner) if record.owner else None
        with self._writing():
            return bool(
                self._run(
                    f"INSERT OR {'IGNORE' if new else 'REPLACE'} INTO records"
                    " (kind, key, at, owner, body) VALUES (?, ?, ?, ?, ?) RETURNING 1",
                    *(record.kind, record.key, record.at.isoformat(), owner),
                    codec.pack(record.body),
                )
            )

    def record(self, kind: str, key: str) -> Record | None:
        """See Store.record."""
        found = self._records("kind = ? AND key = ?", kind, key)
        return found[0] if found else None

    def records(self, kind: str) -> list[Record]:
        """See Store.records."""
        return self._records("kind = ? ORDER BY key", kind)

    def _records(self, which: str, *values: object) -> list[Record]:
        rows = self._run(f"SELECT kind, key, at, owner, body FROM records WHERE {which}", *values)
        return [codec.record_of_row(row) for row in rows]

    def drop_records(
        self, kind: str, *, key: str | None = None, before: datetime | None = None
    ) -> int:
        """See Store.drop_records."""
        with self._writing():
            return len(
                self._run(
                    "DELETE FROM records WHERE kind = ? AND coalesce(key = ?, true)"
                    " AND coalesce(at < ?, true) RETURNING 1",
                    *(kind, key, as_utc(before).isoformat() if before else None),
                )
            )

    def owners(self, user_id: str | None = None) -> list[Owner]:
        """See Store.owners."""
        of_user = () if user_id is None else (codec.pack(user_id),)
        rows = self._run(
            f"SELECT key FROM owners{' WHERE user = ?' if of_user else ''} ORDER BY key", *of_user
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def counts(self, user_id: str | None = None) -> Counts:
        """See Store.counts. Of one owner at one moment, of all of them a few at a time."""
        of_user = () if user_id is None else (codec.pack(user_id),)
        where = " WHERE user = ?" if of_user else ""
        found = self._run(f"SELECT number FROM owners{where} ORDER BY number", *of_user)
        numbers = [number for (number,) in found]
        rows: list[Row] = []
        for start in range(0, len(numbers), _AT_ONCE):
            rows += self._run(IN_SQLITE, json.dumps(numbers[start : start + _AT_ONCE]))
        return Counts.of([("", "owners", len(numbers)), *rows])

    def holding(self, entry_id: str) -> list[Owner]:
        """See Store.holding."""
        rows = self._run(
            "SELECT key FROM owners WHERE number IN"
            " (SELECT owner FROM heads WHERE id = ? AND version > 0) ORDER BY number",
            entry_id,
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def problems(self) -> list[str]:
        """See Store.problems."""
        with self._lock, self._one_view():
            found = [text for (text,) in self._run("PRAGMA integrity_check") if text != "ok"]
            for what, sql in _CHECKS.items():
                found += [f"{what}: {row}" for row in self._run(sql)]
        return found

    def forget(self, owner: Owner) -> dict[str, int]:
        """See Store.forget. Deleted text is overwritten, in the file and in its log."""
        with self._writing():
            number, _ = self._number(owner)
            self._touched.clear()
            counts = {
                table: int(self._run(f"SELECT count(*) FROM {table} WHERE owner = ?", number)[0][0])
                for table in ("versions", "journal", "messages", "feedback")
            }
            counts["vectors"] = counts["versions"]
            ((counts["entries"],),) = self._run(
                "SELECT count(*) FROM heads WHERE owner = ? AND version > 0", number
            )
            for table in ("heads", "versions", "journal", "messages", "feedback"):
                self._run(f"DELETE FROM {table} WHERE owner = ?", number)
            gone = "DELETE FROM records WHERE owner = ? RETURNING 1"
            counts["records"] = len(self._run(gone, codec.owner_key(owner)))
            self._run("DELETE FROM owners WHERE number = ?", number)
            self._indexes.drop(owner)
            self._wipe_log = True
        return counts

    def fork(self, owner: Owner) -> RamStore:
        """See Store.fork."""
        twin = RamStore()
        with self._lock, self._one_view():
            for key, value in self._run("SELECT key, value FROM meta"):
                twin.set_meta(key, value)
            for body, vector in self._run(
                "SELECT body, vector FROM versions WHERE owner = ? ORDER BY id, version",
                self._number(owner)[0],
            ):
                entry = codec.entry_from_json(codec.unpack(body), owner)
                twin.put(entry, np.frombuffer(vector, _FLOAT32))
            for message in self.messages(owner):
                twin.add_message(message)
            for row in self.journal(owner):
                twin.add_journal(row)
            for feedback in self.feedback(owner):
                twin.add_feedback(feedback)
        return twin

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def close(self) -> None:
        """See Store.close."""
        with self._lock:
            self._connection.close()

    def _run(self, sql: str, *values: object) -> list[Row]:
        """All rows of one statement; the one place that talks to SQLite."""
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._path} was opened before this process was forked, and SQLite can't share "
                "a connection; open the store again in the new process"
            )
        with self._lock, storage_errors(self._path):
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _one_view(self) -> Iterator[None]:
        """All reads inside see the file at one moment."""
        if self._depth:
            yield
            return
        self._run("BEGIN")
        try:
            yield
        finally:
            self._run("COMMIT")

    def _number(self, owner: Owner) -> tuple[int, int]:
        """The owner's number and revision; 0 and 0 when there is nothing of theirs."""
        rows = self._run(
            "SELECT number, revision FROM owners WHERE key = ?", codec.owner_key(owner)
        )
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def _touch(self, owner: Owner) -> tuple[int, int]:
        """The owner's number and new revision, before a write of theirs."""
        if known := self._touched.get(owner):
            return known
        rows = self._run(
            "INSERT INTO owners (key, user, revision) VALUES (?, ?, 1)"
            " ON CONFLICT (key) DO UPDATE SET revision = revision + 1 RETURNING number, revision",
            *(codec.owner_key(owner), codec.pack(owner.user_id)),
        )
        self._touched[owner] = rows[0][0], rows[0][1]
        return rows[0][0], rows[0][1]

    def _last_version(self, owner: int, entry_id: str) -> int:
        rows = self._run("SELECT version FROM heads WHERE owner = ? AND id = ?", owner, entry_id)
        return rows[0][0] if rows else 0

    def _check_size(self, owner: int, entry_id: str, vector: Vector) -> None:
        """One owner's vectors have one length; otherwise no index could be built again."""
        rows = self._run(
            "SELECT length(vector) / 4 FROM versions WHERE owner = ? AND id != ? LIMIT 1",
            *(owner, entry_id),
        )
        if rows and rows[0][0] != len(vector):
            raise StoreError(
                f"expected a vector of {rows[0][0]} numbers, as before, got {len(vector)}: the "
                "embedder has changed; open the store with the one that wrote it, or `reindex` it"
            )

    def _bodies(self, owner: Owner, entry_id: str) -> list[Entry]:
        rows = self._run(
            "SELECT body FROM versions WHERE owner = (SELECT number FROM owners WHERE key = ?)"
            " AND id = ? ORDER BY version",
            *(codec.owner_key(owner), entry_id),
        )
        if not rows:
            raise UnknownEntry(f"no entry {entry_id!r} of {owner}")
        return [codec.entry_from_json(codec.unpack(body), owner) for (body,) in rows]

    def _refreshed(self, owner: Owner, cached: _Cached | None) -> _Cached:
        """The index as the file is now, from the changes since the cached one where possible."""
        number, revision = self._number(owner)
        if not cached or cached.owner != number:
            return _Cached(number, revision, self._loaded(owner, number))
        changed = self._run(
            "SELECT h.id, v.body, v.vector FROM heads h LEFT JOIN versions v ON h.current"
            " AND v.owner = h.owner AND v.id = h.id AND v.version = h.version"
            " WHERE h.owner = ? AND h.revision > ? ORDER BY h.id",
            *(number, cached.revision),
        )
        sizes = {len(vector) // 4 for _, _, vector in changed if vector is not None}
        if len(cached.index) and sizes - {cached.index.dim}:  # re-embedded meanwhile
            return _Cached(number, revision, self._loaded(owner, number))
        if not changed:
            return _Cached(number, revision, cached.index)
        index = cached.index.copy()
        for entry_id, body, vector in changed:
            if body is not None:
                entry = codec.entry_from_json(codec.unpack(body), owner)
                index.put(entry, np.frombuffer(vector, _FLOAT32))
            elif entry_id in index:
                index.drop(entry_id)
        return _Cached(number, revision, index)

    def _loaded(self, owner: Owner, number: int) -> Index:
        """The index of what the file has now; bodies are read when their entries are found."""
        rows = self._run(
            "SELECT v.id, v.speaker, v.words, v.body, v.vector FROM heads h"
            " JOIN versions v USING (owner, id, version) WHERE h.owner = ? AND h.current",
            number,
        )
        names = {name: codec.unpack(name) for name in {row[1] for row in rows}}
        return Index.load(
            ((entry_id, names[name], *rest) for entry_id, name, *rest in rows),
            lambda body: codec.entry_from_json(codec.unpack(body), owner),
        )

    def _empty_log(self) -> None:
        """The write-ahead log still holds what was erased; it is emptied after a `forget`."""
        self._wipe_log = False
        ((busy, _, _),) = self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise StoreError(
                f"the memories are erased, but another process is reading {self._path}, so their "
                "text is still in its -wal file; call forget again when that process is done"
            )

"""A store in PostgreSQL with pgvector, shared by threads, processes and machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Final

from memory_r1.errors import MissingExtra, StoreError, UnknownEntry, UnknownRow

try:
    from psycopg.errors import Diagnostic
except ImportError as err:  # psycopg itself, or the libpq it needs
    raise MissingExtra("a store in PostgreSQL", "psycopg", "postgres") from err

from memory_r1.store import Vector, codec
from memory_r1.store.cache import IndexCache
from memory_r1.store.counts import IN_POSTGRES, Counts
from memory_r1.store.index import Index, packed
from memory_r1.store.postgres_schema import Row, read_vector
from memory_r1.store.postgres_session import EVERYBODY, CachedIndex, Database, Session
from memory_r1.store.ram import RamStore
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

_TABLES: Final = ("heads", "versions", "journal", "messages", "feedback")
_OF_OWNER: Final = "owner = (SELECT number FROM owners WHERE key = %s)"
_READERS: Final = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid != pg_backend_pid() AND backend_type = 'client backend'"
    " AND (age(backend_xmin) >= age(%s::xid8::xid) OR age(backend_xid) >= age(%s::xid8::xid))"
)
"""Sessions that began before a transaction and may see what it deleted."""
_CHECKS: Final = {
    "an entry's last version is not the one noted": (
        "SELECT owner, id, version FROM heads h WHERE version != coalesce((SELECT max(version)"
        " FROM versions v WHERE v.owner = h.owner AND v.id = h.id), 0)"
    ),
    "a current version that is not the last": (
        "SELECT v.owner, v.id, v.version FROM versions v LEFT JOIN heads h USING (owner, id)"
        " WHERE current AND v.version IS DISTINCT FROM h.version"
    ),
    "versions with a gap": (
        "SELECT owner, id FROM versions GROUP BY owner, id HAVING max(version) != count(*)"
    ),
    "vectors of different lengths": (
        "SELECT owner, count(DISTINCT vector_dims(vector)) FROM versions GROUP BY owner"
        " HAVING count(DISTINCT vector_dims(vector)) > 1"
    ),
    **{
        f"{table} of nobody": (
            f"SELECT owner, id FROM {table} t"
            " WHERE NOT EXISTS (SELECT FROM owners WHERE number = t.owner)"
        )
        for table in _TABLES
    },
}
"""What must not be found in a sound store, and how to look for it."""

_META: Final = b"meta"
_RECORDS: Final = b"records"
"""What is nobody's, as keys beside the owners'."""

_OWNED: Final = (
    "WITH known AS (SELECT number FROM owners WHERE key = %(key)s), new AS (INSERT INTO owners"
    " (key, user_id, revision) SELECT %(key)s, %(user)s, 0 WHERE NOT EXISTS (SELECT FROM known)"
    " RETURNING number), owned AS (SELECT number FROM known UNION ALL SELECT number FROM new) "
)
_PUT: Final = (
    "WITH owned AS (INSERT INTO owners (key, user_id, revision) VALUES (%(key)s, %(user)s, 1)"
    " ON CONFLICT (key) DO UPDATE SET revision = owners.revision + 1 RETURNING number, revision),"
    " later AS (DELETE FROM versions USING owned"
    " WHERE owner = number AND id = %(id)s AND version > %(version)s),"
    " before AS (UPDATE versions SET current = false FROM owned"
    " WHERE owner = number AND id = %(id)s AND version < %(version)s AND current),"
    " this AS (INSERT INTO versions (owner, id, version, current, body, speaker, words, vector)"
    " SELECT number, %(id)s, %(version)s, %(current)s, %(body)s, %(speaker)s, %(words)s,"
    " %(vector)s::vector FROM owned ON CONFLICT (owner, id, version) DO UPDATE"
    " SET current = excluded.current, body = excluded.body, speaker = excluded.speaker,"
    " words = excluded.words, vector = excluded.vector)"
    " INSERT INTO heads (owner, id, version, revision)"
    " SELECT number, %(id)s, %(version)s, revision FROM owned ON CONFLICT (owner, id)"
    " DO UPDATE SET version = excluded.version, revision = excluded.revision"
)


class PostgresStore:
    """The Store contract in one schema of a PostgreSQL database.

    Readers never wait. A transaction takes an owner's lock when it first reads or writes something
    of theirs, so that what it read is still true when it writes; other owners' writers go on.
    Every write of an entry counts its owner's revision up; an index reads only what changed since
    the revision it has seen.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        """Open or create the tables. timeout: seconds to wait for other writers."""
        self._database = Database(url, timeout)
        self._run, self._hold = self._database.run, self._database.hold
        self._timeout = timeout
        self._guard = threading.Lock()  # of the indexes
        self._forgotten = 0
        """Owners so far: what was read before one was forgotten is not kept after it."""
        self._indexes: IndexCache[CachedIndex] = IndexCache()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See Store.transaction.

        Locks are taken in the order in which owners are asked for. A transaction over many owners
        begins with `owners()`, which takes the lock of all, or asks for them in one order, always
        the same; where two wait for each other nevertheless, PostgreSQL ends one of them, and that
        is a StoreError.
        """
        with self._database.session() as session:
            erased, forgotten = session.erased, self._forgotten
            gone = session.forgotten.copy()
            try:
                with self._database.transaction():
                    yield
            except BaseException:
                session.indexes.clear()  # they may have seen what is now taken back
                session.erased, session.forgotten = erased, gone
                raise
            if not session.depth:
                self._remember(session.indexes, forgotten)
                self._drop(session.forgotten)
                if session.erased:
                    self._clear_pages(session.erased)

    def put(self, entry: Entry, vector: Vector) -> None:
        """See Store.put."""
        vector = codec.clean_vector(vector)
        key = _key(entry.owner)
        with self._writing(key):
            # In an order, so that it is an index that is read: for any row of an owner PostgreSQL
            # would read the table until one comes, all of it for someone who is new.
            known = self._run(
                "SELECT coalesce(version, 0), (SELECT vector_dims(vector) FROM versions v WHERE"
                " v.owner = number AND v.id != %(id)s ORDER BY v.id LIMIT 1) FROM owners"
                " LEFT JOIN heads h ON h.owner = number AND h.id = %(id)s WHERE key = %(key)s",
                {"id": entry.id, "key": key},
            )
            last, size = known[0] if known else (0, None)
            entry = codec.clean_entry(entry, last)
            if size not in (None, len(vector)):
                raise StoreError(
                    f"expected a vector of {size} numbers, as before, got {len(vector)}: the "
                    "embedder has changed; open the store with the one that wrote it, or "
                    "`reindex` it"
                )
            self._run(
                _PUT,
                {
                    **_owner_row(entry.owner),
                    "id": entry.id,
                    "version": entry.version,
                    "current": entry.superseded is None,
                    "body": _pack(codec.entry_to_json(entry)),
                    "speaker": entry.speaker.encode("utf-8", "surrogatepass"),
                    "words": packed(entry),
                    "vector": vector,
                },
            )

    def remove(self, owner: Owner, entry_id: str) -> None:
        """See Store.remove."""
        key = _key(owner)
        with self._writing(key):
            removed = self._run(
                "WITH owned AS (UPDATE owners SET revision = revision + 1 WHERE key = %(key)s"
                " RETURNING number, revision), gone AS (DELETE FROM versions USING owned"
                " WHERE owner = number AND id = %(id)s)"
                " UPDATE heads SET version = 0, revision = owned.revision FROM owned"
                " WHERE owner = number AND id = %(id)s AND version > 0 RETURNING 1",
                {"key": key, "id": entry_id},
            )
            if not removed:
                raise UnknownEntry(f"no entry {entry_id!r} of {owner}")

    def get(self, owner: Owner, entry_id: str) -> Entry:
        """See Store.get."""
        return self._bodies(owner, entry_id)[-1]

    def entries(self, owner: Owner, superseded: bool = False) -> list[Entry]:
        """See Store.entries."""
        rows = self._of(
            owner,
            f"SELECT body FROM heads JOIN versions USING (owner, id, version) WHERE {_OF_OWNER}"
            f"{'' if superseded else ' AND current'} ORDER BY id",
        )
        return [codec.entry_from_json(codec.unpack(body), owner) for (body,) in rows]

    def versions(self, owner: Owner, entry_id: str) -> list[Entry]:
        """See Store.versions."""
        return codec.line_of(self._bodies(owner, entry_id))

    def vector(self, owner: Owner, entry_id: str, version: int | None = None) -> Vector:
        """See Store.vector."""
        rows = self._of(
            owner,
            f"SELECT vector FROM versions WHERE {_OF_OWNER} AND id = %s"
            " AND version = coalesce(%s, version) ORDER BY version DESC LIMIT 1",
            *(entry_id, version),
        )
        if not rows:
            raise UnknownEntry(f"no entry {entry_id!r} (version {version or 'any'}) of {owner}")
        return read_vector(rows[0][0])

    def index(self, owner: Owner) -> Index:
        """See Store.index."""
        with self._database.session() as session:
            forgotten = self._forgotten
            cached = self._cached(session, owner)
            if cached:
                rows = self._of(owner, "SELECT number, revision FROM owners WHERE key = %s")
                if rows == [(cached.owner, cached.revision)]:
                    return cached.index
            fresh = self._refreshed(owner, cached)
            if session.depth:
                session.indexes[owner] = fresh
            else:
                self._remember({owner: fresh}, forgotten)
            return fresh.index

    def add_message(self, message: Message) -> None:
        """See Store.add_message."""
        message = codec.clean_message(message)
        body = _pack(codec.message_to_json(message))
        self._append(
            f"message {message.id!r}",
            message.owner,
            "messages (owner, id, state, body) SELECT number, %(id)s, %(state)s, %(body)s",
            {"id": message.id, "state": message.state, "body": body},
        )

    def messages(self, owner: Owner, state: MessageState | None = None) -> list[Message]:
        """See Store.messages."""
        # The index of what waits is only used where the query says that it waits.
        some = "" if state is None else " AND state = %s"
        some += " AND state != 'done'" if state not in (None, "done") else ""
        rows = self._of(
            owner,
            f"SELECT body FROM messages WHERE {_OF_OWNER}{some} ORDER BY number",
            *([state] if state else []),
        )
        return [codec.message_from_json(codec.unpack(body), owner) for (body,) in rows]

    def message(self, owner: Owner, message_id: str) -> Message:
        """See Store.message."""
        rows = self._of(
            owner, f"SELECT body FROM messages WHERE {_OF_OWNER} AND id = %s", message_id
        )
        if not rows:
            raise UnknownRow(f"no message {message_id!r} of {owner}")
        return codec.message_from_json(codec.unpack(rows[0][0]), owner)

    def set_message(self, message: Message, was: Message | None = None) -> bool:
        """See Store.set_message."""
        message = codec.clean_message(message)
        key = _key(message.owner)
        with self._writing(key):
            known = self.message(message.owner, message.id)
            if was is not None and not codec.same_state(known, was):
                return False
            self._run(
                f"UPDATE messages SET state = %s, body = %s WHERE {_OF_OWNER} AND id = %s",
                (message.state, _pack(codec.message_to_json(message)), key, message.id),
            )
        return True

    def waiting(self) -> list[Owner]:
        """See Store.waiting."""
        self._hold(EVERYBODY)
        rows = self._run(
            "SELECT key FROM owners WHERE number IN"
            " (SELECT owner FROM messages WHERE state != 'done') ORDER BY number"
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def add_journal(self, row: JournalRow) -> None:
        """See Store.add_journal."""
        row = codec.clean_row(row)
        body = _pack(codec.journal_to_json(row))
        self._append(
            f"journal row {row.id!r}",
            row.owner,
            "journal (owner, id, entry_id, state, body)"
            " SELECT number, %(id)s, %(entry)s, %(state)s, %(body)s",
            {"id": row.id, "entry": row.entry_id, "state": row.state, "body": body},
        )

    def journal(self, owner: Owner, entry_id: str | None = None) -> list[JournalRow]:
        """See Store.journal."""
        rows = self._of(
            owner,
            f"SELECT body, state FROM journal WHERE {_OF_OWNER}"
            f"{'' if entry_id is None else ' AND entry_id = %s'} ORDER BY number",
            *(() if entry_id is None else (entry_id,)),
        )
        return [codec.journal_from_json(codec.unpack(body), owner, state) for body, state in rows]

    def journal_page(
        self, owner: Owner, *, after: str = "", before: str = "", limit: int | None = None
    ) -> list[JournalRow]:
        """See Store.journal_page."""
        rows = self._of(
            owner,
            f"SELECT body, state FROM journal WHERE {_OF_OWNER} AND id > %s"
            f"{' AND id < %s' if before else ''} ORDER BY id DESC LIMIT %s",
            *(after, *((before,) if before else ()), limit),
        )
        return [codec.journal_from_json(codec.unpack(body), owner, state) for body, state in rows]

    def journal_row(self, owner: Owner, journal_id: str) -> JournalRow:
        """See Store.journal_row."""
        rows = self._of(
            owner, f"SELECT body, state FROM journal WHERE {_OF_OWNER} AND id = %s", journal_id
        )
        if not rows:
            raise UnknownRow(f"no journal row {journal_id!r} of {owner}")
        return codec.journal_from_json(codec.unpack(rows[0][0]), owner, rows[0][1])

    def mark(self, owner: Owner, journal_id: str, state: RowState) -> None:
        """See Store.mark."""
        key = _key(owner)
        with self._writing(key):
            marked = self._run(
                f"UPDATE journal SET state = %s WHERE {_OF_OWNER} AND id = %s RETURNING 1",
                (state, key, journal_id),
            )
            if not marked:
                raise UnknownRow(f"no journal row {journal_id!r} of {owner}")

    def add_feedback(self, feedback: Feedback) -> None:
        """See Store.add_feedback."""
        feedback = codec.clean_feedback(feedback)
        self._append(
            f"feedback {feedback.id!r}",
            feedback.owner,
            "feedback (owner, id, body) SELECT number, %(id)s, %(body)s",
            {"id": feedback.id, "body": _pack(codec.feedback_to_json(feedback))},
        )

    def feedback(self, owner: Owner) -> list[Feedback]:
        """See Store.feedback."""
        rows = self._of(owner, f"SELECT body FROM feedback WHERE {_OF_OWNER} ORDER BY number")
        return [codec.feedback_from_json(codec.unpack(body), owner) for (body,) in rows]

    def get_meta(self, key: str) -> str | None:
        """See Store.get_meta."""
        self._hold(_META)
        rows = self._run("SELECT value FROM meta WHERE key = %s", (key,))
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """See Store.set_meta."""
        with self._writing(_META):
            self._run(
                "INSERT INTO meta (key, value) VALUES (%s, %s)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )

    def put_record(self, record: Record, new: bool = False) -> bool:
        """See Store.put_record."""
        record = codec.clean_record(record)
        owner = _key(record.owner) if record.owner else None
        replaced = "UPDATE SET at = excluded.at, owner = excluded.owner, body = excluded.body"
        with self._writing(_RECORDS):
            return bool(
                self._run(
                    "INSERT INTO records (kind, key, at, owner, body) VALUES (%s, %s, %s, %s, %s)"
                    f" ON CONFLICT (kind, key) DO {'NOTHING' if new else replaced}"
                    " RETURNING 1",
                    (record.kind, record.key, record.at, owner, _pack(record.body)),
                )
            )

    def record(self, kind: str, key: str) -> Record | None:
        """See Store.record."""
        found = self._kept("kind = %s AND key = %s", kind, key)
        return found[0] if found else None

    def records(self, kind: str) -> list[Record]:
        """See Store.records."""
        return self._kept("kind = %s ORDER BY key", kind)

    def _kept(self, which: str, *values: object) -> list[Record]:
        self._hold(_RECORDS)
        rows = self._run(f"SELECT kind, key, at, owner, body FROM records WHERE {which}", values)
        return [codec.record_of_row(row) for row in rows]

    def drop_records(
        self, kind: str, *, key: str | None = None, before: datetime | None = None
    ) -> int:
        """See Store.drop_records."""
        with self._writing(_RECORDS):
            return len(
                self._run(
                    "DELETE FROM records WHERE kind = %s AND coalesce(key = %s, true)"
                    " AND coalesce(at < %s, true) RETURNING 1",
                    (kind, key, as_utc(before) if before else None),
                )
            )

    def owners(self, user_id: str | None = None) -> list[Owner]:
        """See Store.owners."""
        self._hold(EVERYBODY)
        of_user = () if user_id is None else (_pack(user_id),)
        rows = self._run(
            f"SELECT key FROM owners{' WHERE user_id = %s' if of_user else ''} ORDER BY key",
            of_user,
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def counts(self, user_id: str | None = None) -> Counts:
        """See Store.counts. All at one moment."""
        self._hold(EVERYBODY)
        of_user = () if user_id is None else (_pack(user_id),)
        these = f"SELECT number FROM owners{' WHERE user_id = %s' if of_user else ''}"
        return Counts.of(self._run(f"WITH these AS ({these}), {IN_POSTGRES}", of_user))

    def holding(self, entry_id: str) -> list[Owner]:
        """See Store.holding."""
        self._hold(EVERYBODY)
        rows = self._run(
            "SELECT key FROM owners WHERE number IN"
            " (SELECT owner FROM heads WHERE id = %s AND version > 0) ORDER BY number",
            (entry_id,),
        )
        return [codec.owner_of_key(key) for (key,) in rows]

    def problems(self) -> list[str]:
        """See Store.problems."""
        return [f"{what}: {row}" for what, query in _CHECKS.items() for row in self._run(query)]

    def forget(self, owner: Owner) -> dict[str, int]:
        """See Store.forget. docs/postgres.md says what the server itself may keep for a while."""
        key = _key(owner)
        counts = {}
        with self.transaction():
            self._hold(key)
            for table in _TABLES:
                count = "count(*) FILTER (WHERE version > 0)" if table == "heads" else "count(*)"
                gone = f"WITH gone AS (DELETE FROM {table} WHERE {_OF_OWNER} RETURNING *)"
                ((counts[table],),) = self._run(f"{gone} SELECT {count} FROM gone", (key,))
            self._run("DELETE FROM owners WHERE key = %s", (key,))
            kept = self._run("DELETE FROM records WHERE owner = %s RETURNING 1", (key,))
            counts["records"] = len(kept)
            with self._database.session() as session:
                session.indexes.pop(owner, None)
                session.forgotten.add(owner)
                ((session.erased,),) = self._run("SELECT pg_current_xact_id()::text")
        counts["entries"] = counts.pop("heads")
        return {**counts, "vectors": counts["versions"]}

    def fork(self, owner: Owner) -> RamStore:
        """See Store.fork."""
        twin = RamStore()
        with self._database.one_view():
            for key, value in self._run("SELECT key, value FROM meta"):
                twin.set_meta(key, value)
            for body, vector in self._of(
                owner, f"SELECT body, vector FROM versions WHERE {_OF_OWNER} ORDER BY id, version"
            ):
                entry = codec.entry_from_json(codec.unpack(body), owner)
                twin.put(entry, read_vector(vector))
            for message in self.messages(owner):
                twin.add_message(message)
            for row in self.journal(owner):
                twin.add_journal(row)
            for feedback in self.feedback(owner):
                twin.add_feedback(feedback)
        return twin

    def close(self) -> None:
        """See Store.close."""
        self._database.close()

    def _of(self, owner: Owner, query: str, *values: object) -> list[Row]:
        """What a query finds of an owner, whose key is its first value."""
        key = _key(owner)
        with self._database.session():
            self._hold(key)
            return self._run(query, (key, *values))

    @contextmanager
    def _writing(self, key: bytes) -> Iterator[None]:
        """A transaction on one owner, or a part of the one that is open.

        What is written in it is one statement, which happens or doesn't: no savepoint is needed.
        """
        with self._database.session() as session:
            with nullcontext() if session.depth else self.transaction():
                self._hold(key)
                yield

    def _append(self, what: str, owner: Owner, into: str, values: dict[str, object]) -> None:
        """Write a row that is never replaced."""
        with self._writing(_key(owner)):
            added = self._run(
                f"{_OWNED} INSERT INTO {into} FROM owned"
                " ON CONFLICT (owner, id) DO NOTHING RETURNING 1",
                {**_owner_row(owner), **values},
            )
            if not added:
                raise StoreError(f"{what} of {owner} is there already; an id is given once")

    def _bodies(self, owner: Owner, entry_id: str) -> list[Entry]:
        rows = self._of(
            owner,
            f"SELECT body FROM versions WHERE {_OF_OWNER} AND id = %s ORDER BY version",
            entry_id,
        )
        if not rows:
            raise UnknownEntry(f"no entry {entry_id!r} of {owner}")
        return [codec.entry_from_json(codec.unpack(body), owner) for (body,) in rows]

    def _cached(self, session: Session, owner: Owner) -> CachedIndex | None:
        with self._guard:
            cached = session.indexes.get(owner) or self._indexes.get(owner)
        return cached if cached and cached.lost == self._database.lost else None

    def _remember(self, indexes: dict[Owner, CachedIndex], forgotten: int) -> None:
        """Keep indexes that were read when so many owners had been forgotten."""
        with self._guard:
            for owner, cached in indexes.items() if forgotten == self._forgotten else ():
                self._indexes.put(owner, cached)

    def _drop(self, owners: set[Owner]) -> None:
        with self._guard:
            self._forgotten += len(owners)
            for owner in owners:
                self._indexes.drop(owner)

    def _refreshed(self, owner: Owner, cached: CachedIndex | None) -> CachedIndex:
        """The index as the store is now, from the changes since the cached one where possible."""
        lost = self._database.lost
        rows = self._of(
            owner,
            "SELECT number, o.revision, h.id, speaker, words, body, vector"
            " FROM (SELECT number, revision FROM owners WHERE key = %s) o"
            " LEFT JOIN heads h ON h.owner = number AND h.revision > %s"
            " LEFT JOIN versions v ON current AND v.owner = h.owner AND v.id = h.id"
            " AND v.version = h.version ORDER BY h.id",
            cached.revision if cached else 0,
        )
        number, revision = rows[0][:2] if rows else (0, 0)
        if cached and cached.owner != number:
            return self._refreshed(owner, None)
        if cached and cached.revision >= revision:
            return cached
        rows = [row[2:] for row in rows if row[2] is not None]
        there = [row for row in rows if row[-1] is not None]

        def read(body: bytes) -> Entry:
            return codec.entry_from_json(codec.unpack(body), owner)

        if not cached:
            loaded = (
                (entry_id, speaker.decode("utf-8", "surrogatepass"), words, body, _bytes(vector))
                for entry_id, speaker, words, body, vector in there
            )
            return CachedIndex(number, revision, lost, Index.load(loaded, read))
        put = {row[0]: (read(row[3]), read_vector(row[4])) for row in there}
        sizes = {len(vector) for _, vector in put.values()}
        if len(cached.index) and sizes - {cached.index.dim}:
            return self._refreshed(owner, None)  # re-embedded meanwhile
        index = cached.index.copy()
        for entry_id, *_ in rows:
            if entry_id in put:
                index.put(*put[entry_id])
            elif entry_id in index:
                index.drop(entry_id)
        return CachedIndex(number, revision, lost, index)

    def _clear_pages(self, erased: str) -> None:
        """A deleted row stays in its page until nobody can see it and a VACUUM has passed."""
        said: list[str] = []
        with self._database.session() as session:
            heard = _collector(said)
            session.erased = ""
            session.connection.add_notice_handler(heard)
            try:
                deadline = time.monotonic() + self._timeout
                while seen := self._run(_READERS, (erased, erased)):
                    if time.monotonic() > deadline:
                        said += [
                            f"session {pid} of the server may still read it" for (pid,) in seen
                        ]
                        break
                    time.sleep(0.01)
                self._run("VACUUM (INDEX_CLEANUP ON) owners, records, " + ", ".join(_TABLES))
            except StoreError as err:
                said.append(str(err))
            finally:
                session.connection.remove_notice_handler(heard)
        if said:
            raise StoreError(
                "the memories are erased, but their text is still in the pages of the tables "
                f"({'; '.join(said)}); call forget again, or leave it to the server's autovacuum"
            )


def _bytes(vector: bytes) -> bytes:
    """A vector as an index takes it, from what PostgreSQL sends."""
    return read_vector(vector).astype("<f4", copy=False).tobytes()


def _collector(said: list[str]) -> Callable[[Diagnostic], None]:
    def collect(notice: Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            said.append(notice.message_primary or "")

    return collect


def _pack(value: object) -> bytes:
    """What `codec.unpack` reads, in bytes: PostgreSQL's text has no NUL."""
    packed = codec.pack(value)
    return packed.encode() if isinstance(packed, str) else packed


def _key(owner: Owner) -> bytes:
    key = codec.owner_key(owner)
    return key.encode() if isinstance(key, str) else key


def _owner_row(owner: Owner) -> dict[str, object]:
    """What the row of an owner is made of."""
    return {"key": _key(owner), "user": _pack(owner.user_id)}

"""threads -> the connections, transactions and locks of one PostgreSQL schema."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from memory_r1.errors import StoreError
from memory_r1.store.index import Index
from memory_r1.store.postgres_schema import (
    Address,
    Connection,
    Row,
    connect,
    lock_key,
    storage_errors,
)
from memory_r1.types import Owner

CONNECTIONS: Final = 8
"""How many threads of a process are served at once; the others wait for one of them."""
EVERYBODY: Final = b""
"""The key of all locks at once."""

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"


@dataclass(frozen=True)
class CachedIndex:
    """An owner's index, and what of the owner it has seen."""

    owner: int
    """The owner's number: another one after a `forget`."""
    revision: int
    lost: int
    """`Database.lost` when it was read."""
    index: Index


@dataclass
class Session:
    """A connection while one thread uses it."""

    connection: Connection
    depth: int = 0
    """Blocks of `transaction` that are open."""
    held: set[bytes] = field(default_factory=set)
    """Keys whose locks the transaction has."""
    indexes: dict[Owner, CachedIndex] = field(default_factory=dict)
    """Those that may know what only this transaction sees."""
    erased: str = ""
    """Number of the transaction, if it has deleted what is to leave the disk as well."""
    forgotten: set[Owner] = field(default_factory=set)
    """Whose everything it has deleted."""

    @property
    def begun(self) -> bool:
        """Whether the server is in a transaction: from the first statement of a block on."""
        return self.connection.info.transaction_status != TransactionStatus.IDLE


class Database:
    """One schema of a database, for all threads of a process.

    A thread has a connection to itself for one statement, or for one transaction.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._address = Address.read(url)
        self._timeout = timeout
        self._process = os.getpid()
        self._here = threading.local()
        self._free = threading.Semaphore(CONNECTIONS)
        self._guard = threading.Lock()  # of what follows
        self._idle: list[Connection] = [connect(self._address, timeout)]
        self._closed = False
        self.lost = 0
        """Connections lost so far: a server that came back may have lost what was seen before."""

    @contextmanager
    def session(self) -> Iterator[Session]:
        """The connection of this thread's transaction, or any for as long as this is open."""
        if os.getpid() != self._process:
            raise StoreError(
                f"{self._address.name} was opened before this process was forked, and processes "
                "can't share a connection; open the store again in the new process"
            )
        if session := getattr(self._here, "session", None):
            yield session
            return
        if not self._free.acquire(timeout=self._timeout):
            raise StoreError(
                f"{self._address.name}: all {CONNECTIONS} connections of this process are in use; "
                "keep transactions short"
            )
        try:
            session = self._here.session = Session(self._taken())
            try:
                yield session
            finally:
                self._here.session = None
                self._give_back(session)
        finally:
            self._free.release()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside happen, or none. Nested: a part that can fail by itself."""
        with self.session() as session:
            depth, held = session.depth, session.held.copy()
            session.depth += 1
            try:
                if depth:
                    self.run(f"SAVEPOINT nested_{depth}", None)
                yield
                if depth:
                    self.run(f"RELEASE nested_{depth}", None)
                else:
                    self._commit(session)
            except BaseException:
                with suppress(StoreError):  # the reason for it matters more, and is raised
                    if session.begun:
                        self.run(f"ROLLBACK TO nested_{depth}" if depth else "ROLLBACK", None)
                session.held = held  # with the statements go the locks
                raise
            finally:
                session.depth = depth
                if not depth:
                    session.held = set()

    @contextmanager
    def one_view(self) -> Iterator[None]:
        """All reads inside see the database at one moment."""
        with self.session() as session:
            if session.depth:  # it has, or takes, the lock of whom it reads
                yield
                return
            self.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", None)
            try:
                yield
            finally:
                self.run("ROLLBACK", None)

    def hold(self, key: bytes) -> None:
        """In a transaction: whoever holds this key in another one waits until this one is done.

        Who holds a key shares in the lock of EVERYBODY. So who takes that one alone, at the start
        of a transaction, holds all keys. Later it can't be had: two who share in it and both want
        it alone would wait for each other.
        """
        with self.session() as session:
            held = session.held
            if not session.depth or key in held or EVERYBODY in held or (key == EVERYBODY and held):
                return
            shared = f"SELECT pg_advisory_xact_lock_shared({self._lock(EVERYBODY)}); "
            if held or key == EVERYBODY:
                shared = ""
            self.run(f"{shared}SELECT pg_advisory_xact_lock({self._lock(key)})", None)
            held.add(key)

    def run(
        self, query: str, values: Sequence[object] | Mapping[str, object] | None = ()
    ) -> list[Row]:
        """All rows of one statement; the one place that talks to PostgreSQL.

        values: None for statements whose rows nobody needs; several of them are one message.
        """
        with self.session() as session, storage_errors(self._address.name):
            connection = session.connection
            try:
                begin = session.depth and not session.begun
                if values is None:
                    connection.execute(f"{_BEGIN}; {query}" if begin else query, prepare=False)
                    return []
                if begin:
                    connection.execute(_BEGIN)
                cursor = connection.execute(query, values, binary=True)
                return cursor.fetchall() if cursor.description else []
            except psycopg.Error as err:
                if not connection.closed:
                    raise
                said = str(err).partition("\n")[0]
                raise StoreError(
                    f"the connection to {self._address.name} was lost ({said}); nothing of this "
                    "transaction was kept, and the next call connects again"
                ) from err

    def close(self) -> None:
        """Let go of all connections; one that is in use, when it is done."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _commit(self, session: Session) -> None:
        if session.connection.info.transaction_status == TransactionStatus.INERROR:
            raise StoreError(
                f"{self._address.name}: a statement of this transaction failed, and the error was "
                "caught inside it; nothing of it was kept"
            )
        if session.begun:
            try:
                self.run("COMMIT", None)
            except StoreError as err:
                if not session.connection.closed:
                    raise
                raise StoreError(
                    f"the connection to {self._address.name} was lost while a transaction was "
                    "ending; it may or may not be kept: look before you do it again"
                ) from err

    def _lock(self, key: bytes) -> int:
        return lock_key(b"owner", self._address.schema.encode(), key)

    def _taken(self) -> Connection:
        """A connection that was not lost meanwhile."""
        while True:
            with self._guard:
                if self._closed:
                    raise StoreError(f"{self._address.name}: the store was closed; open it again")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return connect(self._address, self._timeout)
            if _is_alive(connection):
                return connection
            self._drop(connection)

    def _give_back(self, session: Session) -> None:
        with self._guard:
            reusable = not self._closed and not session.begun
            if reusable:
                self._idle.append(session.connection)
        if not reusable:
            self._drop(session.connection)

    def _drop(self, connection: Connection) -> None:
        connection.close()
        with self._guard:
            self.lost += 1


def _is_alive(connection: Connection) -> bool:
    """Nothing is expected on an idle connection: what has come is the server's goodbye."""
    if connection.closed:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return not selector.select(0)

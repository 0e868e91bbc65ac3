"""path -> a connection to a SQLite file of ours, with today's schema."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from memory_r1.errors import StoreError

APPLICATION_ID = 0x6D656D31
"""Written into the file's header ("mem1"), so that other programs' files are left alone."""


def _first(connection: sqlite3.Connection) -> None:
    """Owners have numbers that are never given twice, so that a cached index can't outlive them.

    `heads` says which version of an id is the last (0: removed) and at which revision of its
    owner that became so: what an index has to read again. Bodies are JSON (codec.py).
    """
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE owners (number INTEGER PRIMARY KEY AUTOINCREMENT, key UNIQUE NOT NULL,"
        " user NOT NULL, revision INTEGER NOT NULL DEFAULT 0)",
        "CREATE INDEX owners_by_user ON owners (user)",
        "CREATE TABLE heads (owner INTEGER NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,"
        " current INTEGER NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (owner, id))",
        "CREATE INDEX heads_by_revision ON heads (owner, revision)",
        "CREATE INDEX heads_by_id ON heads (id)",
        "CREATE TABLE versions (owner INTEGER NOT NULL, id TEXT NOT NULL,"
        " version INTEGER NOT NULL, speaker NOT NULL, words BLOB NOT NULL, body NOT NULL,"
        " vector BLOB NOT NULL,"
        " PRIMARY KEY (owner, id, version))",
        "CREATE TABLE journal (number INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL,"
        " id TEXT NOT NULL, entry_id TEXT NOT NULL, state TEXT NOT NULL, body NOT NULL,"
        " UNIQUE (owner, id))",
        "CREATE INDEX journal_by_entry ON journal (owner, entry_id)",
        "CREATE TABLE messages (number INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL,"
        " id TEXT NOT NULL, state TEXT NOT NULL, body NOT NULL, UNIQUE (owner, id))",
        "CREATE INDEX messages_waiting ON messages (owner, number) WHERE state != 'done'",
        "CREATE TABLE feedback (number INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL,"
        " id TEXT NOT NULL, body NOT NULL, UNIQUE (owner, id))",
    ):
        connection.execute(statement)


def _second(connection: sqlite3.Connection) -> None:
    """Records are found by their key; `owner` is the key of whose they are, not a number: keeping
    one makes nobody an owner."""
    for statement in (
        "CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, at TEXT NOT NULL, owner,"
        " body NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID",
        "CREATE INDEX records_by_time ON records (kind, at)",
        "CREATE INDEX records_by_owner ON records (owner) WHERE owner IS NOT NULL",
    ):
        connection.execute(statement)


MIGRATIONS: Sequence[Callable[[sqlite3.Connection], None]] = (_first, _second)
"""Each takes a file from the schema of its position to the next; applied once, never edited."""


def connect(path: Path, timeout: float, power_safe: bool = False) -> sqlite3.Connection:
    """Open or create the file and bring its schema up to date.

    timeout: seconds to wait for other writers. power_safe: every commit waits for the disk.
    StoreError when it can't be used as a store.
    """
    if not path.parent.is_dir():
        raise StoreError(
            f"can't open {path}: there is no folder {path.parent}; create it, or choose another"
        )
    if path.is_dir():
        raise StoreError(f"can't open {path}: it is a folder; name a file in it")
    with storage_errors(path):
        _create_private(path)
        connection = sqlite3.connect(
            path, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        try:
            _refuse_other_files(connection, path)
            _use_wal(connection, timeout)
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA synchronous = {'FULL' if power_safe else 'NORMAL'}")
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _create_private(path: Path) -> None:
    """A new file is its owner's alone; SQLite gives the files beside it the same permissions."""
    with suppress(OSError):  # it is there, or SQLite says better why it can't be
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite reports into a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as err:
        name = getattr(err, "sqlite_errorname", "")
        raise StoreError(f"{path}: {err}; {_advice(name, str(err))}") from err
    except UnicodeEncodeError as err:
        raise StoreError(f"{path}: an id or key is not valid Unicode ({err}); use another") from err


def _advice(name: str, message: str) -> str:
    match name.removeprefix("SQLITE_").split("_")[0]:
        case "BUSY" | "LOCKED":
            return "another process has kept it locked; try again when that one is done"
        case "NOTADB":
            return "this is another kind of file; choose another path"
        case "CORRUPT":
            return "the file is damaged; restore a copy, or save what `sqlite3 FILE .recover` finds"
        case "READONLY" | "CANTOPEN" | "PERM":
            return "file and folder must be writable for this user"
        case "FULL" | "IOERR":
            return "check the disk; nothing of this transaction was kept"
        case _ if "closed" in message:
            return "the store was closed; open it again"
    return "nothing of this transaction was kept"


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_other_files(connection: sqlite3.Connection, path: Path) -> None:
    """Before anything is written: an empty file, or one of ours that isn't newer than us."""
    connection.execute("BEGIN")  # both at one moment: another process may be creating the file
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    connection.execute("COMMIT")
    if application != APPLICATION_ID and (application or tables):
        raise StoreError(
            f"{path} is the SQLite database of another program; choose another path for the store"
        )
    if _version(connection) > len(MIGRATIONS):
        raise StoreError(
            f"{path} has schema {_version(connection)}, this memory-r1 knows schemas up to "
            f"{len(MIGRATIONS)}; upgrade it with:  pip install --upgrade memory-r1"
        )


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Readers never wait for a writer. SQLite doesn't wait itself when two processes switch."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as err:
            if err.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_version(connection), len(MIGRATIONS)):
            MIGRATIONS[number](connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise

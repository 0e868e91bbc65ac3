"""URL -> connections to a PostgreSQL schema of ours, with today's tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import psycopg
from psycopg import errors, sql
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format

from memory_r1.errors import StoreError
from memory_r1.store import Vector

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]

DEFAULT_SCHEMA: Final = "memory_r1"
"""The schema of the database that holds the tables, unless the URL has ?schema=NAME."""

_EXPECTED = (
    "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME, options as libpq knows "
    "them, and special characters in USER and PASSWORD written as %40 for @, %3A for :, %2F for /"
)
_OPTIONS: Final = {
    "connect_timeout": "10",
    "client_encoding": "UTF8",
    "fallback_application_name": "memory-r1",
}


@dataclass(frozen=True)
class Address:
    """Which schema of which database. Only `name` is shown to anybody."""

    name: str
    """The URL without its password."""
    schema: str
    options: Mapping[str, Any] = field(repr=False)
    """What libpq is given: the password too."""

    @classmethod
    def read(cls, url: str) -> Address:
        """Take a URL apart. StoreError, which repeats nothing of it, when it isn't one."""
        base, _, query = url.partition("?")
        parts = [part for part in query.split("&") if part]
        schemas = [unquote(part[7:]) for part in parts if part.startswith("schema=")]
        rest = "&".join(part for part in parts if not part.startswith("schema="))
        schema = schemas[-1] if schemas else DEFAULT_SCHEMA
        # A password with a bare @ : or / would be read as a host or port, and libpq repeats those.
        authority = base.partition("://")[2].partition("/")[0]
        try:
            options = conninfo_to_dict(f"{base}?{rest}" if rest else base)
        except psycopg.ProgrammingError:
            raise StoreError(f"this is not the URL of a PostgreSQL database; {_EXPECTED}") from None
        ports = str(options.get("port", "")).replace(",", "")
        if (
            url.count("@") != authority.count("@")
            or url.count("@") > 1
            or not f"{ports}0".isdigit()
        ):
            raise StoreError(f"this is not the URL of a PostgreSQL database; {_EXPECTED}")
        if not 0 < len(schema.encode("utf-8", "replace")) < 64 or "\0" in schema:
            raise StoreError(f"{schema!r} can't be the name of a schema; choose one of 1..63 bytes")
        user, host = options.get("user"), options.get("hostaddr") or options.get("host", "")
        name = f"postgresql://{f'{user}@' if user else ''}{host}{f':{ports}' if ports else ''}"
        name += f"/{options.get('dbname', '')}"
        name += "" if schema == DEFAULT_SCHEMA else f"?schema={schema}"
        return cls(name, schema, {**_OPTIONS, **options})


def lock_key(*parts: bytes) -> int:
    """A name of anything as the number of an advisory lock: 64 bits, so that two hardly meet."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (b"memory-r1", *parts):
        digest.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(digest.digest(), "big", signed=True)


_MIGRATING: Final = lock_key(b"migrating")


def _first(connection: Connection) -> None:
    """As in SQLite (schema.py): `heads` says which version of an id is the last (0: removed).

    Bodies and keys are bytes, since PostgreSQL's text has no NUL. Ids are text that sorts by its
    code points. `current` marks a last version that isn't superseded, beside its vector, so that
    an index of vectors can leave out all others. `words` is what columns.py packs of a body: with
    it an `Index` is loaded without reading any text.
    """
    for statement in (
        "CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL)",
        "CREATE TABLE owners (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " key bytea UNIQUE NOT NULL, user_id bytea NOT NULL, revision bigint NOT NULL)",
        "CREATE INDEX owners_by_user ON owners (user_id)",
        'CREATE TABLE heads (owner bigint NOT NULL, id text COLLATE "C" NOT NULL,'
        " version integer NOT NULL, revision bigint NOT NULL, PRIMARY KEY (owner, id))",
        "CREATE INDEX heads_by_revision ON heads (owner, revision)",
        "CREATE INDEX heads_by_id ON heads (id)",
        'CREATE TABLE versions (owner bigint NOT NULL, id text COLLATE "C" NOT NULL,'
        " version integer NOT NULL, current boolean NOT NULL, body bytea NOT NULL,"
        " speaker bytea NOT NULL, words bytea NOT NULL, vector vector NOT NULL,"
        " PRIMARY KEY (owner, id, version))",
        *(
            f"CREATE TABLE {table} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            f' owner bigint NOT NULL, id text COLLATE "C" NOT NULL, {columns}'
            " body bytea NOT NULL, UNIQUE (owner, id))"
            for table, columns in (
                ("journal", 'entry_id text COLLATE "C" NOT NULL, state text NOT NULL,'),
                ("messages", "state text NOT NULL,"),
                ("feedback", ""),
            )
        ),
        "CREATE INDEX journal_by_entry ON journal (owner, entry_id)",
        "CREATE INDEX messages_waiting ON messages (owner, number) WHERE state != 'done'",
    ):
        connection.execute(statement)


def _second(connection: Connection) -> None:
    """As in SQLite (schema.py)."""
    for statement in (
        'CREATE TABLE records (kind text NOT NULL, key text COLLATE "C" NOT NULL,'
        " at timestamptz NOT NULL, owner bytea, body bytea NOT NULL, PRIMARY KEY (kind, key))",
        "CREATE INDEX records_by_time ON records (kind, at)",
        "CREATE INDEX records_by_owner ON records (owner) WHERE owner IS NOT NULL",
    ):
        connection.execute(statement)


MIGRATIONS: Sequence[Callable[[Connection], None]] = (_first, _second)
"""Each takes the tables from the schema of its position to the next; applied once, never edited."""


def connect(address: Address, timeout: float) -> Connection:
    """Connect, and bring the tables up to date.

    timeout: seconds to wait for other writers. StoreError when it can't be used as a store.
    """
    with storage_errors(address.name):
        connection = psycopg.connect(**address.options, autocommit=True)
        try:
            if _version(connection, address) < len(MIGRATIONS):
                _migrate(connection, address)
            connection.adapters.register_dumper(np.ndarray, _VectorDumper)
            _use(connection, address, timeout)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Turn what PostgreSQL reports into a StoreError that says what to do."""
    try:
        yield
    except psycopg.Error as err:
        said = err.diag.message_primary or str(err).partition("\n")[0]
        raise StoreError(f"{name}: {said}; {_advice(err)}") from err
    except UnicodeEncodeError as err:
        raise StoreError(f"{name}: an id or key is not valid Unicode ({err}); use another") from err


def read_vector(column: bytes) -> Vector:
    """A vector as pgvector sends it (`vector_send`): two lengths, then big-endian numbers."""
    return np.frombuffer(column, ">f4", offset=4).astype(np.float32)


class _VectorDumper(Dumper):
    """(d,) float32 -> what `vector_recv` takes; with no type of its own, PostgreSQL infers it."""

    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        return len(obj).to_bytes(2, "big") + bytes(2) + obj.astype(">f4").tobytes()


def _advice(err: psycopg.Error) -> str:
    match err:
        case errors.LockNotAvailable():
            return "another process has kept it locked; try again when that one is done"
        case errors.DeadlockDetected():
            return (
                "two transactions waited for each other; nothing of this one was kept, do it again"
            )
        case errors.InFailedSqlTransaction():
            return "it failed before; nothing of this transaction is kept"
        case errors.InsufficientPrivilege():
            return "ask who runs the database for this right, or use another user"
        case errors.ReadOnlySqlTransaction():
            return "this server only reads; use the URL of its primary"
        case errors.DiskFull() | errors.OutOfMemory() | errors.TooManyConnections():
            return "check the server; nothing of this transaction was kept"
        case errors.DataError() if err.sqlstate is None:
            return "use another id or key"
        case psycopg.OperationalError() if err.sqlstate is None:
            return "check that the server runs, and the URL's host, user, password and database"
    return "nothing of this transaction was kept"


def _version(connection: Connection, address: Address) -> int:
    """The schema of the tables; 0 when there are none. StoreError when they aren't ours."""
    tables = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname = %s AND relkind IN ('r', 'p', 'v', 'm', 'f')",
        (address.schema,),
    ).fetchall()
    if ("migrations",) not in tables or ("heads",) not in tables:
        if tables:
            raise StoreError(
                f"schema {address.schema!r} of {address.name} holds the tables of another program;"
                " choose another with ?schema=NAME"
            )
        return 0
    count = sql.SQL("SELECT coalesce(max(number), 0) FROM {}.migrations")
    found = connection.execute(count.format(sql.Identifier(address.schema))).fetchone()
    version = int(found[0]) if found else 0
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{address.name} has schema {version}, this memory-r1 knows schemas up to "
            f"{len(MIGRATIONS)}; upgrade it with:  pip install --upgrade memory-r1"
        )
    return version


def _migrate(connection: Connection, address: Address) -> None:
    """All in one transaction, by one process at a time."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        version = _version(connection, address)  # another process may have been faster
        if not _vector_schema(connection):
            _install_pgvector(connection, address)
        schema = sql.Identifier(address.schema)
        if not version:
            known = connection.execute(
                "SELECT FROM pg_namespace WHERE nspname = %s", (address.schema,)
            )
            if not known.fetchall():
                connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        path = sql.SQL("SET LOCAL search_path TO {}, {}")
        connection.execute(path.format(schema, sql.Identifier(_vector_schema(connection))))
        if not version:
            connection.execute(
                "CREATE TABLE migrations (number integer PRIMARY KEY,"
                " applied timestamptz NOT NULL DEFAULT now())"
            )
        for number in range(version, len(MIGRATIONS)):
            MIGRATIONS[number](connection)
            connection.execute("INSERT INTO migrations (number) VALUES (%s)", (number + 1,))


def _install_pgvector(connection: Connection, address: Address) -> None:
    try:
        connection.execute("CREATE EXTENSION vector WITH SCHEMA public")
    except (errors.UndefinedFile, errors.FeatureNotSupported) as err:
        raise StoreError(
            f"the server of {address.name} has no pgvector; install that on it "
            "(https://github.com/pgvector/pgvector), then open the store again"
        ) from err
    except errors.InsufficientPrivilege as err:
        raise StoreError(
            f"pgvector isn't switched on in {address.name}, and this user may not do it; have an "
            "administrator run there:  CREATE EXTENSION vector"
        ) from err


def _vector_schema(connection: Connection) -> str:
    """The schema pgvector's types are in; "" where it isn't switched on."""
    found = connection.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
        " WHERE extname = 'vector'"
    ).fetchone()
    return found[0] if found else ""


def _use(connection: Connection, address: Address, timeout: float) -> None:
    names = (address.schema, _vector_schema(connection))
    connection.execute(
        sql.SQL("SET search_path TO {}; SET lock_timeout = {}").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.Literal(max(1, round(timeout * 1000))),
        )
    )

"""Stores of any size for scale.py: some entries written by the application's code, then copied."""

from __future__ import annotations

import json
import os
import random
import resource
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from memory_layer import told

from memory_r1 import Memory
from memory_r1.embed import open_embedder
from memory_r1.store import new_id
from memory_r1.types import Add, Message, Turn

BLOCK = 100
"""Entries that are copied together."""
BASE = 40
"""Blocks that are written by the application's code, each as an owner of its own."""
PREFIX = 6
"""Leading digits of an id that all of a base have in common: 4.7 hours of UUIDv7's clock."""
HEAVY = "heavy"
SERVER = "MEMORY_R1_SCALE_SERVER"
"""Number of the server's first process, for those that are forked."""
Figures = dict[str, Any]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are forked here
EMBEDDER = open_embedder()


@dataclass(frozen=True)
class Place:
    """One store of one size."""

    kind: str
    size: int
    users: int
    folder: Path
    server: str = ""
    """URL of the PostgreSQL server."""
    whole: int = 0

    @property
    def location(self) -> str:
        """What `Memory` takes."""
        return self.at(f"scale_{self.size}")

    @property
    def base(self) -> str:
        """Where the blocks are that are copied."""
        return self.at("scale_base")

    def at(self, name: str) -> str:
        """A store beside it."""
        if self.kind == "sqlite":
            return str(self.folder / f"{name}.db")
        return f"{self.server}{'&' if '?' in self.server else '?'}schema={name}"

    def owners(self) -> list[tuple[str, int]]:
        """User and number of blocks of each: the heavy one first."""
        blocks = self.size // BLOCK
        heavy = max(1, blocks // 10)
        users = self.users or max(1, round((blocks - heavy) * BLOCK / 1000))
        light = np.diff(np.linspace(0, blocks - heavy, users + 1).astype(int))
        names = [f"user{number}" for number in range(users)]
        return [(HEAVY, heavy), *zip(names, map(int, light), strict=True)]

    def some(self, count: int, seed: int) -> list[str]:
        """Users with the usual number of entries."""
        users = [name for name, _ in self.owners()[1:]]
        return random.Random(seed).sample(users, min(count, len(users)))


def processor() -> float:
    """Seconds of a processor so far: of this process, its children and the PostgreSQL beside it."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        time.process_time()
        + children.ru_utime
        + children.ru_stime
        + sum(
            sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            for fields in _server_processes()
        )
    )


def _server_processes() -> Iterator[list[str]]:
    """The fields of /proc/PID/stat after the name; those who ended are in their parent's."""
    if not (server := os.environ.get(SERVER)):
        return
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if server in (path.parent.name, fields[1]):
                yield fields


@contextmanager
def measured(figures: Figures, name: str) -> Iterator[None]:
    """Seconds of a block: by the clock, and of processors."""
    wall, cpu = time.perf_counter(), processor()
    yield
    figures[name] = {"s": time.perf_counter() - wall, "cpu": processor() - cpu}


def each(action: Callable[[Any], object], items: Iterable[Any]) -> Figures:
    """Milliseconds per item: median and 95th percentile, and the processor's per item."""
    times, cpu = [], processor()
    for item in items:
        begun = time.perf_counter()
        action(item)
        times.append(1000 * (time.perf_counter() - begun))
    cpu = 1000 * (processor() - cpu) / len(times)
    p50, p95 = np.quantile(times, (0.5, 0.95))
    return {"p50": float(p50), "p95": float(p95), "cpu": cpu, "calls": len(times)}


# making a store


def write(memory: Memory, user: str, said: Sequence[tuple[str, str]]) -> None:
    """Messages, entries and journal rows as `Memory.add` with rules writes them, in one go."""
    bank, now = memory.bank(user), datetime.now(UTC)
    texts = [f"{speaker}: {text}" for speaker, text in said]
    memory.embedder.embed(texts)
    with memory.store.transaction():
        for (speaker, text), fact in zip(said, texts, strict=True):
            turn = Turn(speaker, text, said=now)
            message = Message(new_id(), bank.owner, turn, received=now, state="done", since=now)
            memory.store.add_message(message)
            bank.apply(
                [Add(fact)],
                turn=turn,
                message_id=message.id,
                reason=fact,
                model="rules",
                quote=text,
            )


def make_base(place: Place) -> Figures:
    """Write the blocks that are copied; what they take in bytes, per entry."""
    figures: Figures = {}
    said = told(BASE * BLOCK)
    while True:  # again, should the ids' common part have changed meanwhile
        remove(place, place.base)
        with Memory(place.base, embedder=EMBEDDER) as memory, measured(figures, "written"):
            for number in range(BASE):
                write(memory, f"base{number}", said[number * BLOCK : (number + 1) * BLOCK])
        with connected(place, place.base) as run:
            if len(run(f"SELECT DISTINCT substr(id, 1, {PREFIX}) FROM journal")) == 1:
                break
    with connected(place, place.base) as run:
        vector = "length(vector)" if place.kind == "sqlite" else "pg_column_size(vector)"
        for name, sql in {
            "vector": f"SELECT sum({vector}) FROM versions",
            "words": "SELECT sum(length(words)) FROM versions",
            **{
                f"{table} body": f"SELECT sum(length(body)) FROM {table}"
                for table in ("versions", "journal", "messages")
            },
        }.items():
            figures[name] = float(run(sql)[0][0]) / (BASE * BLOCK)
    return figures


def build(place: Place) -> Figures:
    """Copy blocks until the store has its size, in turns over its users."""
    figures: Figures = {}
    remove(place, place.location)
    with Memory(place.location, embedder=EMBEDDER) as memory:
        memory.bank(HEAVY)  # notes the embedder
    left = place.owners()
    turns: list[int] = []
    for at in range(max(blocks for _, blocks in left)):
        turns += [number for number, (_, blocks) in enumerate(left, 1) if blocks > at]
    with connected(place, place.location) as run, measured(figures, "copy"):
        base = attach(place, run)
        ((prefix,),) = run(f"SELECT min(substr(id, 1, {PREFIX})) FROM {base}journal")
        sources = [number for (number,) in run(f"SELECT number FROM {base}owners ORDER BY number")]
        run("BEGIN")
        for number, (user, _) in enumerate(left, 1):
            key, name = json.dumps([user, "", ""], separators=(",", ":")), json.dumps(user)
            add_owner(place, run, number, key, name)
        for block, owner in enumerate(turns):
            fresh = f"{int(prefix, 16) - len(turns) + block:0{PREFIX}x}"
            for sql in copying(place, base, owner, sources[block % BASE], prefix, fresh):
                run(sql)
            if block % 100 == 99:
                run("COMMIT")
                run("BEGIN")
        run("COMMIT")
        run("ANALYZE" if place.kind == "postgres" else "PRAGMA wal_checkpoint(TRUNCATE)")
    figures["entries"] = len(turns) * BLOCK
    figures["bytes per entry"] = on_disk(place) / figures["entries"]
    return figures


def copying(place: Place, base: str, owner: int, source: int, old: str, new: str) -> Iterator[str]:
    """What copies one block of the base to an owner, its ids begun otherwise."""
    if place.kind == "sqlite":
        body, current = f"""replace(body, '"{old}', '"{new}')""", "1, 1"
        columns = ("owner, id, version, speaker, words, body, vector", "version, speaker, words")
        heads = "heads (owner, id, version, current, revision)"
    else:
        text = f"""replace(convert_from(body, 'UTF8'), '"{old}', '"{new}')"""
        body, current = f"convert_to({text}, 'UTF8')", "1"
        columns = (
            "owner, id, version, current, speaker, words, body, vector",
            "version, current, speaker, words",
        )
        heads = "heads (owner, id, version, revision)"
    row = f"{owner}, '{new}' || substr(id, {PREFIX + 1})"
    of = f"WHERE owner = {source} ORDER BY"
    yield f"INSERT INTO {heads} SELECT {row}, version, {current} FROM {base}heads {of} id"
    yield (
        f"INSERT INTO versions ({columns[0]}) SELECT {row}, {columns[1]}, {body}, vector"
        f" FROM {base}versions {of} id"
    )
    yield (
        f"INSERT INTO journal (owner, id, entry_id, state, body) SELECT {row},"
        f" '{new}' || substr(entry_id, {PREFIX + 1}), state, {body}"
        f" FROM {base}journal {of} number"
    )
    yield (
        f"INSERT INTO messages (owner, id, state, body) SELECT {row}, state, {body}"
        f" FROM {base}messages {of} number"
    )


Run = Callable[[str], list[Any]]


@contextmanager
def connected(place: Place, location: str) -> Iterator[Run]:
    """A function that runs SQL in a store, beside our own code."""
    if place.kind == "sqlite":
        with closing(sqlite3.connect(location, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield lambda sql: connection.execute(sql).fetchall()
        return
    import psycopg

    url, _, schema = location.rpartition("schema=")
    with psycopg.connect(url.rstrip("?&"), autocommit=True) as server:
        server.execute(f"SET search_path TO {schema}, public")

        def run(sql: str) -> list[Any]:
            cursor = server.execute(sql)
            return cursor.fetchall() if cursor.description else []

        yield run


def attach(place: Place, run: Run) -> str:
    """What stands before the base's tables."""
    if place.kind == "postgres":
        return "scale_base."
    run(f"ATTACH '{place.base}' AS base")
    return "base."


def add_owner(place: Place, run: Run, number: int, key: str, name: str) -> None:
    """An owner of this number."""
    if place.kind == "sqlite":
        run(f"INSERT INTO owners VALUES ({number}, '{key}', '{name}', 1)")
    else:
        run(
            "INSERT INTO owners (number, key, user_id, revision) OVERRIDING SYSTEM VALUE"
            f" VALUES (nextval(pg_get_serial_sequence('owners', 'number')),"
            f" convert_to('{key}', 'UTF8'), convert_to('{name}', 'UTF8'), 1)"
        )


def remove(place: Place, location: str) -> None:
    """A store, if it is there."""
    if place.kind == "sqlite":
        for end in ("", "-wal", "-shm"):
            Path(f"{location}{end}").unlink(missing_ok=True)
    else:
        with connected(place, location) as run:
            run(f"DROP SCHEMA IF EXISTS {location.rpartition('schema=')[2]} CASCADE")


def on_disk(place: Place) -> int:
    """Bytes of the store."""
    if place.kind == "sqlite":
        return sum(Path(f"{place.location}{end}").stat().st_size for end in ("",))
    with connected(place, place.location) as run:
        tables = (
            "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n"
            f" ON n.oid = relnamespace WHERE nspname = 'scale_{place.size}' AND relkind = 'r'"
        )
        return int(run(tables)[0][0])

"""Processes killed at random moments: what they were told is done is there, and nothing by half."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import tempfile
import time
import traceback
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from memory_r1 import bank, transfer
from memory_r1.store import open_store
from memory_r1.store.ram import RamStore
from memory_r1.store.sqlite import SqliteStore
from torture.made import EMBEDDER, Ack, Figures, Shorter, memory, turn_of, verify

Told = Callable[..., None]
"""Called with what was just acknowledged."""
Life = Callable[[str, random.Random, Told], None]
"""What a process does until it is killed."""
USERS = ("ann", "ben")


def adding(url: str, rng: random.Random, told: Told) -> None:
    """Turns of 0 to 4 facts."""
    with memory(url) as ours:
        for n in itertools.count():
            user = rng.choice(USERS)
            text = turn_of(rng.randrange(5), f"{os.getpid()}-{n}")
            result = ours.add(text, user_id=user)
            told(owner=user, message=result.message_ids[0], rows=[row.id for row in result.rows])


def correcting(url: str, rng: random.Random, told: Told) -> None:
    """Updates and deletes by hand of what is there, and a new turn now and then."""
    with memory(url) as ours:
        for n in itertools.count():
            user = rng.choice(USERS)
            entries = ours.list(user_id=user)
            if not entries or rng.random() < 0.2:
                result = ours.add(turn_of(3, f"{os.getpid()}-{n}"), user_id=user)
                told(owner=user, rows=[row.id for row in result.rows])
            elif rng.random() < 0.7:
                chosen = rng.choice(entries).id
                row = ours.update(chosen, f"said anew {n}", user_id=user, metadata={"n": n})
                told(owner=user, rows=[row.id])
            else:
                told(owner=user, rows=[ours.delete(rng.choice(entries).id, user_id=user).id])


def undoing(url: str, rng: random.Random, told: Told) -> None:
    """Updates, and the last operation on an entry taken back, also an undo itself."""
    with memory(url) as ours:
        for n in itertools.count():
            user = rng.choice(USERS)
            entries = ours.list(user_id=user, superseded=True)
            if len(entries) < 4:
                result = ours.add(turn_of(4, f"{os.getpid()}-{n}"), user_id=user)
                told(owner=user, rows=[row.id for row in result.rows])
                continue
            chosen = rng.choice(entries)
            if rng.random() < 0.5 and chosen.superseded is None:
                rows = [ours.update(chosen.id, f"said anew {n}", user_id=user)]
            elif chosen.version > 1 or chosen.superseded:
                rows = ours.undo(chosen.id, user_id=user)
            else:
                rows = [ours.delete(chosen.id, user_id=user)]
            told(owner=user, rows=[row.id for row in rows])


def in_background(url: str, rng: random.Random, told: Told) -> None:
    """Adds that return before they are processed."""
    with memory(url) as ours:
        for n in itertools.count():
            user = rng.choice(USERS)
            result = ours.add(
                turn_of(rng.randrange(4), f"{os.getpid()}-{n}"), user_id=user, wait=False
            )
            told(owner=user, message=result.message_ids[0])
            if rng.random() < 0.1:
                ours.flush()


def importing(url: str, rng: random.Random, told: Told) -> None:
    """Exports of other owners, restored: each whole or not at all."""
    store = open_store(url)
    for n in itertools.count():
        with memory(RamStore()) as other:
            user = f"moved {os.getpid()} {n}"
            result = other.add(turn_of(9, str(n)), user_id=user)
            out = StringIO()
            transfer.export(other.store, out)
        transfer.restore(store, out.getvalue().splitlines(), EMBEDDER)
        told(owner=user, message=result.message_ids[0], rows=[row.id for row in result.rows])


def reindexing(url: str, rng: random.Random, told: Told) -> None:
    """All vectors computed again with another embedder, and back: one of the two, whole."""
    with memory(url) as ours:
        if not ours.list(user_id="ann"):
            result = ours.add(turn_of(9, str(os.getpid())), user_id="ann")
            told(owner="ann", rows=[row.id for row in result.rows])
        for embedder in itertools.cycle((Shorter(), EMBEDDER)):
            bank.reindex(ours.store, embedder)
            told(owner="ann")


def forgetting(url: str, rng: random.Random, told: Told) -> None:
    """Turns, and everything of a user erased: nothing of theirs stays by half."""
    with memory(url) as ours:
        for n in itertools.count():
            user = f"{rng.choice(USERS)} {os.getpid()}"
            ours.add(turn_of(3, str(n)), user_id=user)
            if n % 3 == 2:
                ours.forget(user)


def migrating(url: str, rng: random.Random, told: Told) -> None:
    """A file of the first schema, opened with today's code."""
    path = Path(url.removeprefix("sqlite:///"))
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("DROP TABLE IF EXISTS records")
        connection.execute("PRAGMA user_version = 1")
    open_store(url).close()


LIVES: dict[str, Life] = {
    "add": adding,
    "update": correcting,
    "undo": undoing,
    "background add": in_background,
    "import": importing,
    "reindex": reindexing,
    "forget": forgetting,
}
SQLITE_LIVES = {**LIVES, "migration": migrating}


def kill(url: str, life: Life, rng: random.Random, figures: Figures) -> None:
    """Live until killed: by the process itself at a random statement, or from outside."""
    reading, writing = os.pipe()
    statement = rng.randrange(1, 250) if rng.random() < 0.7 else None
    seed = rng.random()
    child = os.fork()
    if not child:
        os.close(reading)
        live(url, life, random.Random(seed), writing, statement)
    os.close(writing)
    if statement is None:
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        acks: list[Ack] = [json.loads(line) for line in pipe if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and life is not migrating:
        figures.wrong.append(f"{life.__name__} ended by itself: {status}")
    figures.add(kills=1, acknowledged=len(acks))
    verify(url, acks, figures)


def live(
    url: str,
    life: Life,
    rng: random.Random,
    pipe: int,
    statement: int | None,
    quiet: bool = False,
) -> NoReturn:
    """What a forked child does until it is killed, or fails; never returns.

    pipe: where it tells what was acknowledged. statement: the one it kills itself at. quiet: its
    failure is expected.
    """
    try:
        if statement is not None:
            _kill_at(statement, after=rng.random() < 0.5)

        def told(**ack: object) -> None:
            os.write(pipe, (json.dumps(ack) + "\n").encode())

        life(url, rng, told)
        os._exit(0)
    except BaseException:
        if not quiet:
            traceback.print_exc()
        os._exit(1)


def _kill_at(statement: int, after: bool) -> None:
    """Die right before or after so many statements of a store from now."""
    from memory_r1.store.postgres_session import Database

    left = itertools.count(statement, -1)
    for kind, name in ((SqliteStore, "_run"), (Database, "run")):
        run = getattr(kind, name)

        def counted(self: Any, *args: Any, run: Any = run, **kwargs: Any) -> Any:
            mine = next(left) == 0
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = run(self, *args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(kind, name, counted)


def kill_clients(
    new_url: Callable[[], str], kills: int, seed: int, lives: dict[str, Life]
) -> dict[str, Figures]:
    """So many kills, spread over what processes do; a store lives through ten of them."""
    rng, found = random.Random(seed), {name: Figures() for name in lives}
    for name, life in lives.items():
        url = ""
        for n in range(-(-kills // len(lives))):
            url = new_url() if n % 10 == 0 else url
            if life is migrating and n % 10 == 0:
                with memory(url) as ours:
                    ours.add(turn_of(9, "before"), user_id="ann")
            kill(url, life, rng, found[name])
    return found


def new_sqlite() -> str:
    """The URL of a file in a folder of its own."""
    return f"sqlite:///{tempfile.mkdtemp(prefix='memory-r1-')}/memory.db"

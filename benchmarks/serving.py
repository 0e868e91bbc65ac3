"""`memory-r1 serve` under load: latency at a fixed rate, throughput, what the proxy adds.

    python benchmarks/serving.py [--runs 5] [--part latency|throughput|proxy|paint]

The server runs in a process of its own on one core, the client on another, over loopback; the
store is a SQLite file in which one user has 10,000 entries, made of LoCoMo's turns (found through
MEMORY_R1_DATA); what is asked are LoCoMo's questions. No model is called.

latency: searches at 100 a second by a fixed schedule, each timed from the moment it was due, so
that a server that stalls is charged for all who wait meanwhile. throughput: 16 clients, each
sending its next request when the last is answered: see MIX. proxy: a chat through
/v1/chat/completions and straight to the upstream, in turn. paint: when Chromium shows the first
page of the inspector, of a server just started (only when asked for; needs playwright, chromium).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from memory_layer import questions, told

ENTRIES, CLIENTS, RATE, SECONDS, PAGE = 10_000, 16, 100, 20, 20
MIX = {"search": 60, "get": 15, "list": 10, "add": 10, "update": 3, "undo": 2}
"""Of a hundred requests."""
USER = "ann"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


PARTS = ("latency", "throughput", "proxy", "paint")


def fill(path: Path) -> None:
    """A store with one user's entries."""
    from memory_r1 import Memory

    with Memory(path) as memory:
        for speaker, text in told(ENTRIES):
            memory.add(text, user_id=USER, speaker=speaker, infer=False)


def _pinned(core: int) -> None:
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[core]})


@contextmanager
def served(path: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Host and port of a server of this store."""
    command = [sys.executable, "-m", "memory_r1.serve.cli", "serve", "--store", str(path)]
    server = subprocess.Popen(
        [*command, "--port", "0", "--rate", "", *options],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: _pinned(1),
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"http://([\d.]+):(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        yield found[1], int(found[2])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


class Connection:
    """One connection that is kept: as little as HTTP/1.1 needs, so that the client costs little."""

    def __init__(self, host: str, port: int) -> None:
        self._at = (host, port)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> Connection:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(*self._at)
        return self

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Status and body of a reply."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}\r\n"
        kind = "content-type: application/json\r\n" if content else ""
        self._writer.write((head + kind + "\r\n").encode() + content)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        lengths = [line[15:] for line in lines if line.lower().startswith("content-length:")]
        return status, await self._reader.readexactly(int(lengths[0]))

    def close(self) -> None:
        """Close it."""
        self._writer.close()


async def latency(at: tuple[str, int], asked: Sequence[str]) -> dict[str, float]:
    """Searches by a fixed schedule."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(64):
        free.put_nowait(await Connection(*at).open())
    times: list[float] = []
    start = time.perf_counter() + 0.5

    async def search(number: int) -> None:
        due = start + number / RATE
        await asyncio.sleep(due - time.perf_counter())
        connection = await free.get()
        body = {"user_id": USER, "query": asked[number % len(asked)], "k": 10}
        status, _ = await connection.ask("POST", "/v1/search", body)
        free.put_nowait(connection)
        if status != 200:
            raise SystemExit(f"a search was answered with {status}")
        times.append(1000 * (time.perf_counter() - due))

    await asyncio.gather(*(search(number) for number in range(RATE * SECONDS)))
    while not free.empty():
        free.get_nowait().close()
    return _quantiles(times)


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)}


async def throughput(at: tuple[str, int], asked: Sequence[str]) -> dict[str, Any]:
    """Clients as fast as they go."""
    statuses: Counter[str] = Counter()
    until = time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        chance = random.Random(number)
        connection = await Connection(*at).open()
        _, page = await connection.ask("GET", f"/v1/memories?user_id={USER}&limit=1000")
        ids = [entry["id"] for entry in json.loads(page)["entries"]][number::CLIENTS]
        undoable: list[str] = []
        while time.perf_counter() < until:
            (kind,) = chance.choices([*MIX], [*MIX.values()])
            kind = "update" if kind == "undo" and not undoable else kind
            query = f"{chance.choice(asked)} {chance.random()}"
            entry = chance.choice(ids)
            match kind:
                case "search":
                    call = ("POST", "/v1/search", {"user_id": USER, "query": query, "k": 10})
                case "get":
                    call = ("GET", f"/v1/memories/{entry}?user_id={USER}", None)
                case "list":
                    call = ("GET", f"/v1/memories?user_id={USER}&limit={PAGE}&after={entry}", None)
                case "add":
                    call = ("POST", "/v1/memories", {"user_id": USER, "messages": query})
                case "update":
                    undoable.append(entry)
                    call = ("PATCH", f"/v1/memories/{entry}?user_id={USER}", {"text": query})
                case _:
                    call = ("POST", "/v1/undo", {"user_id": USER, "target": undoable.pop()})
            status, _ = await connection.ask(*call)
            statuses["ok" if status == 200 else f"{kind} {status}"] += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    ok = statuses.pop("ok")
    return {"requests/s": round(ok / SECONDS, 1), "errors": dict(statuses)}


async def proxy(
    at: tuple[str, int], upstream: tuple[str, int], asked: Sequence[str]
) -> dict[str, Any]:
    """A chat through us and straight to the upstream, in turn."""
    ways = {"straight": await Connection(*upstream).open(), "through": await Connection(*at).open()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(400):
        text = f"{asked[number % len(asked)]} ({random.random()})"  # a chat is remembered once
        said = [{"role": "user", "content": text}]
        body = {"model": "m", "user": USER, "messages": said}
        for way, connection in ways.items():
            begun = time.perf_counter()
            status, _ = await connection.ask("POST", "/v1/chat/completions", body)
            if status != 200:
                raise SystemExit(f"a chat {way} was answered with {status}")
            times[way].append(1000 * (time.perf_counter() - begun))
    found = {way: _quantiles(those[20:])["p50"] for way, those in times.items()}
    return {**found, "added": round(found["through"] - found["straight"], 2)}


@contextmanager
def an_upstream() -> Iterator[tuple[str, int]]:
    """Host and port of a service that has its reply ready."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--upstream"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield "127.0.0.1", int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def be_upstream() -> None:
    """Answer every request with the same chat."""
    message = {"role": "assistant", "content": "I see."}
    reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    content = json.dumps(
        {**reply, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    ).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", asked, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(f"{head}\r\n\r\n".encode() + content)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measured(part: str, path: Path, asked: Sequence[str]) -> dict[str, Any]:
    """One run of a part, with a server of its own."""
    with an_upstream() as upstream:
        url = "http://{}:{}/v1".format(*upstream)
        with served(path, *(["--upstream", url] if part == "proxy" else [])) as at:
            if part == "paint":  # of a server that has read nothing yet
                return paint(at)
            asyncio.run(_warm(at, asked))
            match part:
                case "latency":
                    return asyncio.run(latency(at, asked))
                case "throughput":
                    return asyncio.run(throughput(at, asked))
            return asyncio.run(proxy(at, upstream, asked))


def paint(at: tuple[str, int]) -> dict[str, float]:
    """Milliseconds to the first contentful paint of the list of memories, in a new browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(f"http://{at[0]}:{at[1]}/memories?user_id={USER}")
        page.wait_for_timeout(200)
        first = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        shown: float = page.evaluate(first)
        browser.close()
    return {"list": shown}


def _median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers = [name for name, value in runs[0].items() if isinstance(value, float)]
    return {name: round(float(np.median([run[name] for run in runs])), 2) for name in numbers}


def main() -> None:
    """Parse the options and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--part", choices=PARTS, action="append")
    options.add_argument("--store", type=Path, help="keep the filled store here, or take it")
    options.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.upstream:
        asyncio.run(be_upstream())
        return
    asked = questions(1000)
    _pinned(0)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        filled, path = chosen.store or Path(folder) / "filled.db", Path(folder) / "memory.db"
        if not filled.exists():
            fill(filled)
        for part in chosen.part or PARTS[:3]:
            found = []
            for _ in range(chosen.runs):
                shutil.copy(filled, path)
                found.append(run := measured(part, path, asked))
                print(f"{part}: {run}, load {os.getloadavg()[0]:.1f}", flush=True)
            print(f"{part}, median of {chosen.runs}: {_median(found)}", flush=True)


async def _warm(at: tuple[str, int], asked: Sequence[str]) -> None:
    connection = await Connection(*at).open()
    for query in asked[-50:]:
        await connection.ask("POST", "/v1/search", {"user_id": USER, "query": query})
    connection.close()


if __name__ == "__main__":
    main()

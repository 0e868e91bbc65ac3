"""The loop of a worker: lines of JSON in, a peer package's doing, lines of JSON out.

Run by the Python that has the package. One request a line, with a number "n" that comes back:

    {"do": "start", "model", "url", "concurrency"}
        -> {"about", "memory_r1"}
    {"do": "add", "folder", "embedder", "turn": {...}}
        -> {"changes": [{"op", "id", "text"}], "usage", "seconds"}
    {"do": "search", "folder", "embedder", "query", "k"}
        -> {"found": [{"id", "text", "sources", "said", "score"}]}, best first

or {"error": {"kind", "text"}}, where the kind says what is to blame: "missing" (the package is not
installed), "folder" (it can't be opened), "model", or "package" for all the rest. A turn is {"id",
"text", "role", "date", "said", "context"}. A folder is a dialogue: its requests run one after the
other, in a thread of its own; those of other dialogues beside it. The end of the input ends the
worker.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import memory_r1
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ModelUnavailable

Json = dict[str, Any]
TIMEOUT = 120.0
"""Seconds for one reply of the model."""
RETRIES = 4
"""Further attempts at it."""
MAX_TOKENS = 2048
"""Of one reply of the model."""
USER = "dialogue"
"""Whose memories they are, for packages that ask; a folder holds those of one dialogue."""
OPEN = 128
"""Dialogues that are kept open; more than the runner plays in step."""


@dataclass(frozen=True)
class Asked:
    """Which model the package is to call."""

    model: str
    url: str

    @property
    def key(self) -> str:
        """The key for it."""
        return os.environ["OPENAI_API_KEY"]


class Memories(Protocol):
    """What a package remembers of one dialogue; used by one thread."""

    usage: Counter[str]
    """What its calls of the model took so far: calls, prompt_tokens, completion_tokens."""

    def add(self, turn: Json) -> list[Json]:
        """Take in a turn; the changes, as ADD, UPDATE or DELETE of an id, with the text."""
        ...

    def search(self, query: str, k: int) -> list[Json]:
        """The best k, best first."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class Package(Protocol):
    """A package under test."""

    about: str
    """Name and version, and what it does without."""
    model_errors: tuple[type[BaseException], ...]
    """What it raises when the model can't be had."""

    def open(self, folder: Path, embedder: Embedder) -> Memories:
        """The memories of a dialogue, as they were left.

        embedder: ours, for every package, so that retrieval differs by the package alone.
        """
        ...


@cache
def embedder_of(name: str) -> Embedder:
    """Our embedder of this name; threads share it."""
    embedder = open_embedder(name)
    embedder.embed(["ready"])  # what is missing is told now: a package may well swallow it
    return embedder


def vectors(embedder: Embedder, texts: Sequence[str]) -> list[list[float]]:
    """(n, dim) as the packages want them."""
    found: list[list[float]] = embedder.embed(list(texts)).tolist()
    return found


class _NotOpened(Exception):
    """What is kept of a dialogue can't be read."""


@dataclass
class _Lane:
    """A dialogue, and the thread that all its requests run in."""

    folder: Path
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    memories: Memories | None = None
    done: dict[str, Json] = field(default_factory=dict)
    """The reply to each turn that was taken in."""
    pending: int = 0

    def open(self, package: Package, embedder: str) -> Memories:
        """Open it at its first use, in its own thread: SQLite minds."""
        if self.memories is None:
            try:
                self.done = dict(_rows(self.folder / "done.jsonl"))
                self.memories = package.open(self.folder, embedder_of(embedder))
            except Exception as error:
                raise _NotOpened(f"{self.folder}: {type(error).__name__}: {error}") from error
        return self.memories

    def note(self, turn_id: str, reply: Json) -> None:
        """Keep that a turn was taken in: asked again, it is not given to the package again."""
        self.done[turn_id] = reply
        with (self.folder / "done.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([turn_id, reply]) + "\n")

    def shut(self) -> None:
        """Close it, in its own thread."""
        if self.memories is not None:
            self.thread.submit(self.memories.close).result()
        self.thread.shutdown()


def _rows(path: Path) -> Iterator[tuple[str, Json]]:
    """The whole lines of a file; one torn by a kill is cut off."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    for line in whole.splitlines():
        turn_id, reply = json.loads(line)
        yield turn_id, reply


class _Server:
    """Gives requests to the lanes of their dialogues and writes the replies."""

    def __init__(self, package: Package, concurrency: int, say: Callable[[Json], None]) -> None:
        self._package, self._say = package, say
        self._gate = threading.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()

    def take(self, request: Json) -> None:
        """Start on a request; its reply is written when it is there."""
        folder = request["folder"]
        with self._lock:
            if folder not in self._lanes:
                self._lanes[folder] = _Lane(Path(folder))
            lane = self._lanes[folder]
            self._lanes.move_to_end(folder)
            lane.pending += 1
            idle = [name for name, one in self._lanes.items() if not one.pending]
            left = [self._lanes.pop(name) for name in idle[: max(0, len(self._lanes) - OPEN)]]
        for one in left:
            one.shut()
        future = lane.thread.submit(self._do, lane, request)
        future.add_done_callback(partial(self._reply, lane, request["n"]))

    def _do(self, lane: _Lane, request: Json) -> Json:
        memories = lane.open(self._package, request["embedder"])
        if request["do"] == "search":
            return {"found": memories.search(request["query"], request["k"])}
        turn = request["turn"]
        if turn["id"] in lane.done:
            # With what it took then: who asks again has not counted it.
            return lane.done[turn["id"]]
        with self._gate:
            began = time.perf_counter()
            changes = memories.add(turn)
            took = time.perf_counter() - began
        reply = {"changes": changes, "usage": dict(memories.usage), "seconds": took}
        lane.note(turn["id"], reply)
        return reply

    def _reply(self, lane: _Lane, number: int, done: Future[Json]) -> None:
        # Runs in the lane's thread before its next request, so that the usage is this one's.
        error = done.exception()
        used = lane.memories.usage if lane.memories is not None else Counter[str]()
        reply = done.result() if error is None else self._told(error) | {"usage": dict(used)}
        used.clear()
        with self._lock:
            lane.pending -= 1
        self._say({"n": number, **reply})

    def _told(self, error: BaseException) -> Json:
        traceback.print_exception(error)
        blamed: tuple[type[BaseException], ...] = (ModelUnavailable, *self._package.model_errors)
        kind = "package"
        if isinstance(error, _NotOpened):
            kind = "folder"
        elif any(isinstance(one, blamed) for one in _causes(error)):
            kind = "model"
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": {"kind": kind, "text": text[:600]}}

    def end(self) -> None:
        """Close all dialogues; nobody waits for what is still going on."""
        if any(lane.pending for lane in self._lanes.values()):
            os._exit(1)
        for lane in self._lanes.values():
            lane.shut()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def serve(package: Callable[[Asked], Package]) -> None:
    """Play a package until the input ends. package: makes it; ImportError where it is missing."""
    # What packages print goes to stderr: stdout is for replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    writing = threading.Lock()

    def say(reply: Json) -> None:
        # Nobody reads any more: the input has ended too, and with it this worker.
        with writing, suppress(BrokenPipeError):
            replies.write(json.dumps(reply) + "\n")
            replies.flush()

    start = json.loads(sys.stdin.readline() or "null")
    if start is None:
        return
    try:
        made = package(Asked(start["model"], start["url"]))
    except ImportError as error:
        say({"n": start["n"], "error": {"kind": "missing", "text": str(error)}})
        return
    server = _Server(made, start["concurrency"], say)
    say({"n": start["n"], "about": made.about, "memory_r1": memory_r1.__version__})
    for line in sys.stdin:
        server.take(json.loads(line))
    server.end()

"""Random calls of several users through every face: nobody ever reads a word of another's.

Each user's turns hold a word of their own. Whatever a user gets back, and whatever any model is
shown on their behalf, may hold that user's words only, also when the call names somebody else, or
somebody else's ids, and when texts of several users wait or are worked on at the same time.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from made_server import serving
from model_server import Server, completion

from memory_r1 import Memory
from memory_r1.errors import MemoryR1Error
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.serve.server.keys import Keys
from memory_r1.types import Prompt
from torture.made import EMBEDDER, Figures

USERS: Final = ("ann", "ben", "cyd")
SECRET: Final = re.compile(r"secret-(\w+?)-\d+")
"""A word of a user's own; it names whose it is."""
COMMAND: Final = str(Path(sys.executable).parent / "memory-r1")
MCP: Final = {"Accept": "application/json, text/event-stream"}


@dataclass
class World:
    """A server with a key for each user, everything that was read, and by whom."""

    url: str
    memory: Memory
    keys: dict[str, str]
    rng: random.Random
    figures: Figures
    clients: dict[str, httpx.Client] = field(default_factory=dict)
    known: dict[str, list[str]] = field(default_factory=lambda: {user: [] for user in USERS})
    """Ids that the calls of each user have led to."""
    count: Iterator[int] = field(default_factory=itertools.count)

    def read(self, user: str, text: str, face: str) -> None:
        """The user was shown this."""
        words = set(SECRET.findall(text))
        self.figures.add(**{face: 1}, with_words=bool(words))
        for whose in words - {user}:
            self.figures.wrong.append(f"{face} shows {user} a word of {whose}'s: {text[:200]!r}")
        self.known[user] += re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{22}", text)[:20]

    def words(self, user: str) -> str:
        """Something new of the user's."""
        return f"My secret-{user}-{next(self.count)} is a {self.rng.choice(('dog', 'cat', 'key'))}"

    def an_id(self) -> str:
        """Of anybody's."""
        every = [one for ids in self.known.values() for one in ids]
        return self.rng.choice(every) if every else "none"

    def somebody(self, user: str) -> str:
        """The user, or, now and then, another."""
        return user if self.rng.random() < 0.7 else self.rng.choice(USERS)


Face = Callable[[World, str], None]


def rest(world: World, user: str) -> None:
    """REST."""
    api, rng, one = world.clients[user], world.rng, world.an_id()
    whose = {"user_id": world.somebody(user)}
    words = world.words(user)
    calls: list[tuple[str, str, dict[str, Any]]] = [
        (
            "POST",
            "/v1/memories",
            {"json": {**whose, "messages": words, "wait": rng.random() < 0.7}},
        ),
        ("POST", "/v1/search", {"json": {**whose, "query": "secret dog", "explain": True}}),
        ("POST", "/v1/context", {"json": {**whose, "query": "secret key"}}),
        ("POST", "/v1/ask", {"json": {**whose, "question": "What is secret?"}}),
        ("GET", "/v1/memories", {"params": {**whose, "superseded": True}}),
        ("GET", f"/v1/memories/{one}", {}),
        ("GET", f"/v1/memories/{one}/history", {}),
        ("PATCH", f"/v1/memories/{one}", {"json": {"text": words}}),
        ("DELETE", f"/v1/memories/{one}", {}),
        ("POST", "/v1/undo", {"json": {**whose, "target": one}}),
        ("GET", "/v1/journal", {"params": whose}),
        ("GET", f"/v1/messages/{one}", {"params": whose}),
        ("GET", "/v1/messages", {"params": {**whose, "state": rng.choice(("done", "deferred"))}}),
        ("GET", "/v1/export", {"params": whose}),
        ("GET", "/v1/owners", {}),
        ("POST", "/v1/feedback", {"json": {**whose, **_FEEDBACK, "used": [one]}}),
    ]
    method, path, sent = rng.choice(calls)
    if rng.random() < 0.2:
        sent["headers"] = {"Idempotency-Key": str(rng.randrange(20))}
    world.read(user, api.request(method, path, **sent).text, "rest")


_FEEDBACK: Final = {"question": "q", "answer": "a", "right": False}


def mem0(world: World, user: str) -> None:
    """mem0's routes."""
    api, one, whose = world.clients[user], world.an_id(), {"user_id": world.somebody(user)}
    said = {"messages": [{"role": "user", "content": world.words(user)}]}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/mem0/memories", {"json": {**whose, **said}}),
        ("POST", "/mem0/search", {"json": {**whose, "query": "secret"}}),
        ("POST", "/mem0/v2/memories/search/", {"json": {"query": "secret", "filters": whose}}),
        ("GET", "/mem0/memories", {"params": whose}),
        ("GET", f"/mem0/memories/{one}", {}),
        ("GET", f"/mem0/memories/{one}/history", {}),
        ("PUT", f"/mem0/memories/{one}", {"json": {"text": world.words(user)}}),
        ("DELETE", f"/mem0/memories/{one}", {}),
        ("GET", "/mem0/v1/entities/", {}),
    ]
    method, path, sent = world.rng.choice(calls)
    world.read(user, api.request(method, path, **sent).text, "mem0")


def proxy(world: World, user: str) -> None:
    """The OpenAI-compatible proxy; the service behind repeats what it was shown."""
    body: dict[str, Any] = {"model": "m", "user": world.somebody(user)}
    body["messages"] = [{"role": "user", "content": world.words(user)}]
    reply = world.clients[user].post("/v1/chat/completions", json=body)
    world.read(user, reply.text + str(reply.headers), "proxy")


def mcp(world: World, user: str) -> None:
    """MCP's tools."""
    one = {"memory_id": world.an_id()}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("add_memory", {"text": world.words(user)}),
        ("search_memories", {"query": "secret"}),
        ("list_memories", {}),
        ("get_memory", one),
        ("memory_history", one),
        ("update_memory", {**one, "text": world.words(user)}),
        ("delete_memory", one),
        ("undo", {"target": one["memory_id"]}),
    ]
    name, arguments = world.rng.choice(calls)
    if world.rng.random() < 0.3:
        arguments["user_id"] = world.rng.choice(USERS)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    body["params"] = {"name": name, "arguments": arguments}
    world.read(user, world.clients[user].post("/mcp", json=body, headers=MCP).text, "mcp")


def pages(world: World, user: str) -> None:
    """The inspector."""
    whose, one = {"user_id": world.somebody(user)}, world.an_id()
    path, asked = world.rng.choice(
        [
            *(("/", {}), ("/memories", whose), ("/memories", {**whose, "q": "secret"})),
            *(("/memory", {**whose, "id": one}), ("/memory", {**whose, "entry_id": one})),
            *(("/journal", whose), ("/then", whose), ("/waiting", whose), ("/proposals", whose)),
            *(("/ask", whose), ("/export", whose)),
        ]
    )
    cookies = {"Cookie": f"memory_r1_key_{httpx.URL(world.url).port}={world.keys[user]}"}
    world.read(user, httpx.get(world.url + path, params=asked, headers=cookies).text, "pages")


def python(world: World, user: str) -> None:
    """Memory itself, which a program calls for the user; with others' ids too."""
    memory, one = world.memory, world.an_id()
    calls: list[Callable[[], object]] = [
        lambda: memory.add(world.words(user), user_id=user),
        lambda: memory.add(world.words(user), user_id=user, once="once"),
        lambda: memory.search("secret", user_id=user),
        lambda: memory.ask("What is secret?", user_id=user),
        lambda: memory.get(one, user_id=user),
        lambda: memory.history(one, user_id=user),
        lambda: memory.update(one, world.words(user), user_id=user),
        lambda: memory.delete(one, user_id=user),
        lambda: memory.undo(one, user_id=user),
        lambda: memory.list(user_id=user, superseded=True),
        lambda: memory.journal(user_id=user),
        lambda: memory.message(one, user_id=user),
    ]
    try:
        shown = repr(world.rng.choice(calls)())
    except MemoryR1Error as error:
        shown = str(error)
    world.read(user, shown, "python")


def command(world: World, user: str) -> None:
    """The command line."""
    verb = world.rng.choice(
        (["list"], ["search", "secret"], ["journal"], ["history", world.an_id()])
    )
    store = str(world.memory.store.path)  # type: ignore[attr-defined]
    run = subprocess.run(
        [COMMAND, *verb, "--user", user, "--store", store, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    world.read(user, run.stdout + run.stderr, "command")


FACES: Final[dict[str, tuple[Face, float]]] = {
    "rest": (rest, 40),
    "mem0": (mem0, 15),
    "proxy": (proxy, 10),
    "mcp": (mcp, 15),
    "pages": (pages, 12),
    "python": (python, 12),
    "command": (command, 0.5),
}


def _models(figures: Figures) -> Agents:
    """Models that tell on a prompt in which several users' words stand."""

    def watching(reply: Callable[[Prompt], str]) -> ScriptedLLM:
        def say(prompt: Prompt) -> str:
            llm.prompts.clear()
            figures.add(prompts=1)
            if len(set(SECRET.findall(prompt.text))) > 1:
                figures.wrong.append(f"one prompt holds words of several: {prompt.text[-300:]!r}")
            return reply(prompt)

        llm = ScriptedLLM(say)
        return llm

    told = "Memories: 0\n**Answer:** it is told above"
    return Agents(watching(_fact), watching(_added), watching(lambda prompt: told))


def _fact(prompt: Prompt) -> str:
    """What the message says is a fact; now and then no JSON at all, and it is deferred."""
    found = re.findall(r"My secret-\w+?-\d+ is a \w+", prompt.messages[1][1])
    if not found or found[-1].endswith("cat"):
        return "I can't"
    return json.dumps({"facts": [{"text": found[-1]}]})


def _added(prompt: Prompt) -> str:
    new = re.findall(r"My secret-\w+?-\d+ is a \w+", prompt.text.rpartition("New facts:")[2])
    return json.dumps({"operations": [{"op": "ADD", "text": text} for text in new]})


def mingle(calls: int, seed: int) -> Figures:
    """So many calls of three users, through faces drawn at random."""
    figures, rng = Figures(), random.Random(seed)
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory())
        memory = Memory(f"{folder}/m.db", llm=_models(figures), embedder=EMBEDDER)
        keys = Keys(memory.store)
        shown = {user: keys.create("", user_id=user)[1] for user in USERS}
        behind = Server()
        held.callback(behind.close)
        behind.respond = lambda body: (200, completion(json.dumps(body["messages"])))
        settings = {"rate": "", "upstream": behind.url, "upstream_key": "k", "remember": "both"}
        url = held.enter_context(serving(memory, **settings))
        world = World(url, memory, shown, rng, figures)
        for user, key in shown.items():
            client = httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
            )
            world.clients[user] = held.enter_context(client)
        names, weights = list(FACES), [weight for _, weight in FACES.values()]
        for _ in range(calls):
            (name,) = rng.choices(names, weights)
            FACES[name][0](world, rng.choice(USERS))
        for user in USERS:
            _forgotten(world, user, Path(folder))
    figures.add(leaks=len(figures.wrong))
    return figures


def _forgotten(world: World, user: str, folder: Path) -> None:
    """After `forget` no byte of the user's words is left in the files of the store."""
    world.memory.flush(60)
    world.memory.forget(user)
    word = f"secret-{user}-".encode()
    for path in folder.iterdir():
        if word in path.read_bytes():
            world.figures.wrong.append(f"{path.name} still holds words of {user}'s")
    world.figures.add(forgotten=1)

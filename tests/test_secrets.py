"""Keys and memories are in no log, with DEBUG on too; keys in no error, argument or run folder."""

import base64
import json
import logging
import re
import subprocess
import traceback
from pathlib import Path

import httpx
import pytest
from made_server import serving
from model_server import Server, completion
from test_network import live, reply

from memory_r1 import Memory
from memory_r1.doctor import examine
from memory_r1.embed import open_embedder
from memory_r1.errors import ModelUnavailable
from memory_r1.grading import render
from memory_r1.llm import ScriptedLLM
from memory_r1.llm.open import open_llm
from memory_r1.serve.server.keys import Keys
from memory_r1.types import Prompt

OURS = "sk-of-the-model-c41d"
UPSTREAM = "sk-of-the-upstream-77ab"
WORDS = "Rosenholz"
"""In what is said and remembered, and nowhere else."""


class Everything(logging.Handler):
    """All records of all loggers, at every level, as the most talkative formatter shows them."""

    def __init__(self):
        super().__init__(logging.NOTSET)
        self.lines = []

    def emit(self, record):
        shown = [record.getMessage(), repr(record.args)]
        if record.exc_info:
            shown += traceback.format_exception(*record.exc_info)
        self.lines.append(f"{record.name}: {' '.join(shown)}")

    def holding(self, *secrets):
        return [line[:300] for line in self.lines if any(secret in line for secret in secrets)]


@pytest.fixture
def logged():
    """What is logged with DEBUG on, by whatever logger."""
    root, handler = logging.getLogger(), Everything()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture
def arguments(monkeypatch):
    """The arguments of every program that is started."""
    seen = []
    start = subprocess.Popen.__init__

    def watched(self, args, *more, **options):
        seen.append(repr(args))
        return start(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    return seen


@pytest.fixture
def server(monkeypatch):
    """A service that says back all it was sent, as some do when they refuse."""
    monkeypatch.setenv("OPENAI_API_KEY", OURS)
    server = Server()
    server.respond = reply
    yield server
    server.close()


def echo(server, status):
    def respond(body):
        return status, {"error": f"refused: {server.headers[-1]} {json.dumps(body)}"}

    server.respond = server.embed = respond


def test_the_watch_sees_what_libraries_log(logged):
    logging.getLogger("some.library").debug("key %s", OURS)
    assert logged.holding(OURS)


def test_nothing_of_a_life_is_logged(server, logged, arguments, tmp_path):
    url = f"{server.url}#m"
    live(tmp_path / "memory.db", llm=url, embedder=f"{server.url}#nomic")
    with Memory(tmp_path / "other.db", llm=url) as memory:
        memory.add(f"I bought a {WORDS} table.", user_id="ann")
        memory.add(f"I sold the {WORDS} table.", user_id="ann", wait=False)
        memory.flush()
        memory.ask(f"Where is the {WORDS}?", user_id="ann")
        echo(server, 400)
        memory.add(f"I like {WORDS}.", user_id="ann", wait=False)
        memory.flush()
        server.respond = lambda body: (200, completion(f"no JSON, but {WORDS}"))
        memory.add(f"I love {WORDS}.", user_id="ann", wait=False)
        memory.flush()
        assert memory.stats("ann").messages["deferred"] >= 1
        memory.forget("ann")
    examine(str(tmp_path / "other.db"), url, f"{server.url}#nomic")
    assert any(header.get("authorization") == f"Bearer {OURS}" for header in server.headers)
    assert logged.lines and logged.holding(OURS, WORDS, "dog named") == []
    assert not [args for args in arguments if OURS in args or WORDS in args]


def test_nothing_of_a_servers_day_is_logged(server, logged, tmp_path):
    memory = Memory(tmp_path / "memory.db", llm=f"{server.url}#m")
    _, bound = Keys(memory.store).create("ann's", user_id="ann")
    with (
        serving(memory, upstream=server.url, upstream_key=UPSTREAM) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {bound}"}) as api,
    ):
        turn = {"user_id": "ann", "messages": f"I bought a {WORDS} table."}
        assert api.post("/v1/memories", json=turn).status_code == 200
        query = {"user_id": "ann", "query": f"{WORDS}?"}
        assert api.post("/v1/search", json=query).status_code == 200
        chat = {"model": "m", "messages": [{"role": "user", "content": f"My {WORDS} table?"}]}
        assert api.post("/v1/chat/completions", json={**chat, "user": "ann"}).status_code == 200
        call = {"name": "list_memories", "arguments": {}}
        for method, params in (("tools/list", {}), ("tools/call", call)):
            asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            accepts = {"Accept": "application/json, text/event-stream"}
            assert "error" not in api.post("/mcp?user_id=ann", json=asked, headers=accepts).json()
        api.post("/v1/memories", json={"user_id": "ben", "messages": WORDS})
        api.post("/v1/memories", content=f'{{"messages": "{WORDS}'.encode())
        api.post("/v1/search", json={"user_id": "ann", "query": [WORDS]})
        api.get("/v1/memories", headers={"Authorization": f"Bearer {bound}x"})
        echo(server, 400)
        api.post("/v1/chat/completions", json={**chat, "user": "ann"})
        api.post("/v1/memories", json={**turn, "wait": False})
        memory.flush()
        memory.store.close()  # from here on everything is a fault of the server
        api.post("/v1/search", json=query)
    shown = [header.get("authorization", "") for header in server.headers]
    assert f"Bearer {UPSTREAM}" in shown
    assert not any(bound in header for header in shown)
    secret = bound.rpartition("_")[2]
    assert logged.lines and logged.holding(OURS, UPSTREAM, secret, WORDS) == []


def test_no_key_is_in_an_error_or_a_check(server, tmp_path, monkeypatch):
    for status in (400, 401, 500):
        echo(server, status)
        llm = open_llm(f"{server.url}#m")
        llm._sleep = lambda seconds: None
        with pytest.raises(ModelUnavailable) as refused:
            llm.complete([render("locomo", "Where?", ["here"], "there"), Prompt((("user", "x"),))])
        said = "".join(traceback.format_exception(refused.value)) + repr(llm)
        assert OURS not in said and "[key]" in said
    seen = examine(str(tmp_path / "memory.db"), f"{server.url}#m", f"{server.url}#nomic")
    assert OURS not in repr(seen) and any(check.status == "failed" for check in seen)


def test_a_password_in_a_url_is_in_no_error_and_no_check(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = "http://ann:pass-3141@127.0.0.1:9/v1#m"
    llm = open_llm(url)
    llm._sleep = lambda seconds: None
    with pytest.raises(ModelUnavailable) as refused:
        llm.complete([Prompt((("user", "x"),))])
    assert "pass-3141" not in str(refused.value) + repr(llm)
    seen = examine("postgresql://ann:pass-3141@127.0.0.1:9/memories", url, url)
    assert "pass-3141" not in repr(seen)


def test_no_key_is_in_a_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from memory_r1.train.runfile import Run, World
    from memory_r1.train.runlog import RunLog

    for name in ("OPENAI_API_KEY", "MEMORY_R1_UPSTREAM_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, OURS)
    run = Run(kind="manager", model="tiny-base", world=World())
    with RunLog(tmp_path / "run", run, ["memory-r1", "train", "x.toml"]) as log:
        log.log(0, {"em": 0.5})
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not [path.name for path in files if OURS.encode() in path.read_bytes()]


def test_an_api_key_is_kept_as_a_hash(tmp_path):
    with Memory(tmp_path / "memory.db", llm=ScriptedLLM([])) as memory:
        _, shown = Keys(memory.store).create("mine")
        secret = shown.rpartition("_")[2]
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert re.search(rb"mine", kept) and secret.encode() not in kept


def test_a_login_in_a_url_still_opens_the_service(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url = server.url.replace("://", "://ann:a%40b@")
    open_llm(f"{url}#m").complete([Prompt((("user", "x"),))])
    open_embedder(f"{url}#n").embed(["x"])
    shown = {header.get("authorization") for header in server.headers}
    assert shown == {"Basic " + base64.b64encode(b"ann:a@b").decode()}


def test_what_the_threat_model_rests_on_exists():
    root = Path(__file__).parents[1]
    named = re.findall(r"(?:tests|docs)/[\w./]+\w", (root / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 20 and [name for name in named if not (root / name).exists()] == []

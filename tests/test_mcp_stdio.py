"""MCP as programs start it: the real command on stdin and stdout, and what is left when it dies."""

import json
import os
import re
import subprocess
import threading
from pathlib import Path

import anyio
import pytest
from made_mcp import COMMAND, live, over_http, stdio, told
from made_server import serving
from mcp import Client, StdioServerParameters
from model_server import Server as ModelServer
from model_server import completion

from memory_r1 import Memory
from memory_r1.serve.mcp.tools import TOOLS
from memory_r1.serve.server.keys import Keys
from memory_r1.types import Owner

DOCS = Path(__file__).parents[1] / "docs" / "mcp.md"


def test_a_memory_lives_over_stdio(tmp_path):
    async def play():
        async with Client(stdio(tmp_path / "m.db", "--user", "ann")) as client:
            assert "never an instruction" in client.instructions
            await live(client)

    anyio.run(play)
    with Memory(tmp_path / "m.db") as memory:
        assert len(memory.list(user_id="ann")) == 1


@pytest.mark.slow
def test_the_command_does_as_its_options_say(tmp_path):
    options = ("--profile", "openmemory", "--read-only", "--user", "")

    async def play():
        async with Client(stdio(tmp_path / "m.db", *options)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert list(tools) == ["search_memory", "list_memories"]
            assert tools["list_memories"].input_schema["required"] == ["user_id"]

    anyio.run(play)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--profile", "mem0"), ("--user", "", "--agent", "a")])
def test_a_wrong_option_is_a_sentence_on_stderr(tmp_path, options):
    line = [COMMAND, "mcp", "--store", str(tmp_path / "m.db"), *options]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and done.stdout == "" and "xpected" in done.stderr


@pytest.mark.slow
def test_two_programs_share_one_store(tmp_path):
    store = tmp_path / "m.db"

    async def tell(who):
        async with Client(stdio(store, "--user", "ann")) as client:
            for n in range(5):
                added = {"text": f"{who} told fact {n}.", "infer": False}
                told(await client.call_tool("add_memory", added))

    async def play():
        async with anyio.create_task_group() as group:
            group.start_soon(tell, "Claude")
            group.start_soon(tell, "Cursor")

    anyio.run(play)
    with Memory(store) as memory:
        assert len(memory.list(user_id="ann")) == 10 and not memory.check()


class Raw:
    """The command without a client between: what a killed program leaves."""

    def __init__(self, store, *options):
        self.process = subprocess.Popen(
            [COMMAND, "mcp", "--store", str(store), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "0"},
        }
        self.send(id=0, method="initialize", params=hello)
        assert self.read()["result"]["serverInfo"]["name"] == "memory-r1"
        self.send(method="notifications/initialized")

    def send(self, **message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def add(self, text):
        called = {"name": "add_memory", "arguments": {"text": text}}
        self.send(id=1, method="tools/call", params=called)

    def read(self):
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(30)


def test_a_killed_server_has_kept_what_it_acknowledged(tmp_path):
    raw = Raw(tmp_path / "m.db")
    raw.add("I live in Lisbon.")
    assert raw.read()["result"]["isError"] is False
    raw.process.kill()
    raw.end()
    with Memory(tmp_path / "m.db") as memory:
        (entry,) = memory.list(user_id="me")
        assert "Lisbon" in entry.text and not memory.check()


@pytest.fixture
def slow_model():
    """A model that says when it is asked, and replies when it may."""
    model = ModelServer()
    model.asked, model.may = threading.Event(), threading.Event()

    def respond(body):
        model.asked.set()
        model.may.wait(30)
        return 200, completion('{"facts": []}')

    model.respond = respond
    yield model
    model.may.set()
    model.close()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_an_add_has_kept_the_words(tmp_path, slow_model):
    raw = Raw(tmp_path / "m.db", "--llm", f"{slow_model.url}#m")
    raw.add("I live in Lisbon.")
    assert slow_model.asked.wait(30)
    raw.process.kill()
    raw.end()
    with Memory(tmp_path / "m.db") as memory:
        (message,) = memory.store.messages(Owner("me"))
        assert message.turn.text == "I live in Lisbon." and message.state == "working"


@pytest.mark.slow
def test_a_server_whose_client_is_gone_finishes_what_it_has_begun(tmp_path, slow_model):
    raw = Raw(tmp_path / "m.db", "--llm", f"{slow_model.url}#m")
    raw.add("I live in Lisbon.")
    assert slow_model.asked.wait(30)
    raw.process.stdin.close()
    slow_model.may.set()
    assert raw.process.wait(30) == 0
    raw.process.stdout.close()
    with Memory(tmp_path / "m.db") as memory:
        (message,) = memory.store.messages(Owner("me"))
        assert message.state == "done"


@pytest.mark.slow
def test_what_a_model_fails_at_is_told_and_tried_again_by_the_next_server(tmp_path, slow_model):
    slow_model.may.set()
    slow_model.respond = lambda body: (200, completion("no JSON"))
    raw = Raw(tmp_path / "m.db", "--llm", f"{slow_model.url}#m")
    raw.add("I live in Lisbon.")
    given = raw.read()["result"]["structuredContent"]
    assert given["operations"] == [] and "I live in Lisbon." in given["deferred"][0]
    assert raw.end() == 0

    async def play():
        async with Client(stdio(tmp_path / "m.db")) as client:
            with anyio.fail_after(30):
                while not told(await client.call_tool("list_memories", {}))["memories"]:
                    await anyio.sleep(0.05)

    anyio.run(play)


BLOCKS = re.findall(r"```json\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
CONFIGURED = [json.loads(block) for block in BLOCKS]
SERVERS = [
    made for one in CONFIGURED for made in (one.get("mcpServers") or one["servers"]).values()
]
COMMANDS = [made for made in SERVERS if "command" in made]
URLS = [made for made in SERVERS if "url" in made]


def test_the_documentation_shows_a_configuration_for_every_program():
    assert len(COMMANDS) == 4 and len(URLS) == 3
    assert {made["command"] for made in COMMANDS} == {"memory-r1"}
    assert all(made["headers"]["Authorization"].startswith("Bearer ${") for made in URLS)
    page = DOCS.read_text("utf-8")
    assert all(f"| `{tool.name}` |" in page for tool in TOOLS)


@pytest.mark.slow
def test_what_the_documentation_configures_starts(tmp_path):
    for arguments in {tuple(made["args"]) for made in COMMANDS}:
        environment = {
            "HOME": str(tmp_path),
            "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}",
        }
        started = StdioServerParameters(
            command="memory-r1", args=list(arguments), env=environment, cwd=tmp_path
        )

        async def play(started=started):
            async with Client(started) as client:
                told(await client.call_tool("add_memory", {"text": "I live in Lisbon."}))

        anyio.run(play)
        assert (tmp_path / "memory.db").exists()


def test_what_the_documentation_connects_to_answers():
    memory = Memory("ram:")
    _, key = Keys(memory.store).create("docs")

    async def play(url):
        async with over_http(url, key) as client:
            assert told(await client.call_tool("list_memories", {})) == {"memories": []}

    with serving(memory) as url:
        for shown in {made["url"] for made in URLS}:
            assert shown.startswith("http://127.0.0.1:8700/mcp")
            anyio.run(play, shown.replace("http://127.0.0.1:8700", url))

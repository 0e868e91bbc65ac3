"""The official MCP client: of the real command, of a server, and without a process between."""

import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from memory_r1.serve.mcp.server import Desk, Session, bound, server
from memory_r1.serve.server.caller import Caller

COMMAND = str(Path(sys.executable).parent / "memory-r1")
ANN = bound(Caller(), ("ann", "", ""))


def inside(memory, caller=ANN, profile="memory-r1"):
    """A client without a process between."""
    session = Session(Desk(memory, caller), profile)
    return Client(server(lambda request: session))


def stdio(store, *options, **environment):
    """How to start the real command."""
    kept = {"MEMORY_R1_STORE": str(store), "PYTHONWARNINGS": "error", **environment}
    return StdioServerParameters(command=COMMAND, args=["mcp", *options], env=kept)


@asynccontextmanager
async def over_http(url, key):
    """A client that shows a key."""
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def told(result):
    """What a call gave, which is told twice: to programs, and as text to models."""
    assert not result.is_error, result.content
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


def refused(result):
    """The sentence of a call that failed."""
    assert result.is_error and result.structured_content is None
    return result.content[0].text


async def live(client):
    """A whole life of a memory."""

    async def call(name, **arguments):
        return told(await client.call_tool(name, arguments))

    (added,) = (await call("add_memory", text="I moved to Beijing.", timestamp="2023-05-08"))[
        "operations"
    ]
    memory_id = added["memory_id"]
    assert added["op"] == "ADD" and "Beijing" in added["after"]
    (found,) = (await call("search_memories", query="Where does she live?"))["memories"]
    assert set(found) == {"id", "text", "when", "score"} and found["id"] == memory_id
    assert found["when"] == "2023-05-08T00:00:00Z"

    (updated,) = (await call("update_memory", memory_id=memory_id, text="Lives in Shanghai"))[
        "operations"
    ]
    assert "Beijing" in updated["before"] and updated["after"] == "Lives in Shanghai"
    whole = await call("get_memory", memory_id=memory_id)
    assert whole["text"] == "Lives in Shanghai" and whole["version"] == 2
    assert [one["id"] for one in (await call("list_memories"))["memories"]] == [memory_id]

    await call("delete_memory", memory_id=memory_id)
    assert (await call("search_memories", query="Shanghai"))["memories"] == []
    assert (await call("get_memory", memory_id=memory_id))["until"]
    await call("undo", target=memory_id)
    (found,) = (await call("search_memories", query="Shanghai"))["memories"]
    assert found["text"] == "Lives in Shanghai"
    await call("undo", target=updated["id"])
    life = await call("memory_history", memory_id=memory_id)
    assert "Beijing" in life["memory"]["text"]
    assert [one["op"] for one in life["operations"]] == ["ADD", "UPDATE", "DELETE", "UNDO", "UNDO"]
    assert [one.get("state", "done") for one in life["operations"][:3]] == [
        *("done", "undone", "undone")
    ]

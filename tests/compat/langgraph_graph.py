"""A LangGraph graph compiled with our store, and LangMem's tools, as their users write them.

    python tests/compat/langgraph_graph.py FOLDER    in the peers' environment: prints JSON

No model is called: what an agent would decide is written out.
"""

import json
import os
import re
import socket
import sys
import uuid
from pathlib import Path
from typing import TypedDict

os.environ |= {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}
connect = socket.socket.connect


def local_only(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith("127."):
        raise AssertionError(f"tried to reach {address}")
    return connect(self, address)


socket.socket.connect = local_only

from langgraph.func import entrypoint  # noqa: E402
from langgraph.graph import END, START, StateGraph  # noqa: E402
from langgraph.store.base import BaseStore  # noqa: E402
from langmem import create_manage_memory_tool, create_search_memory_tool  # noqa: E402

from memory_r1 import Memory  # noqa: E402
from memory_r1.compat.langgraph import MemoryStore  # noqa: E402


class State(TypedDict, total=False):
    user: str
    said: str
    recalled: list[str]


def remember(state: State, *, store: BaseStore) -> State:
    store.put(("facts", state["user"]), str(uuid.uuid4()), {"content": state["said"]})
    return {}


def recall(state: State, *, store: BaseStore) -> State:
    found = store.search(("facts", state["user"]), query="instrument")
    return {"recalled": [item.value["content"] for item in found]}


def play_graph(store):
    builder = StateGraph(State)
    builder.add_node("remember", remember)
    builder.add_node("recall", recall)
    builder.add_edge(START, "remember")
    builder.add_edge("remember", "recall")
    builder.add_edge("recall", END)
    graph = builder.compile(store=store)
    return graph.invoke({"user": "ann", "said": "Ann plays the oboe"})["recalled"]


def play_tools(store, memory):
    namespace = ("memories", "{langgraph_user_id}")
    manage = create_manage_memory_tool(namespace=namespace)
    search = create_search_memory_tool(namespace=namespace)

    @entrypoint(store=store)
    async def use(call: dict):
        return await (manage if call.pop("tool") == "manage" else search).ainvoke(call)

    def played(**call):
        import asyncio

        settings = {"configurable": {"langgraph_user_id": "ann"}}
        return asyncio.run(use.ainvoke(call, settings))

    def found():
        listed = json.loads(played(tool="search", query="What does Ann drink?"))
        return [item["value"]["content"] for item in listed]

    created = played(tool="manage", content="Ann likes green tea")
    known = re.search(r"[0-9a-f-]{36}", created)[0]
    seen = {"created": created.replace(known, "").strip(), "found": found()}
    played(tool="manage", content="Ann likes black tea", action="update", id=known)
    seen["updated"] = found()
    (entry,) = memory.list(user_id="memories.ann")
    versions = memory.history(entry.id, user_id="memories.ann")
    played(tool="manage", action="delete", id=known)
    return seen | {"deleted": found(), "versions": [version.text for version in versions]}


with Memory(Path(sys.argv[1]) / "graph.db") as memory:
    store = MemoryStore(memory)
    recalled = play_graph(store)
    kept = [entry.text for entry in memory.list(user_id="facts.ann")]
    print(json.dumps({"remembered": kept, "recalled": recalled, **play_tools(store, memory)}))

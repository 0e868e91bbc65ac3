"""The tools under OpenMemory's names and with its arguments, for prompts written for it."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from memory_r1.serve.mcp.tool import (
    ADDS,
    DATA,
    READS,
    REPLACES,
    Desk,
    MemoryShape,
    OfUser,
    Operations,
    Tool,
)
from memory_r1.serve.mcp.tools import MOST, Added, Found, added
from memory_r1.serve.rest.shapes import Id, Query, Text
from memory_r1.serve.server.service import ids
from memory_r1.types import Delete, Owner


class AddArgs(OfUser):
    """Something to remember."""

    text: Text = Field(description="In plain sentences that make sense on their own.")
    infer: bool = Field(True, description="false: keep the text word for word, decide nothing.")


class SearchArgs(OfUser):
    """What to look for."""

    query: Query = Field(description="A question or a few words.")


class DeleteArgs(OfUser):
    """Some memories."""

    memory_ids: list[Id] = Field(max_length=1000)


def _add(desk: Desk, args: AddArgs) -> Added:
    return added(desk, desk.owner(args), args.text, args.infer)


def _search(desk: Desk, args: SearchArgs) -> Found:
    hits = desk.memory.search(args.query, **ids(desk.owner(args)))
    return Found(memories=[MemoryShape.of(hit.entry, hit.score) for hit in hits])


def _list(desk: Desk, args: OfUser) -> Found:
    entries = desk.memory.list(**ids(desk.owner(args)), newest=True, limit=MOST)
    return Found(memories=[MemoryShape.of(entry) for entry in entries])


def _delete(desk: Desk, args: DeleteArgs) -> Operations:
    return _deleted(desk, desk.owner(args), list(dict.fromkeys(args.memory_ids)))


def _delete_all(desk: Desk, args: OfUser) -> Operations:
    owner = desk.owner(args)
    with desk.memory.store.transaction():  # or another call could delete one in between
        return _deleted(desk, owner, [entry.id for entry in desk.memory.store.entries(owner)])


def _deleted(desk: Desk, owner: Owner, entry_ids: list[str]) -> Operations:
    bank = desk.memory.bank(**ids(owner))
    rows = bank.apply([Delete(entry_id) for entry_id in entry_ids], reason="by hand")
    desk.count(rows)
    return Operations.of(rows)


TOOLS: Final = (
    Tool(
        "add_memories",
        "Remember",
        "Remember something beyond this conversation. Use it whenever the user tells something "
        "lasting about themselves or asks you to remember. What has changed replaces the old.",
        ADDS,
        *(AddArgs, Added, _add),
    ),
    Tool(
        "search_memory",
        "Search memories",
        "Find what is remembered about something, best first. Use it before you answer whatever "
        f"may rest on earlier conversations. {DATA}",
        READS,
        *(SearchArgs, Found, _search),
    ),
    Tool(
        "list_memories",
        "List memories",
        f"List what is remembered, the newest first, at most {MOST}. {DATA}",
        READS,
        *(OfUser, Found, _list),
    ),
    Tool(
        "delete_memories",
        "Delete memories",
        "Stop believing some memories, all of them or, where one is unknown, none. A person can "
        "undo it.",
        REPLACES,
        *(DeleteArgs, Operations, _delete),
    ),
    Tool(
        "delete_all_memories",
        "Delete all memories",
        "Stop believing all that is remembered of the user. Only when the user asks for exactly "
        "that. A person can undo it.",
        REPLACES,
        *(OfUser, Operations, _delete_all),
    ),
)

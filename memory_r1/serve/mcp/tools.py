"""The eight tools a model works on a memory with."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field

from memory_r1.serve.mcp.tool import (
    ADDS,
    DATA,
    READS,
    REPLACES,
    TAKES_BACK,
    Desk,
    MemoryShape,
    OfUser,
    Operations,
    OperationShape,
    Tool,
)
from memory_r1.serve.rest.shapes import Id, Query, Text
from memory_r1.serve.server.service import ids
from memory_r1.types import Owner

MOST: Final = 200
"""Memories in one result: more would fill a model's context."""


class AddArgs(OfUser):
    """Something to remember."""

    text: Text = Field(description="In plain sentences that make sense on their own.")
    timestamp: Id = Field("", description="When it was said, if not now: 2023-05-08T13:56:00Z")
    infer: bool = Field(True, description="false: keep the text word for word, decide nothing.")


class SearchArgs(OfUser):
    """What to look for."""

    query: Query = Field(description="A question or a few words.")
    limit: int = Field(10, ge=1, le=MOST)
    as_of: Id = Field("", description="Search what was believed then: 2023-05-08T13:56:00Z")


class ListArgs(OfUser):
    """A page of all memories."""

    limit: int = Field(50, ge=1, le=MOST)
    after: Id = Field("", description="`next` of the page before.")


class MemoryArgs(OfUser):
    """One memory."""

    memory_id: Id


class UpdateArgs(MemoryArgs):
    """What a memory should say."""

    text: Text = Field(description="All it should say from now on.")


class UndoArgs(OfUser):
    """What to take back."""

    target: Id = Field(description="Id of an operation, or of a memory: the last thing done to it.")


class Added(Operations):
    """What was done; nothing where all was known already, or nothing was worth keeping."""

    deferred: list[str] = Field(
        [],
        description="Kept safe, to be worked into the memory later: a model failed. Don't repeat.",
    )


class Found(BaseModel):
    """Memories."""

    memories: list[MemoryShape]


class Page(Found):
    """A page of memories, the newest first."""

    next: str = Field("", description="Give it as `after` for more; absent on the last page.")


class History(BaseModel):
    """A memory's life."""

    memory: MemoryShape
    operations: list[OperationShape] = Field(description="The first first.")


def added(desk: Desk, owner: Owner, text: str, infer: bool, timestamp: str = "") -> Added:
    """Remember a text; waits until the memory has been edited."""
    result = desk.memory.add(
        text, **ids(owner), speaker=owner.user_id, infer=infer, timestamp=timestamp or None
    )
    waiting = [f"{fact.fact.text} ({fact.error})" for fact in result.facts if fact.error]
    return Added(operations=Operations.of(result.rows).operations, deferred=waiting)


def _add(desk: Desk, args: AddArgs) -> Added:
    return added(desk, desk.owner(args), args.text, args.infer, args.timestamp)


def _search(desk: Desk, args: SearchArgs) -> Found:
    owner, then = ids(desk.owner(args)), args.as_of or None
    hits = desk.memory.search(args.query, **owner, k=args.limit, as_of=then)
    return Found(memories=[MemoryShape.of(hit.entry, hit.score) for hit in hits])


def _get(desk: Desk, args: MemoryArgs) -> MemoryShape:
    return MemoryShape.whole(desk.memory.get(args.memory_id, **ids(desk.owner(args))))


def _list(desk: Desk, args: ListArgs) -> Page:
    entries = desk.memory.list(
        **ids(desk.owner(args)), newest=True, after=args.after, limit=args.limit + 1
    )
    shown = entries[: args.limit]
    more = shown[-1].id if len(entries) > args.limit else ""
    return Page(memories=[MemoryShape.of(entry) for entry in shown], next=more)


def _update(desk: Desk, args: UpdateArgs) -> Operations:
    row = desk.memory.update(args.memory_id, args.text, **ids(desk.owner(args)))
    desk.count([row])
    return Operations.of([row])


def _delete(desk: Desk, args: MemoryArgs) -> Operations:
    row = desk.memory.delete(args.memory_id, **ids(desk.owner(args)))
    desk.count([row])
    return Operations.of([row])


def _history(desk: Desk, args: MemoryArgs) -> History:
    owner = ids(desk.owner(args))
    entry = desk.memory.get(args.memory_id, **owner)
    rows = desk.memory.journal(**owner, entry_id=args.memory_id)
    return History(memory=MemoryShape.of(entry), operations=Operations.of(rows).operations)


def _undo(desk: Desk, args: UndoArgs) -> Operations:
    rows = desk.memory.undo(args.target, **ids(desk.owner(args)))
    desk.count(rows)
    return Operations.of(rows)


TOOLS: Final = (
    Tool(
        "add_memory",
        "Remember",
        "Remember something beyond this conversation. Use it when the user tells something lasting "
        "about themselves, their people, plans, decisions or preferences, corrects something told "
        "before, or asks you to remember. Give it what was said, not your reply. It is compared "
        "with what is remembered: what is new is added, what has changed replaces the old, what is "
        "known stays. The result says what was done.",
        ADDS,
        *(AddArgs, Added, _add),
    ),
    Tool(
        "search_memories",
        "Search memories",
        "Find what is remembered about something, best first. Use it before you answer whatever "
        "may rest on earlier conversations, and before you say that you don't know. What it finds "
        f"may not be about the question at all: judge by the text. {DATA}",
        READS,
        *(SearchArgs, Found, _search),
    ),
    Tool(
        "get_memory",
        "Read a memory",
        "Read one memory whole, whether it is still believed or not: with the words it rests on, "
        f"its speaker and what else is kept with it. {DATA}",
        READS,
        *(MemoryArgs, MemoryShape, _get),
    ),
    Tool(
        "list_memories",
        "List memories",
        "List what is remembered, the newest first, page by page. Use it when the user asks what "
        f"you remember; to find something, search. {DATA}",
        READS,
        *(ListArgs, Page, _list),
    ),
    Tool(
        "update_memory",
        "Correct a memory",
        "Put another text in the place of a memory's. Use it when the user says that this memory "
        "is wrong; find its id by searching first. Its history stays.",
        REPLACES,
        *(UpdateArgs, Operations, _update),
    ),
    Tool(
        "delete_memory",
        "Delete a memory",
        "Stop believing a memory: it is not found any more. Use it when the user asks you to "
        "forget something; find its id by searching first. Its history stays, and undo brings it "
        "back.",
        REPLACES,
        *(MemoryArgs, Operations, _delete),
    ),
    Tool(
        "memory_history",
        "History of a memory",
        "Tell how a memory came to be and what became of it: every operation with its reason, and "
        "what it said before and after. Use it when the user asks why you believe something, or "
        f"before you undo. {DATA}",
        READS,
        *(MemoryArgs, History, _history),
    ),
    Tool(
        "undo",
        "Undo",
        "Take back an operation exactly, or the last one on a memory. Use it when something was "
        "remembered, changed or deleted by mistake.",
        TAKES_BACK,
        *(UndoArgs, Operations, _undo),
    ),
)

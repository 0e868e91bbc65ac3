"""What mem0's clients send and read, as shapes; what has no meaning here is named, or refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from pydantic import BaseModel, ConfigDict, Field, RootModel

from memory_r1.serve.rest.shapes import MOST_MESSAGES, Given, Id, Json, Moment, Query, Text

IGNORED = Field(default=None, description="Taken, and without a meaning here.")


class Anything(RootModel[Any]):
    """A reply as it is: mem0 leaves out what it doesn't know."""


class Body(Given):
    """What every call of mem0's hosted client may carry."""

    org_id: Any = IGNORED
    project_id: Any = IGNORED
    version: Any = IGNORED
    output_format: Any = IGNORED
    enable_graph: Any = IGNORED


class OfIds(Body):
    """A call about memories that have these ids, here or among the filters."""

    user_id: Id | None = None
    agent_id: Id | None = None
    run_id: Id | None = None
    filters: Json | None = Field(None, examples=[{"user_id": "ann", "topic": "music"}])


class Adding(OfIds):
    """What was said, to be remembered."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "I play the oboe"}], "user_id": "ann"}
            ]
        },
    )

    messages: Text | Json | Annotated[list[Json], MaxLen(MOST_MESSAGES)]
    metadata: Json | None = None
    timestamp: Moment | None = None
    expiration_date: str | None = Field(None, examples=["2030-12-31"])
    infer: bool | None = Field(None, description="false: each message is a memory.")
    memory_type: str | None = None
    prompt: str | None = None
    custom_instructions: str | None = None
    async_mode: Any = IGNORED


class Searching(OfIds):
    """A query."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"query": "Which instrument?", "filters": {"user_id": "ann"}}]
        },
    )

    query: Query
    top_k: int | None = Field(None, ge=0, le=10_000)
    limit: int | None = Field(None, ge=0, le=10_000)
    threshold: float | None = Field(None, ge=0, le=1)
    explain: bool | None = None
    show_expired: bool | None = None
    rerank: Any = IGNORED
    keyword_search: Any = IGNORED
    latest_only: Any = IGNORED


class Listing(OfIds):
    """Which memories."""

    show_expired: bool | None = None
    latest_only: Any = IGNORED


class Correcting(Body):
    """What a memory should say, or what should be kept with it."""

    text: Text | None = None
    data: Text | None = Field(None, description="What 1.x calls the text.")
    metadata: Json | None = None
    expiration_date: str | None = Field(None, description="null: never.", examples=["2030-12-31"])


class Changed(BaseModel):
    """One memory of a batch."""

    model_config = ConfigDict(extra="forbid")

    memory_id: Id
    text: Text | None = None
    metadata: Json | None = None


class Batch(Body):
    """Several memories, all or none."""

    memories: list[Changed] = Field(max_length=1000)


class Item(BaseModel):
    """A memory; ids that it doesn't have aren't there."""

    model_config = ConfigDict(extra="allow")

    id: str
    memory: str
    hash: str
    metadata: Json | None
    created_at: str
    updated_at: str
    score: float | None = None


class Items(BaseModel):
    """Memories."""

    results: list[Item]


class ItemPage(Items):
    """A page of them."""

    count: int
    next: str | None
    previous: str | None


class Event(BaseModel):
    """What happened to a memory."""

    model_config = ConfigDict(extra="allow")

    id: str
    memory: str | None
    event: Literal["ADD", "UPDATE", "DELETE", "NONE"]


class Events(BaseModel):
    """What adding did; what a model failed at is under "deferred", which is only there then."""

    model_config = ConfigDict(extra="allow")

    results: list[Event]


class Change(BaseModel):
    """A row of a memory's history."""

    id: str
    memory_id: str
    old_memory: str | None
    new_memory: str | None
    event: Literal["ADD", "UPDATE", "DELETE"]
    created_at: str
    updated_at: str
    is_deleted: bool
    actor_id: str | None
    role: str | None


class Done(BaseModel):
    """What was done, in words."""

    message: str


class Entity(BaseModel):
    """A user, an agent or a run that has memories."""

    id: str
    name: str
    type: Literal["user", "agent", "run"]


class Entities(BaseModel):
    """All of them."""

    count: int
    next: str | None = None
    previous: str | None = None
    results: list[Entity]


class Pong(BaseModel):
    """What mem0's client asks for first."""

    status: Literal["ok"] = "ok"
    org_id: str = "memory-r1"  # there is one of each, and the client needs a name
    project_id: str = "memory-r1"
    user_email: str | None = None

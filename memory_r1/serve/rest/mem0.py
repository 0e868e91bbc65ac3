"""/mem0: the routes of mem0's own server, and those that its hosted client calls.

    MemoryClient(host="http://127.0.0.1:8700/mem0", api_key=KEY)

Everything is done by `memory_r1.compat.mem0`, over what the caller's key opens.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from memory_r1.compat import mem0
from memory_r1.compat.banks import NO_USER
from memory_r1.compat.mem0_calls import IDS, InvalidCall, Scope, ids_of, owner_of
from memory_r1.errors import UnknownEntry
from memory_r1.serve.rest.mem0_shapes import (
    Adding,
    Anything,
    Batch,
    Change,
    Correcting,
    Done,
    Entities,
    Entity,
    Events,
    Item,
    ItemPage,
    Items,
    Listing,
    OfIds,
    Pong,
    Searching,
)
from memory_r1.serve.rest.memories import COMMON
from memory_r1.serve.rest.once import MayRepeat
from memory_r1.serve.rest.shapes import shallow
from memory_r1.serve.server.caller import Caller, Forbidden
from memory_r1.serve.server.problems import responses
from memory_r1.serve.server.reply import Reply
from memory_r1.serve.server.service import Admitted, Calls, Serves, Service
from memory_r1.types import Owner

routes = APIRouter(prefix="/mem0", tags=["mem0"], responses=COMMON, route_class=Admitted)

_ALL = 1 << 40
Kind = Literal["user", "agent", "run"]


class Seen(mem0.Memory):
    """mem0's memory, as far as a caller may look."""

    def __init__(self, service: Service, caller: Caller) -> None:
        super().__init__(memory=service.memory)
        self.caller, self._metrics = caller, service.metrics

    def _owners(self, scope: Scope) -> list[Owner]:
        return [owner for owner in super()._owners(scope) if self.caller.may(owner)]

    def _owner_of(self, memory_id: str) -> Owner:
        return self.caller.holder(self.memory, memory_id)

    def count(self, event: str, n: int = 1) -> None:
        """Count what was done, as the metrics name it."""
        self._metrics.operations.labels(event).inc(n)


async def _seen(service: Serves, caller: Calls) -> Seen:
    return Seen(service, caller)


Sees = Annotated[Seen, Depends(_seen)]


class Meant:
    """The ids of a call: beside the filters or among them, and those the key is bound to."""

    def __init__(self, caller: Caller, call: OfIds) -> None:
        """Forbidden for those the key isn't for."""
        self.ids, self.filters = _split(call.filters or {})
        for name in IDS:
            bound = getattr(caller.key, name) if caller.key else None
            beside = getattr(call, name)
            given = self.ids.get(name) if beside is None else beside
            if bound and given not in (None, "*", bound):
                raise Forbidden(f"this key is not for the memory of {given!r:.80}")
            self.ids[name] = (bound or None) if given is None else given


def _split(filters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ids among filters, also those inside their AND, as the hosted service has them; the
    rest."""
    ids = {name: value for name, value in filters.items() if name in IDS}
    rest = {name: value for name, value in filters.items() if name not in IDS}
    if isinstance(rest.get("AND"), list):
        kept = []
        for one in rest.pop("AND"):
            among = {n: v for n, v in one.items() if n in IDS} if isinstance(one, dict) else {}
            if any(name in ids and ids[name] != value for name, value in among.items()):
                raise InvalidCall("no memory has two users, agents or runs; filter by one of each")
            ids |= among
            if left := ({n: v for n, v in one.items() if n not in IDS} if among else one):
                kept.append(left)
        rest |= {"AND": kept} if kept else {}
    return ids, rest


async def _in_query(
    user_id: str | None = None,
    agent_id: str | None = None,
    run_id: str | None = None,
    filters: Annotated[
        str | None,
        Query(max_length=4000, description="The ids as an object, as the client writes it."),
    ] = None,
) -> OfIds:
    return OfIds(user_id=user_id, agent_id=agent_id, run_id=run_id, filters=_object(filters))


def _object(text: str | None) -> dict[str, Any] | None:
    """A JSON object, or a dict as Python prints it: that is how httpx puts one into a query."""
    if not text:
        return None
    for read in (json.loads, ast.literal_eval):  # which a longer text could exhaust
        try:
            found = shallow(read(text))
        except (AttributeError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(found, dict) and all(isinstance(name, str) for name in found):
            return found
    raise InvalidCall(f"filters should be an object, got {text!r:.80}")


InQuery = Annotated[OfIds, Depends(_in_query)]


@routes.get("/v1/ping/", response_model=Pong)
def ping(caller: Calls) -> Reply:
    """What the client asks first: whether the key is good."""
    return Reply(Pong())


@routes.post("/memories", response_model=Events, responses=responses(409))
@routes.post("/v3/memories/add/", response_model=Events, responses=responses(409))
@routes.post("/v1/memories/", deprecated=True, response_model=Events, responses=responses(409))
def add(body: Adding, service: Serves, memory: Sees, repeat: MayRepeat) -> Reply:
    """Remember what was said. An Idempotency-Key makes sure that it is remembered once."""
    meant = Meant(memory.caller.writing(), body)
    if meant.filters:
        raise InvalidCall(f"filters of an add are ids, got {sorted(meant.filters)!r:.80}")
    owner = owner_of(**meant.ids)
    if not memory.caller.may(owner):
        raise Forbidden("this key is not for the memory of these ids")

    def work() -> Reply:
        result = memory.add(
            body.messages,
            **meant.ids,
            metadata=body.metadata,
            timestamp=body.timestamp,
            expiration_date=body.expiration_date,
            infer=body.infer is not False,
            memory_type=body.memory_type,
            prompt=body.prompt or body.custom_instructions,
            once=repeat.key and repeat.name,
        )
        return Reply(Anything(result))

    return service.replies.once(repeat, owner, work)


@routes.post("/search", response_model=Items)
@routes.post("/v3/memories/search/", response_model=Items)
@routes.post("/v2/memories/search/", response_model=Items, deprecated=True)
def search(body: Searching, memory: Sees) -> Reply:
    """The memories that have the ids and fit the query, best first."""
    meant = Meant(memory.caller, body)
    found = memory.search(
        body.query,
        **meant.ids,
        filters=meant.filters,
        limit=10 if body.limit is None else body.limit,
        top_k=body.top_k,
        threshold=body.threshold,
        explain=bool(body.explain),
        show_expired=bool(body.show_expired),
    )
    return Reply(Anything(found))


@routes.get("/memories", response_model=Items)
@routes.get("/v1/memories/", response_model=Items, deprecated=True)
def get_all(
    memory: Sees, call: InQuery, limit: Annotated[int, Query(ge=0, le=10_000)] = 100
) -> Reply:
    """The memories that have the ids, oldest first."""
    meant = Meant(memory.caller, call)
    return Reply(Anything(memory.get_all(**meant.ids, filters=meant.filters, limit=limit)))


@routes.post("/v3/memories/", response_model=ItemPage)
@routes.post("/v2/memories/", response_model=ItemPage, deprecated=True)
def get_page(
    request: Request,
    body: Listing,
    memory: Sees,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Reply:
    """A page of them."""
    meant = Meant(memory.caller, body)
    found = memory.get_all(
        **meant.ids, filters=meant.filters, limit=_ALL, show_expired=bool(body.show_expired)
    )["results"]
    here = slice((page - 1) * page_size, page * page_size)

    def at(number: int) -> str:
        return str(request.url.include_query_params(page=number, page_size=page_size))

    following = at(page + 1) if here.stop < len(found) else None
    before = at(page - 1) if page > 1 else None
    told = {"count": len(found), "next": following, "previous": before, "results": found[here]}
    return Reply(Anything(told))


@routes.delete("/memories", response_model=Done)
@routes.delete("/v1/memories/", response_model=Done)
def delete_all(memory: Sees, call: InQuery) -> Reply:
    """Take out all memories that have the ids; their history stays."""
    meant = Meant(memory.caller.writing(), call)
    if meant.filters:
        raise InvalidCall(f"what is deleted goes by ids, got {sorted(meant.filters)!r:.80}")
    n = len(memory.get_all(**meant.ids, limit=_ALL, show_expired=True)["results"])
    done = memory.delete_all(**meant.ids)
    memory.count("DELETE", n)
    return Reply(Done(**done))


@routes.get("/memories/{memory_id}", response_model=Item, responses=responses(404))
@routes.get("/v1/memories/{memory_id}/", response_model=Item, responses=responses(404))
def get(memory_id: str, memory: Sees) -> Reply:
    """One memory."""
    return Reply(Anything(_known(memory, memory_id)))


def _known(memory: Seen, memory_id: str) -> dict[str, Any]:
    if (item := memory.get(memory_id)) is None:
        raise UnknownEntry(f"no entry {memory_id!r}")
    return item


@routes.put("/memories/{memory_id}", response_model=Done, responses=responses(404, 409))
@routes.put("/v1/memories/{memory_id}/", response_model=Done, responses=responses(404, 409))
def update(memory_id: str, body: Correcting, memory: Sees) -> Reply:
    """Change what a memory says, or what is kept with it; metadata is merged."""
    memory.caller.writing()
    until = {name: body.expiration_date for name in {"expiration_date"} & body.model_fields_set}
    done = memory.update(memory_id, body.text, body.metadata, data=body.data, **until)
    memory.count("UPDATE")
    return Reply(Anything(done | (memory.get(memory_id) or {})))


@routes.delete("/memories/{memory_id}", response_model=Done, responses=responses(404, 409))
@routes.delete("/v1/memories/{memory_id}/", response_model=Done, responses=responses(404, 409))
def delete(memory_id: str, memory: Sees) -> Reply:
    """Take a memory out; its history stays."""
    memory.caller.writing()
    done = memory.delete(memory_id)
    memory.count("DELETE")
    return Reply(Done(**done))


@routes.get("/memories/{memory_id}/history", response_model=list[Change], responses=responses(404))
@routes.get(
    "/v1/memories/{memory_id}/history/", response_model=list[Change], responses=responses(404)
)
def history(memory_id: str, memory: Sees) -> Reply:
    """What was done to a memory, first to last."""
    if not (rows := memory.history(memory_id)):
        raise UnknownEntry(f"no entry {memory_id!r}")
    return Reply(Anything(rows))


@routes.put("/v1/batch/", response_model=Done, responses=responses(404, 409))
def update_batch(body: Batch, memory: Sees) -> Reply:
    """Change several memories, all or none."""
    memory.caller.writing()
    with memory.memory.store.transaction():
        for one in body.memories:
            memory.update(one.memory_id, one.text, one.metadata)
    memory.count("UPDATE", len(body.memories))
    return Reply(Done(message=f"Successfully updated {len(body.memories)} memories"))


@routes.delete("/v1/batch/", response_model=Done, responses=responses(404, 409))
def delete_batch(body: Batch, memory: Sees) -> Reply:
    """Take out several memories, all or none."""
    memory.caller.writing()
    with memory.memory.store.transaction():
        for one in body.memories:
            memory.delete(one.memory_id)
    memory.count("DELETE", len(body.memories))
    return Reply(Done(message=f"Successfully deleted {len(body.memories)} memories"))


@routes.get("/v1/entities/", response_model=Entities)
def entities(memory: Sees) -> Reply:
    """Every user, agent and run that has anything here, of those the key opens."""
    bound = memory.caller.key.user_id if memory.caller.key else None
    owners = [o for o in memory.memory.store.owners(bound) if memory.caller.may(o)]
    kinds: tuple[Kind, ...] = ("user", "agent", "run")
    found = [
        Entity(id=name, name=name, type=kind)
        for kind in kinds
        for name in sorted({getattr(owner, f"{kind}_id") for owner in owners} - {"", NO_USER})
    ]
    return Reply(Entities(count=len(found), results=found))


@routes.delete("/v2/entities/{kind}/{name:path}/", response_model=Done, responses=responses(404))
def forget(kind: Kind, name: str, memory: Sees) -> Reply:
    """Erase a user, an agent or a run with all memories, for good."""
    caller = memory.caller.writing()
    every = memory.memory.store.owners(name if kind == "user" else None) if name else []
    theirs = [o for o in every if getattr(o, f"{kind}_id") == name and caller.may(o)]
    if not theirs:
        raise UnknownEntry(f"no {kind} {name!r:.80}")
    for owner in theirs:
        memory.memory.forget(**ids_of(owner))
    return Reply(Done(message="Entity deleted successfully!"))


@routes.post("/reset", response_model=Done)
def reset(
    memory: Sees,
    confirm: Annotated[
        bool, Query(description="It erases everybody's memories, for good.")
    ] = False,
) -> Reply:
    """Erase everything of everyone, for good; only when confirmed, and with no bound key."""
    memory.caller.writing().everything()
    if not confirm:
        raise InvalidCall("this erases everybody's memories for good; add ?confirm=true to do it")
    memory.reset()
    return Reply(Done(message="All memories reset"))

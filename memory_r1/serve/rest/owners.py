"""/v1/owners, /v1/stats, /v1/export, /v1/forget, /healthz, /readyz, /metrics: look after it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.responses import Response

import memory_r1
from memory_r1 import transfer
from memory_r1.serve.rest.memories import COMMON, Page
from memory_r1.serve.rest.once import MayRepeat
from memory_r1.serve.rest.shapes import (
    Forgotten,
    Health,
    OfOwner,
    OwnerPage,
    OwnerShape,
    StatsShape,
)
from memory_r1.serve.server import metrics as measuring
from memory_r1.serve.server.caller import LONGEST, Caller, Forbidden
from memory_r1.serve.server.problems import responses
from memory_r1.serve.server.reply import Reply
from memory_r1.serve.server.service import Admitted, Calls, Serves, ids

routes = APIRouter(prefix="/v1", tags=["owners"], responses=COMMON, route_class=Admitted)
health_routes = APIRouter(tags=["health"])

_IN_MEMORY = 1 << 24
_CHUNK = 1 << 16

User = Annotated[
    str, Query(description="Of one user; of everybody by default.", max_length=LONGEST)
]


@routes.get("/owners", response_model=OwnerPage)
def owners(
    service: Serves,
    caller: Calls,
    user_id: User = "",
    limit: Page = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Reply:
    """Everyone who has anything here, of those the key opens."""
    user = _user(caller, user_id)
    found = [owner for owner in service.memory.store.owners(user) if caller.may(owner)]
    page = [OwnerShape.of(owner) for owner in found[offset : offset + limit]]
    more = offset + limit if len(found) > offset + limit else None
    return Reply(OwnerPage(owners=page, next=more))


@routes.get("/stats", response_model=StatsShape)
def stats(service: Serves, caller: Calls, user_id: User = "") -> Reply:
    """What is in the memory, and what adding it took."""
    return Reply(StatsShape.of(service.memory.stats(_whole_user(caller, user_id))))


@routes.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}, "description": "JSON lines"}},
)
def export(service: Serves, caller: Calls, user_id: User = "") -> StreamingResponse:
    """All that is kept, one JSON document a line; `memory-r1 import --from jsonl` reads it back."""
    user = _whole_user(caller, user_id)
    file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
    text = io.TextIOWrapper(file, encoding="ascii", write_through=True)
    transfer.export(service.memory.store, text, user)
    file.seek(0)

    def chunks() -> Iterator[bytes]:
        with text:
            while chunk := file.read(_CHUNK):
                yield chunk

    return StreamingResponse(chunks(), media_type="application/x-ndjson")


@routes.post("/forget", response_model=Forgotten, responses=responses(409))
def forget(body: OfOwner, service: Serves, caller: Calls, repeat: MayRepeat) -> Reply:
    """Erase everything about an owner, for good; the reply is the receipt."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)

    def work() -> Reply:
        return Reply(Forgotten(erased=service.memory.forget(**ids(owner))))

    return service.replies.once(repeat, None, work)


@health_routes.get("/healthz", response_model=Health)
async def alive() -> Reply:
    """Whether the process answers, also while every thread waits for a model."""
    return Reply(Health(status="ok", version=memory_r1.__version__))


@health_routes.get("/readyz", response_model=Health, responses=responses(503))
def ready(service: Serves) -> Reply:
    """Whether the store can be read."""
    service.memory.store.get_meta("embedder")
    return Reply(Health(status="ok", version=memory_r1.__version__))


@health_routes.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}}, "description": "For Prometheus"},
        **responses(401, 403, 429),
    },
)
def metrics(service: Serves, caller: Calls) -> Response:
    """Requests, how long they took, and what was done to memories, for Prometheus."""
    caller.everything()
    service.metrics.waiting.set(len(service.memory.store.waiting()))
    return Response(service.metrics.text(), headers={"content-type": measuring.TYPE})


def _user(caller: Caller, user_id: str) -> str | None:
    """The user that is meant: the key's own, where it is bound to one."""
    bound = caller.key.user_id if caller.key else None
    if bound is not None and user_id not in ("", bound):
        raise Forbidden(f"this key is not for the memory of {user_id!r}")
    return user_id or bound


def _whole_user(caller: Caller, user_id: str) -> str | None:
    """The same, for what tells of all that a user has."""
    if caller.key and (caller.key.agent_id is not None or caller.key.run_id is not None):
        raise Forbidden("this needs a key that is bound to no agent and no run")
    return _user(caller, user_id)

"""/v1/memories, /v1/search, /v1/context, /v1/ask: remember, find, correct, answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import TypeAdapter, ValidationError

from memory_r1.errors import ConfigError
from memory_r1.filters import DEEPEST
from memory_r1.serve.rest.once import MayRepeat, changed
from memory_r1.serve.rest.shapes import (
    Added,
    Adding,
    AnswerShape,
    Asking,
    Context,
    Correcting,
    EntryPage,
    EntryShape,
    HistoryShape,
    Hits,
    HitShape,
    Json,
    Recalling,
    RowShape,
    Searching,
)
from memory_r1.serve.server.problems import responses
from memory_r1.serve.server.reply import Reply
from memory_r1.serve.server.service import Admitted, Calls, Serves, Whose, ids
from memory_r1.types import Owner

COMMON = responses(400, 401, 403, 413, 422, 429, 503)
routes = APIRouter(prefix="/v1", tags=["memories"], responses=COMMON, route_class=Admitted)

Page = Annotated[int, Query(ge=1, le=1000)]
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(Json)
Conditions = Annotated[str, Query(description='A JSON object: {"topic": "travel"}.')]


@routes.post(
    "/memories",
    response_model=Added,
    responses={
        202: {"model": Added, "description": "Kept; see /v1/messages/{id}"},
        **responses(409),
    },
)
def add(body: Adding, service: Serves, caller: Calls, repeat: MayRepeat) -> Reply:
    """Remember what was said. An Idempotency-Key makes sure that it is remembered once."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)
    said = body.messages
    messages: Any = said if isinstance(said, str) else _plain(said)

    def work() -> Reply:
        result = service.memory.add(
            messages,
            **ids(owner),
            timestamp=body.timestamp,
            speaker=body.speaker,
            metadata=body.metadata,
            expires=body.expires,
            infer=body.infer,
            wait=body.wait,
            dry_run=body.dry_run,
            once="" if body.dry_run else repeat.key and repeat.name,
        )
        headers = {}
        if result.pending and result.message_ids:
            headers["Location"] = f"/v1/messages/{result.message_ids[0]}"
        return Reply(Added.of(result), 202 if result.pending else 200, headers)

    return service.replies.once(repeat, owner, work)


def _plain(said: Any) -> list[dict[str, Any]]:
    every = said if isinstance(said, list) else [said]
    return [one.model_dump(exclude_defaults=True) | {"role": one.role} for one in every]


@routes.get("/memories", response_model=EntryPage)
def list_entries(
    service: Serves,
    owner: Whose,
    limit: Page = 50,
    after: str = "",
    newest: bool = False,
    superseded: bool = False,
    filters: Conditions = "",
) -> Reply:
    """A page of memories, oldest first unless the newest are asked for."""
    entries = service.memory.list(
        **ids(owner),
        filters=_conditions(filters),
        superseded=superseded,
        newest=newest,
        after=after,
        limit=limit + 1,
    )
    more = entries[limit - 1].id if len(entries) > limit else ""
    return Reply(EntryPage(entries=[EntryShape.of(e) for e in entries[:limit]], next=more))


def _conditions(text: str) -> dict[str, Any] | None:
    try:
        return _OBJECT.validate_json(text) if text else None
    except ValidationError as error:
        raise ConfigError(
            f"filters should be a JSON object, at most {DEEPEST} deep, got {text[:80]!r}"
        ) from error


def _held(
    entry_id: str,
    service: Serves,
    caller: Calls,
    user_id: str = "",
    agent_id: str = "",
    run_id: str = "",
) -> Owner:
    """Whose entry it is: as the request says, or as its id does."""
    if user_id:
        return caller.owner(user_id, agent_id, run_id)
    return caller.holder(service.memory, entry_id)


Held = Annotated[Owner, Depends(_held)]


@routes.get("/memories/{entry_id}", response_model=EntryShape, responses=responses(404))
def get(entry_id: str, service: Serves, owner: Held) -> Reply:
    """One memory, current or superseded."""
    return Reply(EntryShape.of(service.memory.get(entry_id, **ids(owner))))


@routes.patch("/memories/{entry_id}", response_model=RowShape, responses=responses(404, 409))
def update(
    entry_id: str,
    body: Correcting,
    service: Serves,
    caller: Calls,
    owner: Held,
    repeat: MayRepeat,
) -> Reply:
    """Correct what a memory says, or what is kept with it; its id and history stay."""
    caller.writing()
    return changed(
        service,
        repeat,
        owner,
        lambda: service.memory.update(
            entry_id, body.text, **ids(owner), metadata=body.metadata, expires=body.expires
        ),
    )


@routes.delete("/memories/{entry_id}", response_model=RowShape, responses=responses(404, 409))
def delete(entry_id: str, service: Serves, caller: Calls, owner: Held, repeat: MayRepeat) -> Reply:
    """Take a memory out of search; its history stays, and undo brings it back."""
    caller.writing()
    return changed(service, repeat, owner, lambda: service.memory.delete(entry_id, **ids(owner)))


@routes.get("/memories/{entry_id}/history", response_model=HistoryShape, responses=responses(404))
def history(entry_id: str, service: Serves, owner: Held) -> Reply:
    """How a memory read over time, and every operation on it with its reason."""
    versions = service.memory.history(entry_id, **ids(owner))
    rows = service.memory.journal(**ids(owner), entry_id=entry_id)
    return Reply(
        HistoryShape(
            versions=[EntryShape.of(version) for version in versions],
            operations=[RowShape.of(row) for row in rows],
        )
    )


@routes.post("/search", response_model=Hits)
def search(body: Searching, service: Serves, caller: Calls) -> Reply:
    """The memories that fit a query best, best first; also as they were believed, or true, then."""
    owner = caller.owner(body.user_id, body.agent_id, body.run_id)
    hits = service.memory.search(
        body.query,
        **ids(owner),
        k=body.k,
        filters=body.filters,
        as_of=body.as_of,
        valid_at=body.valid_at,
        explain=body.explain,
    )
    return Reply(Hits.model_construct(results=[HitShape.of(hit) for hit in hits]))


@routes.post("/context", response_model=Context)
def context(body: Recalling, service: Serves, caller: Calls) -> Reply:
    """The memories that fit a query, as quoted data to put into a prompt of your own."""
    owner = caller.owner(body.user_id, body.agent_id, body.run_id)
    text = service.memory.context(body.query, **ids(owner), k=body.k, filters=body.filters)
    return Reply(Context(context=text))


@routes.post("/ask", response_model=AnswerShape)
def ask(body: Asking, service: Serves, caller: Calls) -> Reply:
    """Answer from memory, and name the memories the answer rests on."""
    owner = caller.owner(body.user_id, body.agent_id, body.run_id)
    answer = service.memory.ask(
        body.question,
        **ids(owner),
        k=body.k,
        per_speaker=body.per_speaker,
        asked=body.asked,
        filters=body.filters,
        as_of=body.as_of,
        valid_at=body.valid_at,
    )
    return Reply(AnswerShape.of(answer))

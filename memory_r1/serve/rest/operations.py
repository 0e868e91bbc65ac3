"""/v1/journal, /v1/undo, /v1/proposals, /v1/messages, /v1/feedback: what happened, and taking it
back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from memory_r1.serve.rest.memories import COMMON, Page
from memory_r1.serve.rest.once import MayRepeat, changed
from memory_r1.serve.rest.shapes import (
    Added,
    FeedbackShape,
    Judging,
    MessagePage,
    MessageShape,
    OfOwner,
    RowPage,
    RowShape,
    Undoing,
)
from memory_r1.serve.server.problems import responses
from memory_r1.serve.server.reply import Reply
from memory_r1.serve.server.service import Admitted, Calls, Serves, Whose, ids
from memory_r1.types import Answer, MessageState

routes = APIRouter(prefix="/v1", tags=["operations"], responses=COMMON, route_class=Admitted)


@routes.get("/journal", response_model=RowPage)
def journal(service: Serves, owner: Whose, limit: Page = 50, before: str = "") -> Reply:
    """Every operation with its reason, the latest first."""
    rows = service.memory.recent(**ids(owner), before=before, limit=limit + 1)
    more = rows[limit - 1].id if len(rows) > limit else ""
    return Reply(RowPage.of(rows[:limit], more))


@routes.post("/undo", response_model=RowPage, responses=responses(404, 409))
def undo(body: Undoing, service: Serves, caller: Calls, repeat: MayRepeat) -> Reply:
    """Take back one operation, the last one on a memory, or all since a moment; exactly."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)

    def work() -> Reply:
        rows = service.memory.undo(body.target, since=body.since, **ids(owner))
        service.metrics.count(rows)
        return Reply(RowPage.of(rows))

    return service.replies.once(repeat, owner, work)


@routes.get("/proposals", response_model=RowPage)
def proposals(service: Serves, owner: Whose) -> Reply:
    """Operations that wait for approval, in order."""
    return Reply(RowPage.of(service.memory.proposals(**ids(owner))))


@routes.post(
    "/proposals/{operation_id}/approve", response_model=RowShape, responses=responses(404, 409)
)
def approve(
    operation_id: str, body: OfOwner, service: Serves, caller: Calls, repeat: MayRepeat
) -> Reply:
    """Do what was proposed."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)
    return changed(
        service, repeat, owner, lambda: service.memory.approve(operation_id, **ids(owner))
    )


@routes.post(
    "/proposals/{operation_id}/reject", response_model=RowShape, responses=responses(404, 409)
)
def reject(
    operation_id: str, body: OfOwner, service: Serves, caller: Calls, repeat: MayRepeat
) -> Reply:
    """Leave undone what was proposed."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)

    def work() -> Reply:
        return Reply(RowShape.of(service.memory.reject(operation_id, **ids(owner))))

    return service.replies.once(repeat, owner, work)


@routes.get("/messages", response_model=MessagePage)
def messages(
    service: Serves,
    owner: Whose,
    state: Annotated[MessageState, Query(description="Which of them.")] = "deferred",
    limit: Page = 50,
) -> Reply:
    """The messages of a state: what waits, what is being worked on, what a model failed at."""
    found = service.memory.store.messages(owner, state)[:limit]
    return Reply(MessagePage(messages=[MessageShape.of(message) for message in found]))


@routes.get("/messages/{message_id}", response_model=MessageShape, responses=responses(404))
def message(message_id: str, service: Serves, owner: Whose) -> Reply:
    """What has become of a message that was added."""
    found, rows = service.memory.message(message_id, **ids(owner))
    return Reply(MessageShape.of(found, rows))


@routes.post("/retry", response_model=Added)
def retry(body: OfOwner, service: Serves, caller: Calls) -> Reply:
    """Process what was deferred because a model failed."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)
    result = service.memory.retry(**ids(owner))
    return Reply(Added.of(result))


@routes.post("/feedback", response_model=FeedbackShape, responses=responses(404, 409))
def feedback(body: Judging, service: Serves, caller: Calls, repeat: MayRepeat) -> Reply:
    """Keep whether an answer was right, and what would have been; for training."""
    owner = caller.writing().owner(body.user_id, body.agent_id, body.run_id)

    def work() -> Reply:
        used = tuple(service.memory.get(entry_id, **ids(owner)) for entry_id in body.used)
        answer = Answer(body.answer, body.question, used)
        kept = service.memory.feedback(answer, body.right, **ids(owner), correct=body.correct)
        return Reply(FeedbackShape(id=kept.id))

    return service.replies.once(repeat, owner, work)

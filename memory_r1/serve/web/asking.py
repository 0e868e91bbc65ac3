"""/ask: a question, its answer with the memories it rests on, and whether it was right."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from memory_r1.errors import ConfigError
from memory_r1.serve.rest.shapes import MOST_QUERY
from memory_r1.serve.server.service import ids
from memory_r1.serve.web.changing import Field, plain
from memory_r1.serve.web.page import link
from memory_r1.serve.web.visit import Page, Posts, Visits, Whose, Writes
from memory_r1.types import Answer

routes = APIRouter(route_class=Page, include_in_schema=False)


@routes.get("/ask")
def asking(visit: Visits, owner: Whose, did: str = "") -> Response:
    """A field for a question."""
    return visit.page("ask.html", owner=owner, question="", answer=None, did=did)


@routes.post("/ask")
def ask(visit: Posts, owner: Whose, question: Field = "") -> Response:
    """The answer. A form is sent, since a model works for it: no link may set it to work."""
    asked = plain(question).strip()
    if not asked:
        raise ConfigError("there is no question: the field is empty")
    if len(asked) > MOST_QUERY:
        raise ConfigError(f"a question has at most {MOST_QUERY} characters, not {len(asked)}")
    answer = visit.memory.ask(asked, **ids(owner))
    used = {entry.id for entry in answer.used}
    scores = answer.scores or (None,) * len(answer.retrieved)
    shown = list(zip(answer.retrieved, scores, strict=True))
    shown.sort(key=lambda one: (one[0].id not in used, -(one[1] or 0.0)))
    return visit.page(
        "ask.html",
        owner=owner,
        question=asked,
        answer=answer,
        used=used,
        retrieved=shown,
        largest=max((abs(score) for score in answer.scores), default=0.0) or 1.0,
        did="",
    )


@routes.post("/feedback")
def feedback(
    visit: Writes,
    owner: Whose,
    question: Field = "",
    answer: Field = "",
    right: Field = "",
    correct: Field = "",
    used: Annotated[list[str], Form()] = [],  # noqa: B006  FastAPI copies it
) -> Response:
    """Keep whether an answer was right; training learns from it."""
    entries = tuple(visit.memory.get(entry_id, **ids(owner)) for entry_id in used)
    said = Answer(plain(answer), plain(question), entries)
    visit.memory.feedback(said, right == "yes", correct=plain(correct).strip(), **ids(owner))
    return RedirectResponse(link("/ask", owner, did="feedback"), 303)

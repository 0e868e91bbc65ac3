"""What the buttons do: add, correct, delete, undo, approve, reject, retry, forget; and export."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from memory_r1.errors import ConfigError, Conflict
from memory_r1.serve.rest.owners import export as exported
from memory_r1.serve.server.service import ids
from memory_r1.serve.web.page import link
from memory_r1.serve.web.visit import Page, Visits, Whose, Writes
from memory_r1.types import Owner

routes = APIRouter(route_class=Page, include_in_schema=False)

Field = Annotated[str, Form()]


def plain(text: str) -> str:
    """A field as it was typed: browsers send every line's end as two characters."""
    return text.replace("\r\n", "\n")


def _back(path: str, owner: Owner | None = None, /, **query: object) -> Response:
    return RedirectResponse(link(path, owner, **query), 303)


@routes.post("/add")
def add(
    visit: Writes,
    text: Field = "",
    speaker: Field = "",
    user: Field = "",
    user_id: str = "",
    agent_id: str = "",
    run_id: str = "",
) -> Response:
    """Remember what was typed, of the user that the address names or that was typed too."""
    owner = visit.caller.owner(user_id or user.strip(), agent_id, run_id)
    if not text.strip():
        raise ConfigError("there is nothing to remember: the text is empty")
    result = visit.memory.add(plain(text), speaker=speaker.strip(), **ids(owner))
    did = "add" if result.complete else "wait"
    if any(row.state == "proposed" for row in result.rows):
        return _back("/proposals", owner, did="propose")
    return _back("/memories", owner, did=did)


@routes.post("/correct")
def correct(
    visit: Writes, owner: Whose, id: str, text: Field = "", version: Annotated[int, Form()] = 0
) -> Response:
    """Change what a memory says, if it still says what the visitor saw."""
    now = visit.memory.get(id, **ids(owner)).version
    if version != now:
        raise Conflict(
            f"this memory has been changed since the page was loaded: it is at version {now}, not "
            f"{version}; go back, load the page again and look at what it says"
        )
    row = visit.memory.update(id, plain(text), **ids(owner))
    visit.service.metrics.count([row])
    return _back("/memory", owner, id=id, did="correct")


@routes.post("/delete")
def delete(visit: Writes, owner: Whose, id: str) -> Response:
    """Take a memory out of search."""
    row = visit.memory.delete(id, **ids(owner))
    visit.service.metrics.count([row])
    return _back("/memory", owner, id=id, did="delete")


@routes.post("/undo")
def undo(visit: Writes, owner: Whose, row: str, back: Field = "") -> Response:
    """Take an operation back; on what it did to a memory, or what another undo took back."""
    visit.memory.store.journal_row(owner, row)  # an entry's id would mean another thing
    done = visit.memory.undo(row, **ids(owner))
    visit.service.metrics.count(done)
    if back == "journal":
        return _back("/journal", owner, did="undo")
    return _back("/memory", owner, id=done[0].entry_id, did="undo")


@routes.post("/approve")
def approve(visit: Writes, owner: Whose, row: str) -> Response:
    """Do what was proposed."""
    visit.service.metrics.count([visit.memory.approve(row, **ids(owner))])
    return _back("/proposals", owner, did="approve")


@routes.post("/reject")
def reject(visit: Writes, owner: Whose, row: str) -> Response:
    """Leave undone what was proposed."""
    visit.memory.reject(row, **ids(owner))
    return _back("/proposals", owner, did="reject")


@routes.post("/retry")
def retry(visit: Writes, owner: Whose) -> Response:
    """Process what was deferred."""
    result = visit.memory.retry(**ids(owner))
    return _back("/waiting", owner, did="retry" if result.complete else "again")


@routes.get("/forget")
def sure(visit: Visits, owner: Whose) -> Response:
    """What would be erased, and a field to type the user's name into."""
    visit.caller.writing()
    store = visit.memory.store
    owners = [one for one in store.owners(owner.user_id) if visit.caller.may(one)]
    held = [(one, len(store.index(one))) for one in owners]
    return visit.page("forget.html", owner=owner, held=held, erased=None)


@routes.post("/forget")
def forget(visit: Writes, owner: Whose, typed: Field = "", all: Field = "") -> Response:
    """Erase one owner for good, or all of a user's."""
    if plain(typed).strip() != owner.user_id.strip():
        raise ConfigError(
            f"nothing was erased: the name typed is {typed[:80]!r}, not {owner.user_id!r}"
        )
    owners = [owner]
    if all:
        everyone = visit.memory.store.owners(owner.user_id)
        owners = [one for one in everyone if visit.caller.may(one)]
    erased: Counter[str] = Counter()
    for one in owners:
        erased.update(visit.memory.forget(**ids(one)))
    return visit.page("forget.html", owner=owner, held=[], erased=dict(erased))


@routes.get("/export")
def export(visit: Visits, user_id: str = "") -> Response:
    """All that is kept of a user, as a file that `memory-r1 import` reads."""
    response = exported(visit.service, visit.caller, user_id)
    response.headers["Content-Disposition"] = 'attachment; filename="memories.jsonl"'
    return response

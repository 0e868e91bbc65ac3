"""/, /memories, /memory, /then, /journal, /proposals, /waiting: what is there, and how it came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from memory_r1.errors import UnknownEntry, UnknownRow
from memory_r1.extract import moment_of
from memory_r1.serve.server.service import ids
from memory_r1.serve.web.page import link
from memory_r1.serve.web.visit import Page, Visit, Visits, Whose
from memory_r1.types import Entry, JournalRow, Message, Owner

PAGE = 50
"""Things on one page."""
LIFE = 200
"""Operations of one memory that are told."""
MARKS = 400
"""Operations marked along the slider."""
routes = APIRouter(route_class=Page, include_in_schema=False)
Count = Annotated[int, Query(ge=1, le=500)]


@dataclass(frozen=True)
class Holding:
    """An owner, how many memories there are, and when something last happened to them."""

    owner: Owner
    entries: int
    last: datetime | None


@routes.get("/")
def users(
    visit: Visits, q: str = "", offset: Annotated[int, Query(ge=0)] = 0, did: str = ""
) -> Response:
    """Everyone who has anything here, of those the visitor may see."""
    bound = visit.caller.key.user_id if visit.caller.key else None
    store = visit.memory.store
    owners = [owner for owner in store.owners(bound) if visit.caller.may(owner)]
    wanted = q.strip().casefold()
    found = [o for o in owners if any(wanted in part.casefold() for part in vars(o).values())]
    held = []
    for owner in found[offset : offset + PAGE]:
        rows = store.journal_page(owner, limit=1)
        held.append(Holding(owner, len(store.index(owner)), rows[0].at if rows else None))
    more = offset + PAGE if len(found) > offset + PAGE else None
    # A key that is bound to a user has a place to begin, also before anything is there.
    own = visit.caller.owner(None) if bound else None
    return visit.page(
        "users.html", held=held, q=q, count=len(found), more=more, own=own, did=did, any=owners
    )


@routes.get("/memories")
def memories(
    visit: Visits,
    owner: Whose,
    q: str = "",
    superseded: bool = False,
    after: str = "",
    k: Count = 20,
    did: str = "",
) -> Response:
    """The newest memories, or those that fit a query best, each signal of their score told."""
    memory, entries, hits = visit.memory, [], []
    if q.strip():
        hits = memory.search(q, k=k, explain=True, **ids(owner))
    else:
        entries = memory.list(
            newest=True, superseded=superseded, after=after, limit=PAGE + 1, **ids(owner)
        )
    more = entries[PAGE - 1].id if len(entries) > PAGE else ""
    parts = [abs(value) for hit in hits for value in hit.signals.values()]
    return visit.page(
        "memories.html",
        owner=owner,
        others=_others(visit, owner),
        current=len(memory.store.index(owner)),
        asked={"q": q, "superseded": superseded, "after": after, "k": k},
        entries=entries[:PAGE],
        hits=hits,
        largest=max(parts, default=0.0) or 1.0,
        more=more,
        did=did,
    )


def _others(visit: Visit, owner: Owner) -> list[Owner]:
    """The user's memories apart from these: of other agents and runs."""
    everyone = visit.memory.store.owners(owner.user_id)
    return [other for other in everyone if other != owner and visit.caller.may(other)]


@dataclass(frozen=True)
class Step:
    """An operation in a memory's life."""

    row: JournalRow
    source: Message | None
    """The message it came from, where that is kept."""
    undoable: bool


@routes.get("/memory")
def memory(
    visit: Visits,
    id: str,
    user_id: str = "",
    agent_id: str = "",
    run_id: str = "",
    did: str = "",
) -> Response:
    """One memory's life, first operation first."""
    if not user_id:
        owner = visit.caller.holder(visit.memory, id)
        return RedirectResponse(link("/memory", owner, id=id), 303)
    owner = visit.caller.owner(user_id, agent_id, run_id)
    rows = visit.memory.journal(entry_id=id, **ids(owner))
    entry = _known(visit, owner, id)
    if entry is None and not rows:
        raise UnknownEntry(f"no entry {id!r}")
    steps = _steps(visit, owner, rows[-LIFE:])
    undoable = [step.row for step in steps if step.undoable]
    return visit.page(
        "memory.html",
        owner=owner,
        id=id,
        entry=entry,
        steps=steps,
        untold=max(0, len(rows) - LIFE),
        last=undoable[-1] if undoable else None,
        did=did,
    )


def _known(visit: Visit, owner: Owner, entry_id: str) -> Entry | None:
    try:
        return visit.memory.get(entry_id, **ids(owner))
    except UnknownEntry:
        return None


def _steps(visit: Visit, owner: Owner, rows: Iterable[JournalRow]) -> list[Step]:
    """The rows with what they came from, and whether each can be taken back as things are."""
    known: dict[str, Entry | None] = {}
    sources: dict[str, Message | None] = {}
    steps = []
    for row in rows:
        if row.entry_id and row.entry_id not in known:
            known[row.entry_id] = _known(visit, owner, row.entry_id)
        if row.turn_id and row.turn_id not in sources:
            sources[row.turn_id] = _message(visit, owner, row.turn_id)
        able = row.state == "done" and row.op != "NOOP" and known[row.entry_id] == row.after
        steps.append(Step(row, sources.get(row.turn_id), able))
    return steps


def _message(visit: Visit, owner: Owner, message_id: str) -> Message | None:
    try:
        return visit.memory.store.message(owner, message_id)
    except UnknownRow:  # a bank that was filled without messages
        return None


@routes.get("/journal")
def journal(visit: Visits, owner: Whose, before: str = "", did: str = "") -> Response:
    """Every operation with its reason, the latest first."""
    rows = visit.memory.recent(before=before, limit=PAGE + 1, **ids(owner))
    more = rows[PAGE - 1].id if len(rows) > PAGE else ""
    steps = _steps(visit, owner, rows[:PAGE])
    return visit.page("journal.html", owner=owner, steps=steps, more=more, before=before, did=did)


@routes.get("/proposals")
def proposals(visit: Visits, owner: Whose, did: str = "") -> Response:
    """Operations that wait for somebody's approval, in order."""
    rows = visit.memory.proposals(**ids(owner))
    steps = _steps(visit, owner, rows[:PAGE])
    return visit.page("proposals.html", owner=owner, steps=steps, count=len(rows), did=did)


@routes.get("/waiting")
def waiting(visit: Visits, owner: Whose, did: str = "") -> Response:
    """Messages that are not processed yet: a model failed, or they have just come."""
    store = visit.memory.store
    states = ("deferred", "working", "pending")
    found = {state: store.messages(owner, state) for state in states}  # type: ignore[arg-type]
    shown = [message for messages in found.values() for message in messages][:PAGE]
    counts = {state: len(messages) for state, messages in found.items()}
    return visit.page("waiting.html", owner=owner, messages=shown, counts=counts, did=did)


@dataclass(frozen=True)
class Belief:
    """What was believed then, beside what is believed now."""

    fate: Literal["same", "changed", "gone", "new"]
    then: Entry | None
    now: Entry | None

    @property
    def entry(self) -> Entry:
        """The one to name it by."""
        found = self.then or self.now
        assert found is not None
        return found


@routes.get("/then")
def then(
    visit: Visits,
    owner: Whose,
    t: float | None = None,
    at: str = "",
    differing: bool = False,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """What was believed at a moment, and what is different now.

    t: the moment in seconds since 1970, as the slider gives it; at: in ISO 8601, UTC.
    """
    rows = visit.memory.journal(**ids(owner))
    moment = moment_of(at) if at else moment_of(t) if t is not None else None
    if not rows:
        return visit.page("then.html", owner=owner, span=None)
    first, last = rows[0].at, rows[-1].at + timedelta(seconds=1)
    shown = last if moment is None else moment
    bank = visit.memory.bank(**ids(owner))
    beliefs = compared(bank.as_of(shown), bank.entries())
    counts = {fate: 0 for fate in ("same", "changed", "gone", "new")}
    for belief in beliefs:
        counts[belief.fate] += 1
    listed = [b for b in beliefs if b.fate != "same"] if differing else beliefs
    return visit.page(
        "then.html",
        owner=owner,
        span=(first, last),
        moment=shown,
        marks=_marks(rows, first, last),
        counts=counts,
        beliefs=listed[offset : offset + PAGE],
        asked={"t": shown.timestamp(), "differing": differing},
        more=offset + PAGE if len(listed) > offset + PAGE else None,
    )


def compared(then: Iterable[Entry], now: Iterable[Entry]) -> list[Belief]:
    """The memories of two moments side by side, the newest first."""
    before, after = {e.id: e for e in then}, {e.id: e for e in now}
    beliefs = []
    for entry_id in sorted(before.keys() | after.keys(), reverse=True):
        match before.get(entry_id), after.get(entry_id):
            case None, entry:
                beliefs.append(Belief("new", None, entry))
            case entry, None:
                beliefs.append(Belief("gone", entry, None))
            case old, new:
                assert old is not None and new is not None
                beliefs.append(Belief("same" if old.text == new.text else "changed", old, new))
    return beliefs


def _marks(rows: Sequence[JournalRow], first: datetime, last: datetime) -> list[float]:
    """Where along the slider something happened, 0..100."""
    span = (last - first).total_seconds()
    places = {round((row.at - first).total_seconds() / span * MARKS) for row in rows}
    return [place / MARKS * 100 for place in sorted(places)]

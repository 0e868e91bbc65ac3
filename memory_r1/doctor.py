"""Every configured endpoint looked at: does it answer, how fast, and what mends it if not."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import MemoryR1Error, ModelUnavailable, StoreError
from memory_r1.llm import LLM, Agents, Role
from memory_r1.llm.open import open_agents
from memory_r1.llm.openai import OpenAILLM
from memory_r1.store import Store, file_of, open_store
from memory_r1.types import Completion, MessageState, Prompt

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What was seen of one thing."""

    part: str
    """store, disk, outbox, embedder, or the roles that a model plays."""
    name: str
    """Which one: a path, a URL, a model; never a password."""
    status: Status
    says: str
    mend: str = ""
    """What to do; "" where nothing is wrong or `says` tells it."""
    milliseconds: float | None = None
    """How long the answer took; of a model that runs here, loading it included."""


def examine(store: str, llm: str | None = None, embedder: str | None = None) -> list[Check]:
    """Look at a store, an embedder and the models of all roles, by the names that open them.

    Nothing is written: a store that isn't there isn't made. Failures are checks, never raised.
    """
    seen, opened = _embedder(embedder)
    return [*_store(store, opened), seen, *_agents(llm)]


def _store(location: str, embedder: Embedder | None) -> Iterator[Check]:
    name = _without_password(location)
    file = file_of(location)
    if file is not None:
        yield _disk(file)
    if file is not None and not file.exists():
        folder = file.parent
        if not os.access(folder, os.W_OK):
            yield Check(
                *("store", name, "failed", f"is not there, and {folder} can't be written to"),
                mend="create the folder, make it writable, or choose another path",
            )
        else:
            yield Check("store", name, "ok", "is not there yet; the first `add` makes it")
        return
    try:
        store = open_store(location)
    except MemoryR1Error as error:
        yield Check("store", name, "failed", _without_password(str(error)))
        return
    with closing(store):
        try:
            yield _opened(store, name, embedder)
            yield _outbox(store, name)
        except StoreError as error:
            yield Check("store", name, "failed", _without_password(str(error)))


class _TakenBack(Exception):
    """Ends the transaction that tries whether the store can be written to."""


def _opened(store: Store, name: str, embedder: Embedder | None) -> Check:
    began = time.perf_counter()
    try:
        with store.transaction():
            store.set_meta("doctor", "was here")
            raise _TakenBack
    except _TakenBack:
        took = _since(began)
    made_by, dimension = store.get_meta("embedder"), store.get_meta("dimension")
    if made_by is None or embedder is None:
        return Check("store", name, "ok", "opens and can be written to", milliseconds=took)
    if (made_by, dimension) != (embedder.name, str(embedder.dim)):
        return Check(
            *("store", name, "failed"),
            f"holds vectors of embedder {made_by!r} ({dimension} dimensions), not of "
            f"{embedder.name!r} ({embedder.dim} dimensions)",
            f"use the first with MEMORY_R1_EMBEDDER={made_by}, or run:  memory-r1 reindex "
            f"--embedder {embedder.name}",
        )
    says = f"opens, can be written to, and holds vectors of embedder {made_by!r}"
    return Check("store", name, "ok", says, milliseconds=took)


def _outbox(store: Store, name: str) -> Check:
    """What waits to be remembered, and of whom."""
    counts: dict[str, int] = {}
    users: set[str] = set()
    reason = ""
    for owner in store.waiting():
        for state in _WAITING:
            messages = store.messages(owner, state)
            counts[state] = counts.get(state, 0) + len(messages)
            if state == "deferred" and messages:
                users.add(owner.user_id)
                reason = messages[-1].error
    says = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if not counts.get("deferred"):
        return Check("outbox", name, "ok", says or "no message waits")
    first, *others = sorted(users)
    more = f" (and of {len(others)} more)" if others else ""
    return Check(
        *("outbox", name, "warning", f"{says}; the last for this reason: {reason}"),
        f"mend the reason, then run:  memory-r1 retry --user {first}{more}",
    )


_WAITING: Final[tuple[MessageState, ...]] = ("pending", "working", "deferred")


def _disk(file: Path) -> Check:
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    status: Status = "ok" if free >= _PLENTY else "warning" if free >= _ENOUGH else "failed"
    mend = "" if status == "ok" else "make room: what can't be written is refused"
    return Check("disk", str(folder), status, f"{free / 1e9:,.1f} GB free", mend)


_PLENTY: Final = 1_000_000_000
_ENOUGH: Final = 50_000_000
"""Bytes: about 20,000 memories, and room for the log of their transactions."""


def _embedder(name: str | None) -> tuple[Check, Embedder | None]:
    shown = _without_password(name or "wordllama")
    try:
        embedder = open_embedder(name)
        embedder.embed(["Is anybody there?"])  # a model that runs here is loaded by this
        began = time.perf_counter()
        embedder.embed(["I adopted a dog named Buddy."])
        took = _since(began)
    except MemoryR1Error as error:
        return Check("embedder", shown, "failed", _without_password(str(error))), None
    says = f"answers with vectors of {embedder.dim} numbers"
    return Check("embedder", shown, "ok", says, milliseconds=took), embedder


def _agents(name: str | None) -> Iterator[Check]:
    shown = _without_password(name or "rules")
    try:
        agents = open_agents(name)
    except MemoryR1Error as error:
        yield Check("models", shown, "failed", _without_password(str(error)))
        return
    for roles, llm in _players(agents):
        if llm is None:
            yield Check(roles, "rules", "ok", "no model is asked")
        elif isinstance(llm, OpenAILLM):
            yield from _service(roles, llm)
        else:
            yield _reply(roles, llm)


def _players(agents: Agents) -> list[tuple[str, LLM | None]]:
    """Who plays which roles; one that plays several comes once."""
    players: dict[int, tuple[list[str], LLM | None]] = {}
    for role in get_args(Role):
        llm = getattr(agents, role)
        players.setdefault(id(llm), ([], llm))[0].append(role)
    return [(", ".join(roles), llm) for roles, llm in players.values()]


def _service(roles: str, llm: OpenAILLM) -> Iterator[Check]:
    name = f"{_without_password(llm.base_url)}#{llm.name}"
    with closing(llm):
        began = time.perf_counter()
        try:
            served = llm.models()
        except ModelUnavailable as error:
            yield Check(roles, name, "failed", _without_password(str(error)))
            return
        took = _since(began)
        if served and llm.name not in served:
            some = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
            yield Check(
                *(roles, name, "warning", f"the server lists {some}; not {llm.name}"),
                "name one of these after the #, unless the next line says that it replies",
            )
        else:
            listed = "serves the model" if served else "answers (it has no list of models)"
            yield Check(roles, name, "ok", listed, milliseconds=took)
        yield _reply(roles, llm, name)


def _reply(roles: str, llm: LLM, name: str = "") -> Check:
    """Whether a model replies, and in the form it is asked for."""
    name = name or llm.name
    compact = llm.style == "compact"
    began = time.perf_counter()
    try:
        (said,) = llm.complete(
            [_COMPACT if compact else _INSTRUCT],
            max_tokens=8 if compact else 256,
            schema=None if compact else _SCHEMA,
        )
    except MemoryR1Error as error:
        return Check(roles, name, "failed", _without_password(str(error)))
    took = _since(began)
    if compact:
        return Check(roles, name, "ok", "replies", milliseconds=took)
    if isinstance(llm, OpenAILLM) and "response_format" in llm.refused:
        says = "replies, but takes no JSON schema: replies are read tolerantly, and asked for again"
        return Check(roles, name, "ok", says, milliseconds=took)
    if _follows(said):
        return Check(roles, name, "ok", "replies and follows a JSON schema", milliseconds=took)
    return Check(
        *(roles, name, "warning", f"does not follow a JSON schema: it said {said.text[:80]!r}"),
        "use a server that enforces response_format, or a larger model; what can't be read is "
        "asked for again once, then deferred",
        milliseconds=took,
    )


_COMPACT: Final = Prompt((("user", "memory nothing question Where does Ida live? =>"),))
_INSTRUCT: Final = Prompt((("user", 'Are you ready? Reply with JSON only: {"ready": true}'),))
_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}


def _follows(said: Completion) -> bool:
    try:
        value = json.loads(said.text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("ready"), bool)


def _without_password(text: str) -> str:
    return re.sub(r"(://[^\s/@:]*:)[^\s/@]*@", r"\1...@", text)


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 1)

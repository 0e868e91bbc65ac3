"""The Python surface of mem0, over this memory: both the 1.x and the 2.x call forms.

    from memory_r1.compat.mem0 import Memory        # was: from mem0 import Memory

docs/migrate.md says what maps to what, and what differs.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from copy import deepcopy
from datetime import date, datetime, timedelta
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from memory_r1 import memory as native
from memory_r1.compat import banks
from memory_r1.compat.banks import NO_USER
from memory_r1.compat.mem0_calls import (
    IDS,
    InvalidCall,
    Scope,
    UnknownMemory,
    ValidationError,
    as_value_errors,
    check_kind,
    end_of_life,
    ids_of,
    is_number,
    owner_of,
    scope_of,
    size_of,
)
from memory_r1.compat.mem0_config import open_memory
from memory_r1.errors import UnknownEntry
from memory_r1.types import NEVER, Entry, Hit, JournalRow, Owner

__all__ = ["AsyncMemory", "InvalidCall", "Memory", "UnknownMemory", "ValidationError"]

P = ParamSpec("P")
T = TypeVar("T")
Item = dict[str, Any]

_UNSET: Final = object()
_ROLES: Final = ("user", "assistant", "system", "tool", "")


class Memory:
    """mem0's `Memory`, kept by memory-r1.

    config: mem0's configuration dict; see `mem0_config.open_memory`. memory: a memory of ours to
    use instead, whatever its store and its models. It stays reachable as `.memory`, with all that
    mem0 has no word for: ask, undo, journal, as_of.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, memory: native.Memory | None = None
    ) -> None:
        """Open it; ConfigError for settings that have no meaning here."""
        self.memory = memory or open_memory(config)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any]) -> Self:
        """The memory of a configuration; ConfigError."""
        return cls(config_dict)

    def __enter__(self) -> Self:
        """Use it in a `with` block, which closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.memory.close()

    @as_value_errors()
    def add(
        self,
        messages: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        user_id: object = None,
        agent_id: object = None,
        run_id: object = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: Any = None,
        expiration_date: date | str | None = None,
        infer: bool = True,
        memory_type: str | None = None,
        prompt: str | None = None,
        once: str = "",
    ) -> Item:
        """Remember messages: {"results": [{"id", "memory", "event"}]}, one per changed memory.

        The events are ADD, UPDATE (with "previous_memory") and DELETE. With infer=False every
        message is one memory, and the event of one that is known already is NONE. What a model
        failed at is under "deferred", which is only there then; `.memory.retry` tries again. What
        waits for `.memory.approve` by the memory's policy is under "proposed" in the same way.
        once: see `memory_r1.Memory.add`; mem0 has nothing like it.
        """
        owner = owner_of(user_id, agent_id, run_id)
        check_kind(memory_type, prompt)
        if isinstance(messages, str):
            messages = {"role": "user", "content": messages}
        told_of = [messages] if isinstance(messages, Mapping) else messages
        if not isinstance(told_of, Sequence):
            raise ValidationError(
                f"messages should be a text, a dict or a list of dicts, got {messages!r:.80}",
                "VALIDATION_003",
                "Give a text, or messages with a role and a content.",
                provided_type=type(messages).__name__,
            )
        kept = {"timestamp": timestamp, "expires": end_of_life(expiration_date)}
        about = {name: value for name, value in (metadata or {}).items() if name not in IDS}
        if not infer:
            return {"results": self._add_verbatim(told_of, owner, about, kept, once)}
        result = self.memory.add(list(told_of), **ids_of(owner), metadata=about, once=once, **kept)
        changed = [row for row in result.rows if row.op != "NOOP"]
        done = [_event(row) for row in changed if row.state == "done"]
        proposed = [_event(row) | {"id": row.id} for row in changed if row.state == "proposed"]
        lost = [
            {"memory": fact.fact.text, "error": fact.error}
            for fact in result.facts
            if fact.status != "stored"
        ]
        beside = {"deferred": lost, "proposed": proposed}
        return {"results": done, **{name: items for name, items in beside.items() if items}}

    def _add_verbatim(
        self, messages: Sequence[Any], owner: Owner, metadata: Item, kept: Item, once: str
    ) -> list[Item]:
        """One memory per message but the system's; its role is kept, as mem0 does."""
        items: list[Item] = []
        for number, message in enumerate(messages):
            role = message.get("role", "user") if isinstance(message, Mapping) else "user"
            if role == "system":
                continue
            added = self.memory.add(
                message,
                **ids_of(owner),
                metadata={**metadata, "role": role},
                infer=False,
                once=once and f"{once} {number}",
                **kept,
            )
            for row in added.rows:
                item = {"id": row.entry_id, "memory": row.reason, "event": "NONE"}
                item |= _event(row) if row.op != "NOOP" else {}
                items.append(item | {"actor_id": message.get("name"), "role": role})
        return items

    @as_value_errors()
    def search(
        self,
        query: str,
        *,
        user_id: object = None,
        agent_id: object = None,
        run_id: object = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        rerank: bool = True,
        explain: bool = False,
        show_expired: bool = False,
    ) -> Item:
        """The memories that fit a query, best first: {"results": [{..., "score"}]}.

        Looked at are all memories that have the given ids, whatever their others. score is the
        cosine of query and memory, 0 to 1; the order also counts words, dates and speakers.
        threshold: the lowest score. explain: what the order rests on, as "score_details". rerank
        changes nothing: all is ranked.
        """
        scope = scope_of(user_id, agent_id, run_id, filters)
        size = size_of(limit, top_k, scope)
        if not isinstance(query, str) or not query.strip():
            raise InvalidCall("the query is empty; expected what to look for")
        if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
            raise InvalidCall(f"threshold is {threshold!r}; expected a number from 0 to 1")
        hits = banks.search(
            self.memory,
            self._owners(scope),
            query,
            k=size,
            where=scope.where,
            expired=show_expired,
            explain=explain,
        )
        found = [self._found(hit, query, explain) for hit in hits]
        return {"results": [item for item in found if item["score"] >= (threshold or 0.0)]}

    def _found(self, hit: Hit, query: str, explain: bool) -> Item:
        vector = self.memory.store.vector(hit.entry.owner, hit.entry.id)
        cosine = float(self.memory.embedder.embed([query])[0] @ vector)
        item = self._item(hit.entry) | {"score": min(max(cosine, 0.0), 1.0)}
        return item | {"score_details": dict(hit.signals)} if explain else item

    @as_value_errors()
    def get_all(
        self,
        *,
        user_id: object = None,
        agent_id: object = None,
        run_id: object = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        show_expired: bool = False,
    ) -> Item:
        """The memories that have the given ids, oldest first: {"results": [...]}.

        At most `limit` or `top_k` of them, by default 100 (1.x) or, where ids are in the filters
        (2.x), 20.
        """
        scope = scope_of(user_id, agent_id, run_id, filters)
        size = size_of(limit, top_k, scope)
        found = banks.entries(self.memory, self._owners(scope), scope.where, show_expired)
        return {"results": [self._item(entry) for entry in found[:size]]}

    def get(self, memory_id: str) -> Item | None:
        """One memory; None when there is none of this id."""
        try:
            owner = self._owner_of(memory_id)
        except UnknownEntry:
            return None
        entry = self.memory.store.get(owner, memory_id)
        return None if entry.superseded else self._item(entry) | {"score": None}

    @as_value_errors()
    def update(
        self,
        memory_id: str,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: Any = _UNSET,
        data: str | None = None,
    ) -> Item:
        """Change what a memory says, or what is kept with it; ValueError when it is unknown.

        data: 1.x's name of the text. metadata is merged. expiration_date: None for never.
        """
        text = data if text is None else text
        until = None
        if expiration_date is not _UNSET:
            until = end_of_life(expiration_date) or NEVER
        if text is None and metadata is None and until is None:
            raise InvalidCall("what should change? Give text, metadata or expiration_date")
        kept = {name: value for name, value in (metadata or {}).items() if name not in IDS}
        owner = self._owner_of(memory_id)
        self.memory.update(memory_id, text, **ids_of(owner), metadata=kept, expires=until)
        return {"message": "Memory updated successfully!"}

    @as_value_errors()
    def delete(self, memory_id: str) -> Item:
        """Take a memory out; its history stays. ValueError when it is unknown."""
        self.memory.delete(memory_id, **ids_of(self._owner_of(memory_id)))
        return {"message": "Memory deleted successfully!"}

    @as_value_errors()
    def delete_all(
        self, user_id: object = None, agent_id: object = None, run_id: object = None
    ) -> Item:
        """Take out all memories that have the given ids; their history stays."""
        if user_id is None and agent_id is None and run_id is None:
            raise InvalidCall("whose memories? Give user_id, agent_id or run_id; `reset` takes all")
        scope = scope_of(user_id, agent_id, run_id, None)
        owners = self._owners(scope)
        with self.memory.store.transaction():
            for entry in banks.entries(self.memory, owners, scope.where, expired=True):
                self.memory.delete(entry.id, **ids_of(entry.owner))
        return {"message": "Memories deleted successfully!"}

    def history(self, memory_id: str) -> list[Item]:
        """What was done to a memory, first to last; [] when it is unknown."""
        try:
            owner = self._owner_of(memory_id)
        except UnknownEntry:
            return []
        rows = [
            row for row in self.memory.journal(**ids_of(owner), entry_id=memory_id) if _done(row)
        ]
        return [_history(row, rows[0].at) for row in rows]

    def reset(self) -> None:
        """Erase everything in the store for good, of everyone."""
        for owner in self.memory.store.owners():
            self.memory.forget(**ids_of(owner))

    def _owners(self, scope: Scope) -> list[Owner]:
        user = scope.ids.get("user_id")
        owners = self.memory.store.owners(None if user == "*" else user)
        return [owner for owner in owners if scope.has(owner)]

    def _owner_of(self, memory_id: str) -> Owner:
        """Whose memory it is; UnknownEntry. mem0's ids alone don't tell."""
        for owner in self.memory.store.holding(str(memory_id)):
            return owner
        raise UnknownEntry(f"no memory has the id {memory_id!r}")

    def _item(self, entry: Entry) -> Item:
        """A memory as mem0 shows it. What isn't known of it, a user for example, isn't there."""
        first = entry
        if entry.version > 1:
            first = self.memory.store.versions(entry.owner, entry.id)[0]
        metadata = deepcopy(dict(entry.metadata))  # the entry is shared, and callers edit items
        known = {
            "user_id": entry.owner.user_id if entry.owner.user_id != NO_USER else None,
            "agent_id": entry.owner.agent_id or None,
            "run_id": entry.owner.run_id or None,
            "actor_id": _actor(entry),
            "role": metadata.pop("role", None),
            "expiration_date": _last_day(entry.expires),
        }
        return {
            "id": entry.id,
            "memory": entry.text,
            "hash": hashlib.md5(entry.text.encode("utf-8", "replace")).hexdigest(),
            "metadata": metadata or None,
            "created_at": first.stored.isoformat(),
            "updated_at": entry.stored.isoformat(),
            **{name: value for name, value in known.items() if value is not None},
        }


def _awaitable(
    method: Callable[Concatenate[Memory, P], T],
) -> Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(self: AsyncMemory, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.sync, *args, **kwargs)

    return call


class AsyncMemory:
    """mem0's `AsyncMemory`: the same methods, to be awaited, each in a thread."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, memory: native.Memory | None = None
    ) -> None:
        """See `Memory`."""
        self.sync = Memory(config, memory=memory)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any]) -> Self:
        """The memory of a configuration; ConfigError."""
        return cls(config_dict)

    async def __aenter__(self) -> Self:
        """Use it in an `async with` block, which closes it."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.sync.close()

    add = _awaitable(Memory.add)
    search = _awaitable(Memory.search)
    get_all = _awaitable(Memory.get_all)
    get = _awaitable(Memory.get)
    update = _awaitable(Memory.update)
    delete = _awaitable(Memory.delete)
    delete_all = _awaitable(Memory.delete_all)
    history = _awaitable(Memory.history)
    reset = _awaitable(Memory.reset)


def _last_day(expires: datetime | None) -> str | None:
    if expires is None:
        return None
    return (expires - timedelta(microseconds=1)).date().isoformat()


def _event(row: JournalRow) -> Item:
    """A row of the journal as a result of `add`."""
    before, after = _texts(row)
    item = {
        "id": row.entry_id,
        "memory": before if after is None else after,
        "event": _name(before, after),
    }
    return item | {"previous_memory": before} if item["event"] == "UPDATE" else item


def _texts(row: JournalRow) -> tuple[str | None, str | None]:
    """What an entry said before and after, None where it wasn't believed."""
    before, after = (
        entry.text if entry and entry.superseded is None else None
        for entry in (row.before, row.after)
    )
    return before, after


def _name(before: str | None, after: str | None) -> str:
    if before is None:
        return "ADD"
    return "DELETE" if after is None else "UPDATE"


def _done(row: JournalRow) -> bool:
    return row.op != "NOOP" and row.state in ("done", "undone")


def _history(row: JournalRow, created: datetime) -> Item:
    before, after = _texts(row)
    entry = row.after or row.before
    return {
        "id": row.id,
        "memory_id": row.entry_id,
        "old_memory": before,
        "new_memory": after,
        "event": _name(before, after),
        "created_at": created.isoformat(),
        "updated_at": row.at.isoformat(),
        "is_deleted": after is None,
        "actor_id": _actor(entry) if entry else None,
        "role": entry.metadata.get("role") if entry else None,
    }


def _actor(entry: Entry) -> str | None:
    """Who said it; a message without a name has only a role."""
    return None if entry.speaker in _ROLES else entry.speaker

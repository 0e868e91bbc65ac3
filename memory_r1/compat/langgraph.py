"""LangGraph's BaseStore over this memory: long-term memory for graphs, and for LangMem's tools.

    graph = builder.compile(store=MemoryStore(Memory("memory.db")))

docs/migrate.md says what maps to what. A namespace is a user: ("memories", "ann") is the memory
of the user "memories.ann", which every other verb can read too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from memory_r1.bank import Bank
from memory_r1.compat import banks
from memory_r1.compat.items import KEPT, Namespace, Written, digest, user_of, written
from memory_r1.errors import ConfigError, MissingExtra
from memory_r1.memory import Memory
from memory_r1.types import NEVER, Add, Delete, Entry, Owner, Update

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        InvalidNamespaceError,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        TTLConfig,
    )
except ImportError as error:
    raise MissingExtra("LangGraph's store", "langgraph-checkpoint", "langgraph") from error


class InvalidOperation(ConfigError, ValueError):
    """Not an operation of LangGraph's store, or a filter with an operator that it doesn't know."""


class MemoryStore(BaseStore):
    """Items of LangGraph as entries of a memory: versions, journal and undo come with them.

    memory: where they are kept; what else is in it shows up as items {"content": text}. fields:
    what a query is compared with, all of the value by default. ttl: LangGraph's own settings.
    A batch reads first and writes then, as LangGraph's stores do; its writes are one transaction.
    """

    supports_ttl = True

    def __init__(
        self,
        memory: Memory,
        *,
        fields: Sequence[str] | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        self.memory = memory
        self.ttl_config = ttl
        self._fields = fields

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Do all of it; one result per operation. ValueError for an impossible namespace."""
        ops = list(ops)
        for op in ops:
            _check_labels(op)
        results = [self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if puts:
            # The embedder may be slow: its vectors are cached before other writers have to wait.
            now = datetime.now(UTC)
            told = [self._written(put, now).text for put in puts.values() if put.value is not None]
            self.memory.embedder.embed(told)
            with self.memory.store.transaction():
                for put in puts.values():
                    self._put(put)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """The same, in a thread."""
        return await asyncio.to_thread(self.batch, list(ops))

    def _read(self, op: Op) -> Result:
        match op:
            case GetOp(namespace, key, refresh):
                entry = self._find(namespace, key)
                if entry is None:
                    return None
                self._refresh([entry], refresh)
                return Item(**_fields(entry))
            case SearchOp():
                return self._search(op)
            case ListNamespacesOp():
                return self._namespaces(op)
        return None

    def _bank(self, namespace: Namespace) -> Bank:
        return self.memory.bank(user_of(namespace))

    def _find(self, namespace: Namespace, key: str) -> Entry | None:
        if not namespace:
            return None
        owner = self._bank(namespace).owner
        found = banks.entries(self.memory, [owner], lambda entry: _key(entry) == key)
        return found[-1] if found else None

    def _written(self, op: PutOp, created: datetime) -> Written:
        fields = self._fields if op.index is None else op.index or ()
        safe = self.memory.settings.redact
        assert op.value is not None
        return written(op.key, op.value, created, fields=fields, ttl=op.ttl, safe=safe)

    def _put(self, op: PutOp) -> None:
        bank = self._bank(op.namespace)
        now = bank.now()
        bank = Bank(bank.store, bank.embedder, bank.owner, now=lambda: now)
        found = self._find(op.namespace, op.key)
        if op.value is None:
            if found is not None:
                bank.apply([Delete(found.id)], reason="LangGraph")
            return
        until = None if op.ttl is None else _after(now, op.ttl)
        if found is not None and found.expires is not None:
            until = until or NEVER
        text, metadata = self._written(op, _item(found).created if found else now)
        bank.apply(
            [Add(text) if found is None else Update(found.id, text)],
            reason="LangGraph",
            metadata=metadata,
            expires=until,
        )

    def _search(self, op: SearchOp) -> list[SearchItem]:
        owners = [
            owner
            for namespace, owner in self._owners()
            if namespace[: len(op.namespace_prefix)] == op.namespace_prefix
        ]
        end = op.offset + op.limit
        scores: dict[str, float] = {}

        def meant(entry: Entry) -> bool:
            return _meets(_item(entry).value, op.filter or {})

        if op.query:
            hits = banks.search(
                self.memory,
                owners,
                op.query,
                k=end,
                where=lambda entry: _item(entry).indexed and meant(entry),
            )
            scores = {hit.entry.id: hit.score for hit in hits}
            found = [hit.entry for hit in hits]
            if len(found) < end:  # then come those that no query finds
                found += banks.entries(
                    self.memory, owners, lambda entry: not _item(entry).indexed and meant(entry)
                )
        else:
            found = [
                entry for owner in owners for entry in banks.entries(self.memory, [owner], meant)
            ]
        found = found[op.offset : end]
        self._refresh(found, op.refresh_ttl)
        return [SearchItem(**_fields(entry), score=scores.get(entry.id)) for entry in found]

    def _refresh(self, entries: Sequence[Entry], wanted: bool) -> None:
        """Start the time to live of items anew: they have been read."""
        for entry in entries if wanted else ():
            if (ttl := _item(entry).ttl) is None or entry.expires is None:
                continue
            bank = banks.bank_of(self.memory, entry.owner)
            until = _after(bank.now(), ttl)
            # Every refresh is a version: a tenth of the time is worth one.
            if (until - entry.expires).total_seconds() <= 60 * ttl / 10:
                continue
            with self.memory.store.transaction():
                known = self._find(tuple(entry.owner.user_id.split(".")), _key(entry))
                if known == entry:  # else somebody has just put or deleted it
                    bank.apply(
                        [Update(entry.id, entry.text)], reason="LangGraph: read", expires=until
                    )

    def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        conditions = op.match_conditions or ()
        found = dict.fromkeys(
            namespace[: op.max_depth]
            for namespace, owner in self._owners()
            if all(_matches(condition, namespace) for condition in conditions)
            and banks.entries(self.memory, [owner], lambda entry: True)
        )
        return list(islice(sorted(found), op.offset, op.offset + op.limit))

    def _owners(self) -> list[tuple[Namespace, Owner]]:
        """The namespaces there have been, the oldest first."""
        return [
            (tuple(owner.user_id.split(".")), owner)
            for owner in self.memory.store.owners()
            if not owner.agent_id and not owner.run_id
        ]


def _check_labels(op: Op) -> None:
    """A label with a period would be another namespace; LangGraph checks its own verbs only."""
    match op:
        case GetOp(namespace) | PutOp(namespace) | SearchOp(namespace):
            paths = [namespace]
        case ListNamespacesOp(conditions):
            paths = [tuple(condition.path) for condition in conditions or ()]
        case _:
            raise InvalidOperation(f"expected an operation of LangGraph's store, got {op!r:.80}")
    for label in (label for path in paths for label in path):
        if not isinstance(label, str) or not label or "." in label:
            raise InvalidNamespaceError(
                f"a namespace label is {label!r}; expected a text without periods"
            )


class _Item(NamedTuple):
    """What an entry is to LangGraph."""

    key: str
    value: dict[str, Any]
    created: datetime
    ttl: float | None
    indexed: bool


def _item(entry: Entry) -> _Item:
    given = entry.metadata.get(KEPT)
    if given is None:  # not put by LangGraph
        value = {**entry.metadata, "content": entry.text}
        return _Item(entry.id, value, entry.stored, None, True)
    value, created = given["value"], datetime.fromisoformat(given["created"])
    if given["text"] != digest(entry.text):  # the Memory Manager, or somebody, has changed it
        value = {**value, "content": entry.text}
    return _Item(given["key"], value, created, given["ttl"], given["indexed"])


def _key(entry: Entry) -> str:
    given = entry.metadata.get(KEPT)
    return entry.id if given is None else str(given["key"])


def _fields(entry: Entry) -> dict[str, Any]:
    item = _item(entry)
    return {
        "namespace": tuple(entry.owner.user_id.split(".")),
        "key": item.key,
        "value": deepcopy(item.value),  # the entry is shared, and callers edit their items
        "created_at": item.created,
        "updated_at": entry.stored,
    }


def _after(moment: datetime, minutes: float) -> datetime:
    try:
        return min(moment + timedelta(minutes=minutes), NEVER)
    except OverflowError:
        return NEVER


def _matches(condition: MatchCondition, namespace: Namespace) -> bool:
    path = condition.path
    if len(namespace) < len(path):
        return False
    start = 0 if condition.match_type == "prefix" else len(namespace) - len(path)
    part = namespace[start : start + len(path)]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))


def _meets(value: Any, wanted: Any) -> bool:
    """Whether a part of a value is as a filter wants it: equal, or by operators, at any depth."""
    match wanted:
        case Mapping() if any(name.startswith("$") for name in wanted):
            return all(_compares(value, name, limit) for name, limit in wanted.items())
        case Mapping():
            return isinstance(value, Mapping) and all(
                _meets(value.get(name), part) for name, part in wanted.items()
            )
        case list() | tuple():
            return (
                isinstance(value, list)
                and len(value) == len(wanted)
                and all(map(_meets, value, wanted))
            )
    return bool(value == wanted)


def _compares(value: Any, operator: str, limit: Any) -> bool:
    match operator:
        case "$eq":
            return bool(value == limit)
        case "$ne":
            return bool(value != limit)
        case "$gt" | "$gte" | "$lt" | "$lte":
            try:
                a, b = float(value), float(limit)
            except (TypeError, ValueError):
                return False  # what is no number, or isn't there, lies on no side of one
            return {"$gt": a > b, "$gte": a >= b, "$lt": a < b, "$lte": a <= b}[operator]
    raise InvalidOperation(f"unknown operator {operator!r}; expected $eq $ne $gt $gte $lt $lte")

"""The indexes a store keeps in memory: as many owners' as fit, the longest unused go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, Protocol, TypeVar

from memory_r1.store.index import Index
from memory_r1.types import Owner

ENTRIES: Final = 200_000
"""Entries kept over all owners, of 2 kB each and 4.5 where one owner has 100,000; the index used
last always stays."""


class Cached(Protocol):
    """An index, and what tells whether it is still that of the store."""

    @property
    def index(self) -> Index:
        """The index."""
        ...


C = TypeVar("C", bound=Cached)


class IndexCache(Generic[C]):
    """Owner -> what was cached of theirs. Not safe for threads by itself."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._most = entries
        self._kept: OrderedDict[Owner, C] = OrderedDict()
        self._entries = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, owner: Owner) -> C | None:
        """What is cached of an owner."""
        cached = self._kept.get(owner)
        if cached is not None:
            self._kept.move_to_end(owner)
        return cached

    def put(self, owner: Owner, cached: C) -> None:
        """Keep this, and drop what was used longest ago."""
        self.drop(owner)
        self._kept[owner] = cached
        self._entries += len(cached.index)
        while self._entries > self._most and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, owner: Owner) -> None:
        """Forget what is cached of an owner."""
        if (cached := self._kept.pop(owner, None)) is not None:
            self._entries -= len(cached.index)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._entries = 0

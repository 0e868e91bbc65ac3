"""Indexes in memory: as many as fit."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from memory_r1.store.cache import IndexCache
from memory_r1.store.index import Index
from memory_r1.types import Entry, Owner

A, B, C = map(Owner, "abc")


@dataclass
class Held:
    size: int
    index: Index = field(init=False)

    def __post_init__(self):
        self.index = Index()
        for number in range(self.size):
            entry = Entry(f"{number:03}", "a cat", A, datetime(2024, 1, 1, tzinfo=UTC))
            self.index.put(entry, np.ones(2, np.float32))


def kept(cache):
    return [owner for owner in (A, B, C) if cache.get(owner)]


def test_the_longest_unused_goes_when_there_are_too_many_entries():
    cache = IndexCache(10)
    cache.put(A, Held(4))
    cache.put(B, Held(4))
    assert cache.get(A).size == 4
    cache.put(C, Held(4))
    assert kept(cache) == [A, C]
    cache.put(A, Held(6))
    assert kept(cache) == [A, C] and len(cache) == 2


def test_one_that_is_too_large_stays_until_another_is_used():
    cache = IndexCache(10)
    cache.put(A, Held(20))
    assert kept(cache) == [A]
    cache.put(B, Held(1))
    assert kept(cache) == [B]
    cache.drop(B)
    cache.drop(B)
    assert len(cache) == 0
    cache.put(C, Held(9))
    cache.clear()
    assert kept(cache) == []
    cache.put(A, Held(10))
    assert kept(cache) == [A]

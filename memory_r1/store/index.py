"""one owner's current entries in columns -> keyword and vector scores over all of them."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.text import terms
from memory_r1.types import Entry

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

K1: Final = 0.9
"""How soon a repeated word stops adding to the score (Robertson and Zaragoza, 2009)."""
B: Final = 0.4
"""How much a long entry is held back."""


class Index:
    """The current entries of one owner, oldest first, kept up to date one entry at a time.

    Words are scanned in one flat column rather than looked up in postings: at 10,000 entries
    the scan is a fraction of a millisecond, and a copy shares every column until one side
    writes. "Oldest first" is the order of the ids, which sort by creation, so that an index
    filled in any order is the same. Search a `copy()` while another thread writes.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._entries: list[Entry] = []
        self._speaker_codes: dict[str, int] = {}
        self._vectors: _Column | None = None  # (n, d), None until the first entry tells d
        self._rows = _Column(np.empty((0, 4), np.int64))  # session, turn, speaker, length
        self._word = _Column(np.empty(0, np.int64))  # one item per entry and distinct term:
        self._word_row = _Column(np.empty(0, np.int64))  # ... the entry's row
        self._word_count = _Column(np.empty(0, np.float32))  # ... how often it occurs there

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, entry_id: object) -> bool:
        return isinstance(entry_id, str) and self._find(entry_id)[1]

    @property
    def entries(self) -> list[Entry]:
        """All entries, oldest first; the rows of every column below."""
        return list(self._entries)

    @property
    def vectors(self) -> Floats:
        """(n, d) the entries' embeddings; (0, 0) while empty. Read only."""
        return np.empty((0, 0), np.float32) if self._vectors is None else self._vectors.view

    @property
    def sessions(self) -> Ints:
        """(n,) the session of the latest source turn; without one, minus the day it was said."""
        return self._rows.view[:, 0]

    @property
    def turns(self) -> Ints:
        """(n,) the number of the latest source turn in its session; -1 where unknown."""
        return self._rows.view[:, 1]

    @property
    def speakers(self) -> list[str]:
        """Whose entries these are, in alphabetical order."""
        counts = np.bincount(self._rows.view[:, 2], minlength=len(self._speaker_codes))
        return sorted(name for name, code in self._speaker_codes.items() if name and counts[code])

    def spoken_by(self, speaker: str) -> Mask:
        """(n,) True for the entries of this speaker."""
        mask: Mask = self._rows.view[:, 2] == self._speaker_codes.get(speaker, -1)
        return mask

    def put(self, entry: Entry, vector: ArrayLike) -> None:
        """Insert an entry, or replace the one with its id.

        vector: (d,) float32; StoreError when d isn't that of the other entries.
        """
        vector = self._checked(vector)
        row, found = self._find(entry.id)
        if found:
            self._forget_words(row)
        else:
            self._ids.insert(row, entry.id)
            if row < len(self._entries):
                self._word_row.write()[self._word_row.view >= row] += 1
            self._entries.insert(row, entry)
        words = _words(entry.text)
        speaker = self._speaker_codes.setdefault(entry.speaker, len(self._speaker_codes))
        facts = (*_place(entry), speaker, words.length)
        assert self._vectors is not None
        if found:
            self._entries[row] = entry
            self._vectors.write()[row] = vector
            self._rows.write()[row] = facts
        else:
            self._vectors.insert(row, vector)
            self._rows.insert(row, facts)
        self._word.extend(words.hashes)
        self._word_row.extend(np.full(len(words.hashes), row))
        self._word_count.extend(words.counts)

    def drop(self, entry_id: str) -> None:
        """Remove an entry; UnknownEntry when it isn't here."""
        row, found = self._find(entry_id)
        if not found:
            raise UnknownEntry(f"no entry {entry_id!r} among the {len(self)} of this index")
        assert self._vectors is not None
        del self._ids[row], self._entries[row]
        self._vectors.remove(row)
        self._rows.remove(row)
        self._forget_words(row)
        self._word_row.write()[self._word_row.view > row] -= 1

    def copy(self) -> Index:
        """An independent index that shares the columns until either side writes to them."""
        twin = Index.__new__(Index)
        twin._ids = self._ids.copy()
        twin._entries = self._entries.copy()
        twin._speaker_codes = self._speaker_codes.copy()
        twin._vectors = None if self._vectors is None else self._vectors.copy()
        twin._rows = self._rows.copy()
        twin._word = self._word.copy()
        twin._word_row = self._word_row.copy()
        twin._word_count = self._word_count.copy()
        return twin

    def bm25(self, query: Iterable[str]) -> Floats:
        """(n,) BM25 of each entry's text for these terms (see `text.terms`); never negative."""
        scores = np.zeros(len(self), np.float32)
        if not len(self):
            return scores
        lengths = self._rows.view[:, 3].astype(np.float32)
        damping = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1.0))  # (n,)
        word, word_row, word_count = self._word.view, self._word_row.view, self._word_count.view
        for term in dict.fromkeys(query):
            at = np.flatnonzero(word == _hash(term))
            if len(at):
                rows, counts = word_row[at], word_count[at]
                rarity = np.float32(np.log1p((len(self) - len(at) + 0.5) / (len(at) + 0.5)))
                scores[rows] += rarity * counts * (K1 + 1) / (counts + damping[rows])
        return scores

    def _find(self, entry_id: str) -> tuple[int, bool]:
        """The row of an id, or the one it would get, and whether it is here."""
        row = bisect_left(self._ids, entry_id)
        return row, row < len(self._ids) and self._ids[row] == entry_id

    def _checked(self, vector: ArrayLike) -> Floats:
        vector = np.asarray(vector, np.float32)
        if self._vectors is None:
            self._vectors = _Column(np.empty((0, vector.size), np.float32))
        expected = self._vectors.view.shape[1:]
        if vector.shape != expected:
            raise StoreError(
                f"a vector of shape {vector.shape} was given to an index of shape {expected} "
                "vectors: the embedder has changed; re-embed the entries, or open the store "
                "with the embedder that wrote it"
            )
        return vector

    def _forget_words(self, row: int) -> None:
        kept = self._word_row.view != row
        for column in (self._word, self._word_row, self._word_count):
            column.keep(kept)


class _Column:
    """A growing array; copies share it until one of them writes."""

    def __init__(self, data: NDArray[Any], size: int = 0, shared: bool = False) -> None:
        self._data, self._size, self._shared = data, size, shared

    @property
    def view(self) -> NDArray[Any]:
        return self._data[: self._size]

    def copy(self) -> _Column:
        self._shared = True
        return _Column(self._data, self._size, shared=True)

    def write(self) -> NDArray[Any]:
        """The items, to be changed in place."""
        if self._shared:
            self._reallocate(self._size)
        return self.view

    def extend(self, items: NDArray[Any]) -> None:
        end = self._size + len(items)
        if self._shared or end > len(self._data):
            self._reallocate(end)
        self._data[self._size : end] = items
        self._size = end

    def insert(self, at: int, item: ArrayLike) -> None:
        self.extend(np.asarray(item, self._data.dtype)[None])
        if at < self._size - 1:
            view = self.view
            view[at + 1 :] = view[at:-1].copy()
            view[at] = item

    def remove(self, at: int) -> None:
        view = self.write()
        view[at:-1] = view[at + 1 :].copy()
        self._size -= 1

    def keep(self, mask: Mask) -> None:
        self._data = self.view[mask]
        self._size, self._shared = len(self._data), False

    def _reallocate(self, size: int) -> None:
        room = np.empty((size + size // 2 + 8, *self._data.shape[1:]), self._data.dtype)
        room[: self._size] = self.view
        self._data, self._shared = room, False


class _Words(NamedTuple):
    hashes: Ints  # (m,) one per distinct term
    counts: Floats  # (m,)
    length: int


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> _Words:
    """The terms of a text, counted; remembered, so that forks never read a text twice."""
    counts = Counter(terms(text))
    return _Words(
        np.array([_hash(term) for term in counts], np.int64),
        np.array(list(counts.values()), np.float32),
        counts.total(),
    )


@lru_cache(maxsize=1 << 18)
def _hash(term: str) -> int:
    """64 bits stand for a term: no vocabulary to keep, and two terms meet once in 10^10 indexes."""
    digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


_TURN_ID: Final = re.compile(r"D(\d{1,9}):(\d{1,9})")


def _place(entry: Entry) -> tuple[int, int]:
    """Session and turn of the latest source; where its id doesn't tell, minus the day and -1."""
    if entry.sources and (match := _TURN_ID.fullmatch(entry.sources[-1])):
        return int(match[1]), int(match[2])
    return -(entry.said or entry.stored).toordinal(), -1

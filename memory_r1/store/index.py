"""one owner's current entries in columns -> keyword and vector scores over all of them."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.store.columns import Array, Column, Floats, Ints, Row, Slots, packed
from memory_r1.types import Entry

__all__ = ["Index", "Places", "Row", "Sketched", "packed"]

Mask = NDArray[np.bool_]

K1: Final = 0.9
"""How soon a repeated word stops adding to the score (Robertson and Zaragoza, 2009)."""
B: Final = 0.4
"""How much a long entry is held back."""
REACH: Final = 2
"""How many turns away an entry's neighbours may be."""


class Places(NamedTuple):
    """Which entries stand beside which, and in which session."""

    order: Ints | None
    """(n,) the rows by session and turn; None: they stand so already."""
    first: Ints
    """(turns,) where in that order each turn begins."""
    turn_of: Ints | None
    """(n,) the turn of each, in that order; None: each is a turn of its own."""
    apart: tuple[NDArray[np.int8], ...]
    """(turns - i - 1,) from each turn to the one i + 1 later, in turns; at most REACH + 1."""
    session_of: Ints
    """(n,) the session of each, in that order: 0, 0, 1, ..."""
    session_sizes: Ints
    """(sessions,) their numbers of entries."""

    @classmethod
    def of(cls, sessions: Ints, turns: Ints) -> Places:
        """Of (n,) sessions and turns, n > 0; see `Index.sessions`.

        Entries whose source has no number in its session stand in the order they were stored.
        """
        keys = (sessions << 32) + np.where(turns < 0, np.arange(len(turns)), turns)
        # Usually one entry per turn, in order.
        alone = bool((keys[1:] > keys[:-1]).all())
        order = None if alone else np.argsort(keys, kind="stable")
        keys = keys if order is None else keys[order]
        sessions = keys >> 32
        session_of = np.cumsum(np.diff(sessions, prepend=sessions[0]) != 0)
        starts = np.diff(keys, prepend=keys[0] - 1) != 0
        first = np.flatnonzero(starts)
        keys = keys[first]
        apart = tuple(
            np.minimum(keys[step:] - keys[:-step], REACH + 1).astype(np.int8)
            for step in range(1, min(REACH, len(keys) - 1) + 1)
        )
        turn_of = None if alone else np.cumsum(starts) - 1
        return cls(order, first, turn_of, apart, session_of, np.bincount(session_of))


class Sketched(NamedTuple):
    """Cosines from sketches of the vectors, and how the true ones are distributed."""

    cosines: Floats  # (n,)
    mean: float
    spread: float
    """The standard deviation."""


class Index:
    """The current entries of one owner, oldest first, kept up to date one entry at a time.

    Rows are the entries in the order of their ids, which sort by creation, so that an index
    filled in any order is the same. What is known of an entry stands in a slot of columns that
    are only ever appended to and that all copies share: a new entry, or a new version of one,
    takes the next slot, and an index looks no further than the slots it knows. So a copy, and
    an entry at the end, cost the same at any size. Search a `copy()` while another thread writes.
    """

    def __init__(self) -> None:
        self._slots = Slots(_as_it_is)
        self._size = 0  # slots known
        self._order: Ints | None = None  # (n,) the slot of each row; None: row i is slot i
        self._length = 0  # terms in all rows together
        self._places: Places | None = None  # of the rows as they are, once asked for

    @classmethod
    def build(cls, entries: Iterable[Entry], vectors: ArrayLike) -> Self:
        """An index of entries with distinct ids: what putting them one by one gives, but faster.

        vectors: (n, d) float32; StoreError for another shape.
        """
        entries, vectors = list(entries), np.asarray(vectors, np.float32)
        if entries and (vectors.ndim != 2 or len(vectors) != len(entries)):
            raise StoreError(f"{len(entries)} entries came with vectors of shape {vectors.shape}")
        return cls.load(
            (
                (entry.id, entry.speaker, packed(entry), entry, vector.astype("<f4").tobytes())
                for entry, vector in zip(entries, vectors, strict=True)
            ),
            _as_it_is,
        )

    @classmethod
    def load(cls, rows: Iterable[Row], read: Callable[[Any], Entry]) -> Self:
        """An index of what a store kept; no body is read before its entry is asked for.

        rows: of distinct ids. read: a row's body -> the entry. Rows whose `packed` is missing
        (b"") or of another version are packed anew. StoreError when the vectors differ in length.
        """
        index, rows = cls(), sorted(rows, key=itemgetter(0))
        if rows:
            index._slots, index._size = Slots.of(rows, read), len(rows)
            index._length = int(index._slots.lengths.view().sum())
        return index

    def __len__(self) -> int:
        return self._size if self._order is None else len(self._order)

    def __contains__(self, entry_id: object) -> bool:
        return isinstance(entry_id, str) and self._find(entry_id)[1]

    def entry(self, row: int) -> Entry:
        """The entry of a row."""
        return self._slots.entry(self._slot(row))

    def place(self, entry_id: str) -> int:
        """The row of an id, or the one it would have."""
        return self._find(entry_id)[0]

    @property
    def entries(self) -> list[Entry]:
        """All entries, oldest first; the rows of every column below."""
        return [self.entry(row) for row in range(len(self))]

    @property
    def dim(self) -> int:
        """Length of a vector; 0 while nothing was put."""
        return int(self._slots.vectors.item_shape[0])

    @property
    def vectors(self) -> Floats:
        """(n, d) the entries' embeddings; (0, 0) while empty. Read only."""
        return self._rows(self._slots.vectors)

    @property
    def sessions(self) -> Ints:
        """(n,) the session of the latest source turn; without one, minus the day it was said."""
        return self._rows(self._slots.sessions)

    @property
    def turns(self) -> Ints:
        """(n,) the number of the latest source turn in its session; -1 where unknown."""
        return self._rows(self._slots.turns)

    @property
    def places(self) -> Places:
        """Where the entries stand; there must be one."""
        if self._places is None:
            self._places = Places.of(self.sessions, self.turns)
        return self._places

    @property
    def speakers(self) -> list[str]:
        """Whose entries these are, in alphabetical order."""
        codes = self._slots.speaker_codes.copy()
        counts = np.bincount(self._rows(self._slots.speakers), minlength=len(codes))
        return sorted(name for name, code in codes.items() if name and counts[code])

    def spoken_by(self, speaker: str) -> Mask:
        """(n,) True for the entries of this speaker."""
        code = self._slots.speaker_codes.get(speaker, -1)
        mask: Mask = self._rows(self._slots.speakers) == code
        return mask

    def put(self, entry: Entry, vector: ArrayLike) -> None:
        """Insert an entry, or replace the one with its id.

        vector: (d,) float32; StoreError when d isn't that of the other entries.
        """
        vector = np.asarray(vector, np.float32)
        self._check(vector)
        row, found = self._find(entry.id)
        slot = self._size
        self._slots = self._slots.append(slot, entry, vector)
        order: Ints | None = None
        if found:
            self._length -= self._length_of(row)
            order = self._slot_of_rows().copy()
            order[row] = slot
        elif row < len(self) or self._order is not None:
            order = np.insert(self._slot_of_rows(), row, slot)
        self._size += 1
        self._length += int(self._slots.lengths.view()[slot])
        self._reorder(order)

    def drop(self, entry_id: str) -> None:
        """Remove an entry; UnknownEntry when it isn't here."""
        row, found = self._find(entry_id)
        if not found:
            raise UnknownEntry(f"no entry {entry_id!r} among the {len(self)} of this index")
        self._length -= self._length_of(row)
        self._reorder(np.delete(self._slot_of_rows(), row))

    def copy(self) -> Self:
        """An independent index, at once: neither writes where the other looks."""
        return copy.copy(self)

    def bm25(self, query: Iterable[str]) -> Floats:
        """(n,) BM25 of each entry's text for these terms (see `text.terms`); never negative."""
        scores = np.zeros(self._size, np.float32)
        if not len(self):
            return scores[:0]
        words, lengths = self._slots.words, self._slots.lengths.view()
        mean = np.float32(max(self._length / len(self), 1.0))
        current = self._current()
        for term in dict.fromkeys(query):
            slots, counts = words.find(term, self._size)
            if current is not None:
                kept = current[slots]
                slots, counts = slots[kept], counts[kept]
            if len(slots):
                damping = K1 * (1 - B + B * lengths[slots].astype(np.float32) / mean)
                rarity = np.log1p((len(self) - len(slots) + 0.5) / (len(slots) + 0.5))
                scores[slots] += np.float32(rarity) * counts * (K1 + 1) / (counts + damping)
        return scores if self._order is None else scores[self._order]

    def containing(self, words: Iterable[str]) -> Ints:
        """The rows, ascending, of the entries that contain all these terms (see `text.terms`).

        Nothing is ranked or compared, so that with a rare word first it takes no longer in a large
        bank. Without terms: all rows.
        """
        slots: Array | None = None
        for term in dict.fromkeys(words):
            found, _ = self._slots.words.find(term, self._size)
            slots = found if slots is None else np.intersect1d(slots, found, assume_unique=True)
            if not len(slots):
                break
        if slots is None:
            return np.arange(len(self))
        return (
            np.sort(slots) if self._order is None else np.flatnonzero(np.isin(self._order, slots))
        )

    def cosines(self, query: Floats, rows: Ints | None = None) -> Floats:
        """(n,) the entries' vectors times this one; only of some rows, (rows,), when named.

        query: (d,); StoreError when d isn't that of the entries.
        """
        self._check(query)
        vectors = self._slots.vectors.view(self._size)
        if rows is not None:
            vectors = vectors[rows if self._order is None else self._order[rows]]
        cosines: Floats = vectors @ query
        return cosines if self._order is None or rows is not None else cosines[self._order]

    def sketched(self, query: Floats) -> Sketched:
        """About the cosines, for an eighth of their time where the bank is large.

        query: (d,); StoreError when d isn't that of the entries.
        """
        self._check(query)
        sketches = self._slots.sketches(self._size)
        low = sketches.low.view()[: self._size]
        mean = sketches.mean @ query
        rest = self._slots.vectors.view(self._size)[len(low) :]
        cosines = np.concatenate((low @ (query @ sketches.basis) + mean, rest @ query))
        variance = float(query @ sketches.covariance @ query)
        return Sketched(
            cosines if self._order is None else cosines[self._order],
            float(mean),
            max(variance, 0.0) ** 0.5,
        )

    def _check(self, vector: Floats) -> None:
        expected = self._slots.vectors.item_shape
        if self._size and vector.shape != expected:
            raise StoreError(
                f"a vector of shape {vector.shape} was given to an index of shape {expected} "
                "vectors: the embedder has changed; re-embed the entries, or open the store "
                "with the embedder that wrote it"
            )

    def _find(self, entry_id: str) -> tuple[int, bool]:
        """The row of an id, or the one it would get, and whether it is here."""
        ids = self._slots.ids
        if self._order is None:
            row = bisect_left(ids, entry_id, hi=self._size)
        else:
            row = bisect_left(self._order, entry_id, key=ids.__getitem__)
        return row, row < len(self) and ids[self._slot(row)] == entry_id

    def _slot(self, row: int) -> int:
        return row if self._order is None else int(self._order[row])

    def _slot_of_rows(self) -> Ints:
        return np.arange(self._size) if self._order is None else self._order

    def _length_of(self, row: int) -> int:
        return int(self._slots.lengths.view()[self._slot(row)])

    def _rows(self, column: Column) -> Array:
        view = column.view(self._size)
        return view if self._order is None else view[self._order]

    def _current(self) -> Mask | None:
        """(slots,) whether a slot holds an entry as it is now; None when all do."""
        if len(self) == self._size:
            return None
        current = np.zeros(self._size, np.bool_)
        current[self._order] = True
        return current

    def _reorder(self, order: Ints | None) -> None:
        """Rows are in these slots from now on; when most slots are of no use, make new columns."""
        self._order, self._places = order, None
        if order is not None and self._size > 2 * len(order) + 64:
            self._slots = self._slots.take(order)
            self._size, self._order = len(order), None


def _as_it_is(entry: Any) -> Entry:
    assert isinstance(entry, Entry)
    return entry

"""what an index knows of its entries -> append-only columns, words to look up, sketches."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_r1.caches import forgettable
from memory_r1.errors import StoreError
from memory_r1.text import terms
from memory_r1.types import Entry

Array = NDArray[Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Slots32 = NDArray[np.int32]
Keys = NDArray[np.uint64]

TAIL: Final = 1 << 15
"""So many of the words added last are scanned, not sorted; and a quarter as many as are sorted."""
SKETCHED: Final = 64
"""Numbers in the sketch of a vector: enough to tell which thousands of a million to look at."""
SAMPLE: Final = 1 << 14
"""Vectors that tell what sketches should keep; and how many new ones may wait for theirs."""
PACKING: Final = 1
"""Counts up when `terms` or `packed` change: what was packed before is then packed anew."""

_HEADER: Final = 4
_COUNT_BITS: Final = 16
_COUNT: Final = np.uint64((1 << _COUNT_BITS) - 1)
_MARK: Final = PACKING.to_bytes(8, "little")

Row = tuple[str, str, bytes, Any, bytes]
"""An entry as a store keeps it: id, speaker, `packed`, body, little-endian float32 vector.

The body is whatever the `read` given beside it turns into the entry.
"""


def packed(entry: Entry) -> bytes:
    """The place and the words of an entry, to be kept beside it: about 170 bytes for a sentence.

    int64 each: PACKING, session, turn, number of terms; then a key per distinct term (uint64:
    48 bits of a hash, and how often it occurs). Little-endian.
    """
    keys, length = _keys(entry.text)
    header = np.array([PACKING, *_place(entry), length], "<i8")
    return header.tobytes() + keys.astype("<u8").tobytes()


@lru_cache(maxsize=1 << 18)
def _key(term: str) -> int:
    """48 bits stand for a term: no vocabulary to keep, and rarely do two of a million meet.

    The low 16 bits are left for the count.
    """
    digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "little") << _COUNT_BITS


@lru_cache(maxsize=1 << 14)
def _keys(text: str) -> tuple[Keys, int]:
    """The keys of a text's terms and how many terms it has; remembered, for forks."""
    counts = Counter(terms(text))
    keys = [_key(term) | min(n, int(_COUNT)) for term, n in counts.items()]
    return np.array(keys, np.uint64), counts.total()


forgettable(_key, lambda key: key.cache_clear())
forgettable(_keys, lambda keys: keys.cache_clear())

_TURN_ID: Final = re.compile(r"D(\d{1,9}):(\d{1,9})")


def _place(entry: Entry) -> tuple[int, int]:
    """Session and turn of the latest source; where its id doesn't tell, minus the day and -1."""
    if entry.sources and (match := _TURN_ID.fullmatch(entry.sources[-1])):
        return int(match[1]), int(match[2])
    return -(entry.said or entry.stored).toordinal(), -1


class Column:
    """A growing array whose first items never change: a view stays as it was taken."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self._size = len(data)

    def __len__(self) -> int:
        return self._size

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return self._data.shape[1:]

    def view(self, size: int | None = None) -> Array:
        """The first items, all by default. Read only."""
        return self._data[: self._size if size is None else size]

    def write(self, at: int, items: Array) -> None:
        """Make these the last items, from place `at` on, which nobody has looked at yet."""
        end = at + len(items)
        if end > len(self._data):
            data = np.empty((end + end // 2 + 8, *self.item_shape), self._data.dtype)
            data[:at] = self._data[:at]
            self._data = data
        self._data[at:end] = items
        self._size = end


class Words:
    """Which words stand in which slots: most sorted, to be looked up; the newest to be scanned."""

    def __init__(self, keys: Keys, slots: Slots32, tail_keys: Keys, tail_slots: Slots32) -> None:
        """Items of key and slot; the first two sorted by key, the others by slot."""
        self._keys, self._slots = keys, slots
        self._tail_keys, self._tail_slots = Column(tail_keys), Column(tail_slots)

    @classmethod
    def of(cls, keys: Keys, slots: Slots32) -> Words:
        """Items sorted by slot."""
        if len(keys) <= TAIL:
            return cls(keys[:0], slots[:0], keys, slots)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], slots[order], keys[:0], slots[:0])

    def append(self, keys: Keys, slot: int) -> Words:
        """These words and those of the slot that follows: this object, or one to replace it."""
        at = int(np.searchsorted(self._tail_slots.view(), slot))
        self._tail_keys.write(at, keys)
        self._tail_slots.write(at, np.full(len(keys), slot, np.int32))
        if len(self._tail_keys) <= TAIL + len(self._keys) // 4:
            return self
        return Words.of(
            np.concatenate((self._keys, self._tail_keys.view())),
            np.concatenate((self._slots, self._tail_slots.view())),
        )

    def find(self, term: str, size: int) -> tuple[Slots32, Floats]:
        """Which of the first `size` slots hold a term, each once, and how often."""
        key = np.uint64(_key(term))
        first = int(np.searchsorted(self._keys, key))
        end = int(np.searchsorted(self._keys, key | _COUNT, side="right"))
        slots, keys = self._slots[first:end], self._keys[first:end]
        tail_slots = self._tail_slots.view()
        tail = self._tail_keys.view(len(tail_slots))
        at = np.flatnonzero((tail ^ key) <= _COUNT)
        if len(at):
            slots = np.concatenate((slots, tail_slots[at]))
            keys = np.concatenate((keys, tail[at]))
        if len(slots) and int(slots.max()) >= size:
            known = slots < size
            slots, keys = slots[known], keys[known]
        return slots, (keys & _COUNT).astype(np.float32)

    def renumbered(self, new: Slots32) -> Words:
        """The items of some slots under new numbers. new: slot -> its number, -1 to leave out."""
        slots, tail_slots = new[self._slots], new[self._tail_slots.view()]
        kept, tail_kept = slots >= 0, np.flatnonzero(tail_slots >= 0)
        tail_kept = tail_kept[np.argsort(tail_slots[tail_kept], kind="stable")]
        tail_keys = self._tail_keys.view(len(tail_slots))
        return Words(self._keys[kept], slots[kept], tail_keys[tail_kept], tail_slots[tail_kept])


class Sketches:
    """Vectors in few numbers: their main directions, as far as a sample of them tells."""

    def __init__(self, vectors: Floats) -> None:
        """vectors: (n, d), at least one."""
        sample = vectors[:: -(-len(vectors) // SAMPLE)]
        self.mean: Floats = sample.mean(axis=0)
        centred = sample - self.mean
        self.covariance: Floats = centred.T @ centred / np.float32(len(sample))
        self.basis: Floats = np.linalg.eigh(self.covariance)[1][:, -SKETCHED:].copy()  # (d, 64)
        self.made_of = len(vectors)
        self.low = Column(np.empty((0, self.basis.shape[1]), np.float32))  # (n, 64)
        self.extend(vectors)

    def extend(self, vectors: Floats) -> None:
        """Sketch those of (n, d) vectors that have none yet, the last ones."""
        for at in range(len(self.low), len(vectors), SAMPLE):
            self.low.write(at, (vectors[at : at + SAMPLE] - self.mean) @ self.basis)


class Slots:
    """A slot per version of an entry, in columns; indexes that share them see only the first ones.

    Slots are taken one after another and never change. One thread appends at a time; readers
    need no lock.
    """

    def __init__(self, read: Callable[[Any], Entry]) -> None:
        """read: a body -> the entry."""
        self.ids: list[str] = []
        self.vectors = Column(np.empty((0, 0), np.float32))  # (n, d)
        self.sessions = Column(np.empty(0, np.int64))
        self.turns = Column(np.empty(0, np.int64))
        self.speakers = Column(np.empty(0, np.int32))  # codes
        self.lengths = Column(np.empty(0, np.int32))  # in terms
        self.speaker_codes: dict[str, int] = {}
        self.words = Words.of(np.empty(0, np.uint64), np.empty(0, np.int32))
        self._bodies: list[Any] = []
        self._read = read
        self._sketches: Sketches | None = None
        self._lock = threading.RLock()

    @classmethod
    def of(cls, rows: Sequence[Row], read: Callable[[Any], Entry]) -> Slots:
        """A slot per row; StoreError when their vectors differ in length."""
        slots = cls(read)
        ids, speakers, packs, bodies, vectors = zip(*rows, strict=True)
        sizes = set(map(len, vectors))
        if len(sizes) > 1:
            raise StoreError(
                f"the vectors of these entries have {sorted(size // 4 for size in sizes)} numbers: "
                "the embedder has changed; re-embed them"
            )
        packs = tuple(
            pack if pack[:8] == _MARK else packed(read(body))
            for pack, body in zip(packs, bodies, strict=True)
        )
        numbers = np.frombuffer(b"".join(packs), "<u8").astype(np.uint64, copy=False)
        lengths = np.fromiter(map(len, packs), np.int64, len(packs)) // 8
        header_at = (np.cumsum(lengths) - lengths)[:, None] + np.arange(_HEADER)  # (n, 4)
        header = numbers[header_at].view(np.int64)
        is_key = np.ones(len(numbers), np.bool_)
        is_key[header_at] = False
        codes = slots.speaker_codes
        slots.ids, slots._bodies = list(ids), list(bodies)
        slots.speakers = Column(
            np.array([codes.setdefault(name, len(codes)) for name in speakers], np.int32)
        )
        slots.sessions, slots.turns = Column(header[:, 1].copy()), Column(header[:, 2].copy())
        slots.lengths = Column(header[:, 3].astype(np.int32))
        slots.words = Words.of(
            numbers[is_key], np.repeat(np.arange(len(rows), dtype=np.int32), lengths - _HEADER)
        )
        joined = np.frombuffer(b"".join(vectors), "<f4").astype(np.float32, copy=False)
        slots.vectors = Column(joined.reshape(len(rows), -1))
        return slots

    def __len__(self) -> int:
        return len(self.ids)

    def entry(self, slot: int) -> Entry:
        """The entry in a slot; read once."""
        body = self._bodies[slot]
        if not isinstance(body, Entry):
            body = self._bodies[slot] = self._read(body)
        return body

    def append(self, slot: int, entry: Entry, vector: Floats) -> Slots:
        """Put an entry into the slot after the first `slot` ones.

        Returns these columns, or, where the slot is taken by another index, a copy of the first.
        """
        keys, length = _keys(entry.text)
        session, turn = _place(entry)
        with self._lock:
            if len(self) != slot:
                return self.take(np.arange(slot)).append(slot, entry, vector)
            if not slot:
                self.vectors = Column(np.empty((0, len(vector)), np.float32))
            speaker = self.speaker_codes.setdefault(entry.speaker, len(self.speaker_codes))
            self.vectors.write(slot, vector[None])
            for column, item in (
                (self.sessions, session),
                (self.turns, turn),
                (self.speakers, speaker),
                (self.lengths, length),
            ):
                column.write(slot, np.array([item]))
            self.words = self.words.append(keys, slot)
            self._bodies[slot:] = [entry]
            self.ids[slot:] = [entry.id]  # last: now it is taken
        return self

    def take(self, kept: Ints) -> Slots:
        """A copy of these slots, in this order."""
        twin = Slots(self._read)
        with self._lock:
            new = np.full(len(self) + 1, -1, np.int32)  # an append that failed may have left words
            new[kept] = np.arange(len(kept))
            twin.words = self.words.renumbered(new)
        slots = kept.tolist()
        twin.ids = [self.ids[slot] for slot in slots]
        twin._bodies = [self._bodies[slot] for slot in slots]
        twin.speaker_codes = self.speaker_codes.copy()
        for name in ("vectors", "sessions", "turns", "speakers", "lengths"):
            setattr(twin, name, Column(getattr(self, name).view()[kept]))
        return twin

    def sketches(self, size: int) -> Sketches:
        """Sketches of the first `size` vectors, but for a few of the last."""
        with self._lock:
            vectors = self.vectors.view(size)
            if self._sketches is None or size > 2 * self._sketches.made_of:
                self._sketches = Sketches(vectors)
            elif size > len(self._sketches.low) + SAMPLE:
                self._sketches.extend(vectors)
            return self._sketches

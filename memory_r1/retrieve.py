"""query -> ranked entries: words + vectors, the turns around them, their session, the speaker."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_r1.embed import Embedder
from memory_r1.errors import StoreError
from memory_r1.store.index import REACH, Index, Places
from memory_r1.text import terms
from memory_r1.types import Entry, Hit

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

# The weights were chosen on LoCoMo's conv-26 and conv-30, where their effect is flat: halving
# or doubling any one of them moves recall@60 by less than a point.
VECTOR_WEIGHT: Final = 0.7
"""What the cosine counts beside BM25, both as z-scores over the whole bank."""
NEIGHBOUR_WEIGHTS: Final = (0.5, 0.3)
"""What the scores of turns one to REACH away add: answers rarely repeat their question's words."""
SESSION_WEIGHT: Final = 0.5
"""What the mean score of the session adds."""
SPEAKER_WEIGHT: Final = 1.0
"""What an entry gains when its speaker is the only one named in the query."""
LEAST_SPREAD: Final = 1e-6
"""Below it scores count as equal: equal float32 scores can be a rounding error apart."""
EXACT_UP_TO: Final = 50_000
"""Up to so many entries every vector is compared; above, sketches tell which ones."""
LIKELY: Final = 4_000
"""So many entries of a larger bank, and the rows beside them."""
BLOCK: Final = 64
"""Scores looked at together when the highest are picked."""


def search(
    index: Index,
    query: str,
    embedder: Embedder,
    *,
    k: int,
    per_speaker: int | None = None,
    speakers: Sequence[str] = (),
    where: Callable[[Entry], bool] | None = None,
    explain: bool = False,
) -> list[Hit]:
    """The k entries that fit the query best, best first; all are ranked, whether they match or not.

    per_speaker: take that many of each speaker instead of k overall (the paper's protocol: 30).
    speakers:    whose entries to look at; all by default.
    where:       which entries may be returned; asked in the order of the ranking, until k may.
    explain:     fill in `Hit.signals`, whose values sum to the score.
    Raises StoreError when the index was filled by another embedder.
    """
    if not len(index):
        return []
    signals = _signals(index, query, embedder)
    scores = _total(signals)
    if per_speaker is not None:
        groups = [index.spoken_by(name) for name in dict.fromkeys(speakers or index.speakers)]
        rows = [row for group in groups for row in _best(index, scores, per_speaker, group, where)]
        rows.sort(key=lambda row: (-scores[row], -row))
    elif speakers:
        group = np.logical_or.reduce([index.spoken_by(name) for name in speakers])
        rows = _best(index, scores, k, group, where)
    else:
        rows = _best(index, scores, k, None, where)
    return [
        Hit(
            index.entry(row),
            float(scores[row]),
            {name: float(part[row]) for name, part in signals.items()} if explain else {},
        )
        for row in rows
    ]


def related(index: Index, facts_text: Sequence[str], embedder: Embedder, *, k: int) -> list[Entry]:
    """The k entries the Memory Manager is shown beside new facts, oldest first.

    Every fact gets its turn: an entry is as good as its best rank for any of the facts. Only
    words and vectors count, since what stands around an entry says nothing about what it says.
    """
    if len(index) <= k or not facts_text:
        return [index.entry(row) for row in range(min(k, len(index)))]
    vectors = _embedded(index, facts_text, embedder)
    scores = [  # (n,) for each fact
        _total(_words_and_vectors(index, fact, vector))
        for fact, vector in zip(facts_text, vectors, strict=True)
    ]
    ranks: dict[int, int] = {}
    for of_fact in scores:
        oldest_first = len(index) - 1 - _top(of_fact[::-1], k)
        for rank, row in enumerate(oldest_first.tolist()):
            ranks[row] = min(rank, ranks.get(row, rank))
    chosen = sorted(
        ranks, key=lambda row: (ranks[row], -max(of_fact[row] for of_fact in scores), row)
    )
    return [index.entry(row) for row in sorted(chosen[:k])]


def containing(index: Index, text: str) -> list[Entry]:
    """The entries that contain every word of a text, oldest first: who says the same is among them.

    Looked up, not ranked: in a large bank hardly slower than in a small one. All entries where
    the text has no word (see `text.terms`).
    """
    # The last words first: dates and names, which many entries contain, tend to come before them.
    return [index.entry(row) for row in index.containing(reversed(terms(text)))]


def _signals(index: Index, query: str, embedder: Embedder) -> Mapping[str, Floats]:
    """What each reason adds to the score of each entry, (n,) each."""
    [vector] = _embedded(index, [query], embedder)
    signals = _words_and_vectors(index, query, vector)
    around, session = _context(index.places, _total(signals))
    signals |= {"neighbours": around, "session": session}
    named = _named(query, index.speakers)
    if len(named) == 1:
        signals["speaker"] = SPEAKER_WEIGHT * index.spoken_by(named[0]).astype(np.float32)
    return signals


def _total(signals: Mapping[str, Floats]) -> Floats:
    first, *others = signals.values()
    total = first.copy()
    for part in others:
        total += part
    return total


def _words_and_vectors(index: Index, text: str, vector: Floats) -> dict[str, Floats]:
    """What its words and its vector (d,) add to the score of each entry, (n,) each.

    In a large bank the vectors of unlikely entries count by their sketches. A word is always
    looked up exactly, so that an entry that holds a rare one is among the likely.
    """
    words = _standardised(index.bm25(terms(text)))
    if len(index) <= EXACT_UP_TO:
        return {"words": words, "vectors": VECTOR_WEIGHT * _standardised(index.cosines(vector))}
    cosines, mean, spread = index.sketched(vector)
    weight = np.float32(VECTOR_WEIGHT / spread if spread >= LEAST_SPREAD else 0)
    vectors = weight * (cosines - np.float32(mean))
    likely = _top(words + vectors, LIKELY)
    beside = np.arange(-REACH, REACH + 1)
    rows = np.unique(np.clip(likely[:, None] + beside, 0, len(index) - 1))
    vectors[rows] = weight * (index.cosines(vector, rows) - np.float32(mean))
    return {"words": words, "vectors": vectors}


def _embedded(index: Index, texts: Sequence[str], embedder: Embedder) -> Floats:
    """(texts, d)"""
    vectors = embedder.embed(texts)
    if vectors.shape[1] != index.dim:
        raise StoreError(
            f"the entries hold vectors of {index.dim} numbers and the embedder "
            f"{embedder.name!r} makes {vectors.shape[1]}: open the store with the embedder that "
            "wrote it, or embed its entries anew"
        )
    return vectors


def _standardised(scores: Floats) -> Floats:
    """Mean 0, standard deviation 1, so that words and vectors can be added; 0 where all tie."""
    spread = float(scores.std())
    if spread < LEAST_SPREAD:
        return np.zeros_like(scores)
    standardised: Floats = (scores - scores.mean()) / np.float32(spread)
    return standardised


def _context(places: Places, scores: Floats) -> tuple[Floats, Floats]:
    """What the turns around an entry, and the mean of its session, add to its score, (n,) each.

    The entries of one turn count as the best of them.
    """
    order = places.order
    if order is not None:
        scores = scores[order]
    turns = scores if places.turn_of is None else np.maximum.reduceat(scores, places.first)
    around = _around(places, turns)
    if places.turn_of is not None:
        around = around[places.turn_of]
    means = np.bincount(places.session_of, scores) / places.session_sizes
    session = (SESSION_WEIGHT * means).astype(np.float32)[places.session_of]
    if order is None:
        return around, session
    by_row = np.empty((2, len(order)), np.float32)
    by_row[:, order] = around, session
    return by_row[0], by_row[1]


def _around(places: Places, scores: Floats) -> Floats:
    """(turns,) what the turns one and two away add; sessions lie far apart."""
    added = np.zeros_like(scores)
    weights = np.array([0, *NEIGHBOUR_WEIGHTS, 0], np.float32)
    for step, apart in enumerate(places.apart, start=1):
        weight = weights[apart]
        added[step:] += weight * scores[:-step]
        added[:-step] += weight * scores[step:]
    return added


def _named(query: str, speakers: Sequence[str]) -> list[str]:
    """The speakers whose name, or first name, stands in the query."""
    query = query.casefold()
    words = set(re.findall(r"\w+", query))
    return [
        speaker
        for speaker in speakers
        if (name := speaker.casefold().split())
        and (name[0] in words or (not speaker.isascii() and speaker.casefold() in query))
    ]


def _best(
    index: Index,
    scores: Floats,
    k: int,
    group: Mask | None,
    where: Callable[[Entry], bool] | None,
) -> list[int]:
    """The k rows of a group, or of all, with the highest scores that may be returned, best first.

    Of equals the newest.
    """
    rows = None if group is None else np.flatnonzero(group)
    pool = scores if rows is None else scores[rows]
    found: list[int] = []
    seen, size = 0, k
    while seen < len(pool) and len(found) < k:
        ranked = _top(pool, size)[seen:]
        for row in (ranked if rows is None else rows[ranked]).tolist():
            if where is None or where(index.entry(row)):
                found.append(row)
        seen, size = size, 4 * size
    return found[:k]


def _top(scores: Floats, k: int) -> Ints:
    """Where the k highest scores are, best first; of equals the last."""
    if k < 1:
        return np.empty(0, np.int64)
    pool = scores
    if k <= len(scores) // BLOCK:
        # The k-th highest of the blocks' maxima is no higher than that of all, and found sooner.
        pool = scores[: len(scores) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    least = np.partition(pool, -k)[-k] if k < len(pool) else pool.min(initial=np.inf)
    rows = np.flatnonzero(scores >= least)[::-1]
    return rows[np.argsort(-scores[rows], kind="stable")][:k]

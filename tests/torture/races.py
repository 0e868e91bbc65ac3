"""Processes and threads at once: what each was told is done is there, in an order that fits."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from memory_r1 import Memory
from memory_r1.errors import Conflict, StoreError, UnknownEntry, UnknownRow
from memory_r1.store import open_store
from memory_r1.types import Owner
from torture.made import Figures, memory, turn_of, verify

HOT, GONE = "hot", "gone"
"""Users: of entries that all want to change, and of what is forgotten again and again."""
LONGEST = 30.0
"""Seconds that one call may wait for the others."""


@dataclass(frozen=True)
class Done:
    """One call of a worker: when it began and ended, and the rows it was told of."""

    what: str
    owner: str
    began: float
    ended: float
    rows: tuple[str, ...]
    refused: str = ""
    """Why it changed nothing, where it rightly didn't."""


Verb = Callable[[Memory, random.Random, str], tuple[str, Sequence[str]]]


def _add(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    user = rng.choice((HOT, GONE, "ann"))
    return user, [row.id for row in ours.add(turn_of(2, name), user_id=user).rows]


def _some(ours: Memory, rng: random.Random) -> str:
    """One of the few entries that everybody changes."""
    entries = ours.list(user_id=HOT, superseded=True, limit=3)
    return rng.choice(entries).id if entries else ""


def _update(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    return HOT, [ours.update(_some(ours, rng), f"said anew {name}", user_id=HOT).id]


def _undo(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    return HOT, [row.id for row in ours.undo(_some(ours, rng) or "none", user_id=HOT)]


def _delete(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    return HOT, [ours.delete(_some(ours, rng), user_id=HOT).id]


def _search(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    for hit in ours.search("fact", user_id=HOT):
        assert hit.entry.superseded is None
    return HOT, []


def _forget(ours: Memory, rng: random.Random, name: str) -> tuple[str, Sequence[str]]:
    try:
        ours.forget(GONE)
    except StoreError as error:  # others are reading: their text is still in a log
        if "are erased, but" not in str(error):
            raise
    return GONE, []


VERBS: dict[str, tuple[Verb, int]] = {
    "add": (_add, 6),
    "update": (_update, 5),
    "undo": (_undo, 3),
    "delete": (_delete, 1),
    "search": (_search, 3),
    "forget": (_forget, 1),
}


def work(url: str, threads: int, calls: int, seed: int) -> list[Done]:
    """What so many threads of this process did, so many calls each."""
    done: list[Done] = []
    with memory(url) as ours:

        def one(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            names, weights = list(VERBS), [weight for _, weight in VERBS.values()]
            for n in range(calls):
                (what,) = rng.choices(names, weights)
                began = time.monotonic()
                owner, rows, refused = "", (), ""
                try:
                    owner, found = VERBS[what][0](ours, rng, f"{os.getpid()}-{number}-{n}")
                    rows = tuple(found)
                except (Conflict, UnknownEntry, UnknownRow) as error:
                    refused = type(error).__name__
                done.append(Done(what, owner, began, time.monotonic(), rows, refused))

        workers = [threading.Thread(target=one, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return done


def race(url: str, processes: int, threads: int, calls: int, seed: int) -> Figures:
    """So many processes with so many threads each, on one store."""
    open_store(url).close()
    pipes, children = [], []
    for number in range(processes):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _child(reading, writing, url, threads, calls, seed * 1000 + number)
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    done: list[Done] = []
    for pipe in pipes:
        with os.fdopen(pipe) as lines:
            told = [json.loads(line) for line in lines]
        done += [Done(**{**one, "rows": tuple(one["rows"])}) for one in told]
    figures = Figures()
    for child in children:
        if status := os.waitpid(child, 0)[1]:
            figures.wrong.append(f"a worker failed: {status}")
    if len(done) != processes * threads * calls:
        figures.wrong.append(f"{processes * threads * calls - len(done)} calls did not end")
    _judge(url, done, figures)
    verify(url, [], figures)
    return figures


def _child(reading: int, writing: int, url: str, threads: int, calls: int, seed: int) -> None:
    """Work, tell the parent, and end; never returns."""
    code = 1
    try:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            for one in work(url, threads, calls, seed):
                out.write(json.dumps(asdict(one)) + "\n")
        code = 0
    finally:
        os._exit(code)


def _judge(url: str, done: Sequence[Done], figures: Figures) -> None:
    figures.add(
        calls=len(done),
        acknowledged=sum(len(one.rows) for one in done),
        refused=sum(bool(one.refused) for one in done),
    )
    slowest = max(one.ended - one.began for one in done)
    figures.counts["slowest_ms"] = round(slowest * 1000)
    if slowest > LONGEST:
        figures.wrong.append(f"a call took {slowest:.1f} s")
    forgets = [one for one in done if one.what == "forget"]
    store = open_store(url)
    places = {
        owner: {row.id: place for place, row in enumerate(store.journal(Owner(owner)))}
        for owner in (HOT, GONE, "ann")
    }
    store.close()
    for one in done:
        there = [row in places[one.owner] for row in one.rows] if one.rows else []
        if one.owner != GONE:
            if not all(there):
                figures.wrong.append(f"lost: {one}")
        elif any(forget.began > one.ended for forget in forgets):
            if any(there):
                figures.wrong.append(f"forgotten, and still there: {one}")
        elif all(forget.ended < one.began for forget in forgets) and not all(there):
            figures.wrong.append(f"lost: {one}")
        elif len(set(there)) > 1:
            figures.wrong.append(f"half forgotten: {one}")
    for owner in (HOT, "ann"):
        figures.wrong += _out_of_order(places[owner], [one for one in done if one.owner == owner])


def _out_of_order(places: dict[str, int], done: Sequence[Done]) -> list[str]:
    """What had ended before something began, and yet stands after it in the journal."""
    order = sorted(
        ((places[row], one) for one in done for row in one.rows if row in places),
        key=lambda placed: placed[0],
    )
    wrong = []
    latest_start = 0.0
    for _, one in order:
        if one.ended < latest_start:
            wrong.append(f"out of order: {one}")
        latest_start = max(latest_start, one.began)
    return wrong


def race_often(new_url: Callable[[], str], rounds: int, calls: int, seed: int) -> Figures:
    """8 processes of 4 threads, then one of 32, in turn."""
    figures = Figures()
    slowest = 0
    for n, (processes, threads) in zip(
        range(rounds), itertools.cycle(((8, 4), (1, 32))), strict=False
    ):
        found = race(new_url(), processes, threads, calls, seed + n)
        slowest = max(slowest, found.counts.pop("slowest_ms"))
        figures += found
    figures.counts["slowest_ms"] = slowest
    return figures

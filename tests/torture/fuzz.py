"""Coverage-guided fuzzing of everything that reads what others wrote  (needs atheris, on Linux).

    python tests/torture/fuzz.py [TARGET ...] [--seconds 60] [--seed 1]

A target takes any bytes and may only end with an error of ours. What makes it end otherwise is
written to tests/torture/corpus/TARGET, where the normal tests find it from then on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"

if __name__ == "__main__" and "--run" in sys.argv:
    import atheris

    # Only what is ours is watched: the libraries are fuzzed where they are made.
    with atheris.instrument_imports(include=["memory_r1"]):
        from memory_r1 import answer, extract, filters, manage, text
        from memory_r1.compat import readers
        from memory_r1.data import formats
        from memory_r1.errors import DataError, MemoryR1Error
        from memory_r1.llm import prompting
        from memory_r1.train import runfile
else:
    from memory_r1 import answer, extract, filters, manage, text
    from memory_r1.compat import readers
    from memory_r1.data import formats
    from memory_r1.errors import DataError, MemoryR1Error
    from memory_r1.llm import prompting
    from memory_r1.train import runfile

from memory_r1 import transfer  # noqa: E402
from memory_r1.embed import open_embedder  # noqa: E402
from memory_r1.store.ram import RamStore  # noqa: E402
from memory_r1.types import Entry, Fact, Owner, Turn  # noqa: E402

EMBEDDER = open_embedder(None)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ENTRIES = tuple(
    Entry(str(n), words, Owner("mia"), NOON)
    for n, words in enumerate(("Mia has a dog, Rex", "Mia moved to Lisbon"))
)
TURN = Turn("Mia", "I adopted a dog, Rex, last week.", NOON)
FACTS = (Fact("Mia adopted a dog, Rex"), Fact("Mia is glad"))


def _text(data: bytes) -> str:
    """Any text, also half surrogate pairs."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def read_operations(data: bytes) -> None:
    """The Memory Manager's reply; an operation names only what was shown."""
    for style in ("instruct", "compact"):
        with suppress(MemoryR1Error):
            for op in manage.parse(_text(data), ENTRIES, style, FACTS[:1]):
                assert getattr(op, "entry_id", "") in ("", "0", "1")


def read_facts(data: bytes) -> None:
    """The extractor's reply; a quote is words of the turn."""
    for style in ("instruct", "compact"):
        with suppress(MemoryR1Error):
            for fact in extract.parse(_text(data), TURN, style):
                assert fact.text.strip()


def read_answer(data: bytes) -> None:
    """The Answer Agent's reply; it rests on what was shown."""
    for style in ("instruct", "compact"):
        with suppress(MemoryR1Error):
            for entry in answer.parse(_text(data), ENTRIES, style).used:
                assert entry in ENTRIES


def read_turn(data: bytes) -> None:
    """What was said: credentials left out, recalled text too, and put into prompts."""
    said = _text(data)
    turn = Turn("Mia", extract.redact(extract.without_recalled(said)), NOON)
    prompting.quoted(said)
    extract.render(turn, "instruct")
    text.terms(said)
    text.f1(said, "a dog")


def read_file(data: bytes) -> None:
    """A file of dialogues, of whatever kind."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(data)
        file.flush()
        with suppress(MemoryR1Error):
            list(formats.stream(file.name))


def read_export(data: bytes) -> None:
    """Lines of an export; all of them, or nothing."""
    store = RamStore()
    try:
        transfer.restore(store, _text(data).splitlines(), EMBEDDER)
    except MemoryR1Error:
        assert store.owners() == []


def read_foreign(data: bytes) -> None:
    """What other memories exported."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(data)
        file.flush()
        try:
            found: Any = readers.read_json(Path(file.name))
        except DataError:
            return
        for read in (readers.read_mem0, readers.read_langgraph, readers.read_letta):
            with suppress(MemoryR1Error):
                read(found, user="mia")


def read_filter(data: bytes) -> None:
    """Conditions on metadata."""
    import json

    try:
        conditions = json.loads(_text(data))
    except (ValueError, RecursionError):
        return
    with suppress(MemoryR1Error):
        if wanted := filters.predicate(conditions):
            wanted(ENTRIES[0])


def read_runfile(data: bytes) -> None:
    """A run file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        with suppress(MemoryR1Error):
            runfile.load_run(file.name)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "operations": read_operations,
    "facts": read_facts,
    "answer": read_answer,
    "turn": read_turn,
    "file": read_file,
    "export": read_export,
    "foreign": read_foreign,
    "filter": read_filter,
    "runfile": read_runfile,
}


def main() -> None:
    """Fuzz each target in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET")
    options.add_argument("--seconds", type=int, default=60, help="for each target")
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    failed = []
    for target in asked.targets:
        kept = CORPUS / target
        with tempfile.TemporaryDirectory() as grown:
            run = subprocess.run(
                [
                    *(sys.executable, __file__, "--run", target, grown, str(kept)),
                    *(f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", "-max_len=4096"),
                    *("-timeout=10", "-rss_limit_mb=4096", f"-artifact_prefix={kept}/"),
                    *("-print_final_stats=1", "-verbosity=0"),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        stats = dict(
            line.removeprefix("stat::").split(":")
            for line in run.stderr.splitlines()
            if line.startswith("stat::")
        )
        tried = int(stats.get("number_of_executed_units", "0"))
        print(f"{target}: {tried:,} inputs, {'failed' if run.returncode else 'sound'}", flush=True)
        if run.returncode:
            failed.append(target)
            print(run.stderr[-3000:], flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if "--run" in sys.argv:
        name = sys.argv[sys.argv.index("--run") + 1]
        arguments = [sys.argv[0], *sys.argv[sys.argv.index(name) + 1 :]]
        atheris.Setup(arguments, TARGETS[name])
        atheris.Fuzz()
    else:
        main()

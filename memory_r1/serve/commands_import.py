"""memory-r1 import and export: from other memory systems, and to and from our own file."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from memory_r1.errors import ConfigError, DataError, StoreError
from memory_r1.serve.commands_store import must_exist
from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    DEFAULT_USER,
    AsJson,
    Llm,
    Store,
    answer,
    answer_json,
    explain,
    open_memory,
)

if TYPE_CHECKING:
    from memory_r1.compat.importers import Found
    from memory_r1.memory import Memory

SOURCES = ("mem0", "letta", "langgraph", "jsonl")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("import")(import_file)
    app.command()(export)


def import_file(
    file: Annotated[Path, typer.Argument(help="What the other system wrote.", metavar="FILE")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="mem0 (get_all as JSON), letta (an agent file, or passages), langgraph (items as "
            "JSON), or jsonl (our own export).",
        ),
    ],
    user: Annotated[
        str,
        typer.Option(help="Whose memory it becomes; by default whose it was, of letta: me."),
    ] = "",
    history: Annotated[
        Path | None, typer.Option(help="mem0's history database: how memories read before.")
    ] = None,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and keep nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring memories in from FILE, as they are; what came before is not brought twice.

    Messages in an agent file are read by --llm, as `add` reads them. Our own export comes whole or
    not at all: when one of those it belongs to has anything in the store already, a second time
    too, it is refused and nothing changes.
    """
    if source not in SOURCES:
        raise ConfigError(f"--from is {source!r}; expected {', '.join(SOURCES)}")
    if history and source != "mem0":
        raise ConfigError("--history is mem0's history database; it goes with --from mem0")
    if source == "jsonl":
        if user:
            raise ConfigError("an export says whose memories it holds; leave --user out")
        counts = _restore(file, store, dry_run)
        if as_json:
            answer_json(counts)
        else:
            answer(_listed(counts, "would restore" if dry_run else "restored"))
        return
    found = _read(file, source, user, history)
    with open_memory(store, llm) as memory:
        _bring(memory, found, dry_run, as_json)


def _read(file: Path, source: str, user: str, history: Path | None) -> Found:
    from memory_r1.compat import readers

    document = readers.read_json(file)
    try:
        match source:
            case "mem0":
                return readers.read_mem0(document, user=user, history=history)
            case "letta":
                return readers.read_letta(document, user=user or DEFAULT_USER)
        return readers.read_langgraph(document, user=user)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _bring(memory: Memory, found: Found, dry_run: bool, as_json: bool) -> None:
    from rich.console import Console

    from memory_r1.bench.progress import Watch
    from memory_r1.compat.importers import bring

    with Watch(Console(stderr=True)) as watch:
        receipt = bring(
            memory,
            found,
            dry_run=dry_run,
            progress=lambda done, total: watch("import", done, total),
        )
    if as_json:
        answer_json(receipt)
    else:
        counts = {"memories": receipt.memories, "messages": receipt.messages}
        answer(_listed(counts, "would import" if dry_run else "imported"))
        if receipt.known:
            explain(f"{receipt.known} were imported before")
    for reason, count in receipt.skipped.items():
        explain(f"left out: {count} x {reason}")
    if receipt.deferred:
        explain(f"{receipt.deferred} messages are kept; `memory-r1 retry` processes them again")
        raise typer.Exit(1)


class _Seen(Exception):
    """Ends the transaction of a dry run, which takes everything back."""


def _restore(file: Path, store: str, dry_run: bool) -> dict[str, int]:
    from memory_r1 import transfer
    from memory_r1.compat.readers import unreadable

    expected = "a file that `memory-r1 export` wrote"
    counts: dict[str, int] = {}
    try:
        lines = file.open(encoding="utf-8")
    except OSError as error:  # before a store is made
        raise unreadable(file, error, expected) from error
    with lines, open_memory(store) as memory:
        try:
            with memory.store.transaction():
                counts = transfer.restore(memory.store, lines, memory.embedder)
                if dry_run:
                    raise _Seen
        except _Seen:
            pass
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(file, error, expected) from error
    return counts


def export(
    file: Annotated[Path, typer.Argument(help="The file to write; - for stdout.", metavar="FILE")],
    user: Annotated[str, typer.Option(help="Only of one user; of all by default.")] = "",
    store: Store = DEFAULT_STORE,
    as_training: Annotated[
        bool,
        typer.Option(
            "--as-training",
            help="Write what people corrected, approved and gave feedback on, for `train`.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write all that a store holds to FILE, one JSON document per line, without loss.

    `memory-r1 import FILE --from jsonl` reads it back: a backup, and a way to another store.
    With --as-training the file is one of dialogues, which `train` reads as data.path.
    """
    target = None if str(file) == "-" else _target(file, force)
    must_exist(store)
    with open_memory(store) as memory:
        if target is None:
            _write(memory, sys.stdout, user, as_training)
            return
        part = target.with_name(target.name + ".part")
        try:
            with part.open("w", encoding="utf-8", newline="\n") as out:
                counts = _write(memory, out, user, as_training)
            part.replace(target)  # a file is an export only when it is a whole one
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"{file} can't be written: there is no folder {target.parent}; make it, or give "
                "another FILE"
            ) from error
        except OSError as error:
            why = str(error.strerror).lower()
            raise StoreError(f"{file} can't be written: {why}; give another FILE") from error
        finally:
            with suppress(OSError):
                part.unlink()
    if as_json:
        answer_json({"file": file, **counts})
    else:
        answer(_listed(counts, f"{file}:"))


def _target(file: Path, force: bool) -> Path:
    """What is to be written: FILE, or the file that it links to; ConfigError for anything else."""
    if os.path.isdir(file):
        raise ConfigError(f"{file} is a folder; expected a file, such as {file / 'all.jsonl'}")
    target = Path(os.path.realpath(file))
    # The whole file is renamed to its name, which would put it in the place of a device or a link.
    # A link that leads nowhere is the new file's name; one that leads in circles stays a link.
    if os.path.islink(target) or os.path.exists(file) and not os.path.isfile(target):
        raise ConfigError(
            f"{file} is a device, a pipe or a link to one; expected a file, or - for standard "
            "output"
        )
    if os.path.exists(file) and not force:
        raise ConfigError(f"{file} exists already; give another, or --force to write over it")
    return target


def _write(memory: Memory, out: TextIO, user: str, as_training: bool) -> dict[str, int]:
    if not as_training:
        from memory_r1 import transfer

        return transfer.export(memory.store, out, user or None)
    from memory_r1 import practice
    from memory_r1.data import DECISIONS, jsonl

    found = practice.dialogues(memory.store, user or None)
    if not found:
        raise DataError(
            "nobody has corrected, approved, rejected or judged anything yet: there is nothing to "
            "learn from"
        )
    out.write(jsonl.dump(found))
    return {
        "dialogues": len(found),
        "questions": sum(len(dialogue.questions) for dialogue in found),
        "decisions": sum(len(dialogue.meta.get(DECISIONS, ())) for dialogue in found),
    }


def _listed(counts: dict[str, int], verb: str) -> str:
    return f"{verb} " + ", ".join(f"{count:,} {what}" for what, count in counts.items())

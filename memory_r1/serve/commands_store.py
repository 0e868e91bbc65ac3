"""memory-r1 stats, audit, check, reindex: look after a store."""

from __future__ import annotations

from typing import Annotated

import typer

from memory_r1.errors import StoreError
from memory_r1.serve.console import (
    DEFAULT_STORE,
    DEFAULT_USER,
    EMBEDDER_VARIABLE,
    AsJson,
    Store,
    User,
    answer,
    answer_json,
    entry_line,
    explain,
    open_memory,
)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (stats, audit, check, reindex):
        app.command()(command)


def must_exist(store: str) -> None:
    """Refuse a SQLite file that isn't there, which opening would make; StoreError."""
    from memory_r1.store import file_of

    file = file_of(store)
    if file is not None and not file.exists():
        raise StoreError(
            f"there is no store at {file}; give one that is there with --store, or fill a new one "
            "with:  memory-r1 add"
        )


def stats(
    user: Annotated[str, typer.Option(help="Of one user; of all by default.")] = "",
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Count what is in a store, and what adding it took."""
    with open_memory(store) as memory:
        found = memory.stats(user or None)
    if as_json:
        answer_json(found)
        return
    answer(f"{found.entries} memories of {found.owners} owners, {found.superseded} superseded")
    for name, counts in (("operations", found.operations), ("messages", found.messages)):
        answer(f"{name}: " + (", ".join(f"{n} {of}" for of, n in counts.items()) or "none"))
    if found.proposals:
        answer(f"{found.proposals} proposals wait for approval")
    if found.per_add:
        answer("per message: " + ", ".join(f"{n:.2f} {of}" for of, n in found.per_add.items()))


def audit(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show what is doubtful in the content: duplicates, what expired, what no turn supports."""
    with open_memory(store) as memory:
        found = memory.audit(user_id=user)
    if as_json:
        answer_json(found)
        return
    groups = [
        ("say the same, word for word", found.duplicates),
        ("may mean the same", found.alike),
        ("expired", [(entry,) for entry in found.expired]),
        ("hardly stand in the turns they rest on", [(entry,) for entry in found.unsupported]),
        ("rest on no turn", [(entry,) for entry in found.unsourced]),
    ]
    for title, of in groups:
        if of:
            answer(f"{title}:")
            for group in of:
                answer("\n".join(f"  {entry_line(entry)}" for entry in group))
    explain(f"{found.entries} memories looked at")


def check(
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Verify all invariants of a store; exit code 1 when one doesn't hold."""
    must_exist(store)
    with open_memory(store) as memory:
        problems = memory.check()
    if as_json:
        answer_json({"sound": not problems, "problems": problems})
    else:
        answer("\n".join(problems) or "sound")
    if problems:
        raise typer.Exit(1)


def reindex(
    store: Store = DEFAULT_STORE,
    embedder: Annotated[
        str,
        typer.Option(
            envvar=EMBEDDER_VARIABLE,
            help="wordllama (built in), sentence-transformers:NAME, or URL#MODEL of a service.",
        ),
    ] = "wordllama",
    as_json: AsJson = False,
) -> None:
    """Compute all vectors of a store again, after a change of embedder."""
    from memory_r1.bank import reindex as compute_again
    from memory_r1.embed import open_embedder
    from memory_r1.store import open_store

    opened = open_store(store)
    try:
        count = compute_again(opened, open_embedder(embedder))
    finally:
        opened.close()
    if as_json:
        answer_json({"vectors": count})
    else:
        answer(f"computed {count} vectors")

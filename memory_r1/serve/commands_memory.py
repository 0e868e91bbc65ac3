"""memory-r1 add, search, ask, list, history, journal, undo, retry, forget, reindex."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    DEFAULT_USER,
    AsJson,
    Llm,
    Store,
    User,
    answer,
    answer_json,
    explain,
)

if TYPE_CHECKING:
    from memory_r1.memory import AddResult, Memory
    from memory_r1.types import Entry, JournalRow

EMBEDDER_VARIABLE = "MEMORY_R1_EMBEDDER"
"""Which embedder all commands use; the built-in one where it isn't set."""


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (add, search, ask, journal, history, undo, retry, forget, reindex):
        app.command()(command)
    app.command("list")(list_entries)


def _open(store: str, llm: str = DEFAULT_LLM) -> Memory:
    from memory_r1.memory import Memory

    return Memory(store, llm=llm, embedder=os.environ.get(EMBEDDER_VARIABLE))


def add(
    text: Annotated[str, typer.Argument(help="What was said; - reads it from stdin.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    speaker: Annotated[str, typer.Option(help="Who said it.")] = "",
    at: Annotated[str, typer.Option(help="When, as in 2023-05-07; now by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Remember TEXT: extract facts, and let the Memory Manager edit the memory."""
    said = sys.stdin.read() if text == "-" else text
    with _open(store, llm) as memory:
        result = memory.add(said, user_id=user, timestamp=at or None, speaker=speaker or user)
    _show_result(result, as_json)


def retry(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    as_json: AsJson = False,
) -> None:
    """Process again what was deferred because a model failed."""
    with _open(store, llm) as memory:
        result = memory.retry(user)
    _show_result(result, as_json)


def _show_result(result: AddResult, as_json: bool) -> None:
    if as_json:
        answer_json(result)
    else:
        for row in result.rows:
            answer(_journal_line(row))
    for fact in result.facts:
        if fact.status != "stored":
            explain(f"{fact.status}: {fact.fact.text}\n  {fact.error}")
    if not result.complete:
        explain("The messages are kept; `memory-r1 retry` processes them again.")
        raise typer.Exit(1)
    if not result.rows:
        explain("nothing to remember")


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many.")] = 10,
    as_of: Annotated[str, typer.Option(help="Search what was believed then.")] = "",
    as_json: AsJson = False,
) -> None:
    """Find the memories that fit QUERY best, best first."""
    with _open(store) as memory:
        hits = memory.search(query, user_id=user, k=k, as_of=as_of or None)
    if as_json:
        answer_json(hits)
        return
    for hit in hits:
        answer(f"{hit.score:6.2f}  {_entry_line(hit.entry)}")
    if not hits:
        explain(f"the memory of {user!r} is empty")


def ask(
    question: Annotated[str, typer.Argument(help="What to answer.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    k: Annotated[
        int, typer.Option("--k", "-k", min=0, help="Memories shown to the model; 0: its default.")
    ] = 0,
    per_speaker: Annotated[int, typer.Option(min=0, help="That many of each speaker instead.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Answer QUESTION from memory; the memories it rests on go to stderr."""
    with _open(store, llm) as memory:
        said = memory.ask(question, user_id=user, k=k or None, per_speaker=per_speaker or None)
    if as_json:
        answer_json(said)
        return
    answer(said.text)
    for entry in said.used:
        explain(f"  {_entry_line(entry)}")
    if said.note:
        explain(f"note: {said.note}")


def list_entries(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also what is no longer believed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print all memories, oldest first."""
    with _open(store) as memory:
        entries = memory.list(user_id=user, superseded=superseded)
    _show_entries(entries, as_json)
    if not entries:
        explain(f"the memory of {user!r} is empty")


def history(
    entry_id: Annotated[str, typer.Argument(help="Id of a memory, as `list` prints it.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print how one memory read over time, first version first."""
    with _open(store) as memory:
        entries = memory.history(entry_id, user_id=user)
    _show_entries(entries, as_json)


def _show_entries(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        answer_json(entries)
        return
    for entry in entries:
        answer(_entry_line(entry))


def journal(
    entry_id: Annotated[str, typer.Argument(help="Only of this memory.")] = "",
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print every operation on the memory, in order, with its id for `undo`."""
    with _open(store) as memory:
        rows = memory.journal(user_id=user, entry_id=entry_id or None)
    if as_json:
        answer_json(rows)
        return
    for row in rows:
        answer(_journal_line(row))
    if not rows:
        explain(f"the journal of {user!r} is empty")


def undo(
    journal_id: Annotated[str, typer.Argument(help="Id of an operation, from `journal`.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take one operation back, exactly."""
    with _open(store) as memory:
        row = memory.undo(journal_id, user_id=user)
    if as_json:
        answer_json(row)
    else:
        answer(_journal_line(row))


def forget(
    user: Annotated[str, typer.Argument(help="Whose memory to erase.")],
    store: Store = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase everything about USER for good: memories, history, journal, messages."""
    if not yes:
        typer.confirm(f"Erase all memories of {user!r}? This can't be undone", abort=True, err=True)
    with _open(store) as memory:
        receipt = memory.forget(user)
    if as_json:
        answer_json(receipt)
    else:
        answer("erased " + ", ".join(f"{count} {what}" for what, count in receipt.items()))


def reindex(
    store: Store = DEFAULT_STORE,
    embedder: Annotated[
        str,
        typer.Option(
            envvar=EMBEDDER_VARIABLE,
            help="wordllama (built in), or URL#MODEL of an embeddings service.",
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


def _entry_line(entry: Entry) -> str:
    gone = f"  (until {entry.superseded:%Y-%m-%d %H:%M})" if entry.superseded else ""
    return f"{entry.id}  v{entry.version}  {entry.text}{gone}"


def _journal_line(row: JournalRow) -> str:
    """`id  OP  text`, with what an UPDATE or DELETE replaced."""
    before = row.before.text if row.before else ""
    after = row.after.text if row.after and row.after.superseded is None else ""
    told = " -> ".join(text for text in (before, after) if text) or row.reason
    return f"{row.id}  {row.op:<6}  {told}{'  (undone)' if row.undone else ''}"

"""memory-r1 list, get, update, delete, history, journal, undo, proposals, ...: correct a memory."""

from __future__ import annotations

from typing import Annotated

import typer

from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    DEFAULT_USER,
    AsJson,
    Filter,
    Llm,
    Store,
    User,
    answer,
    answer_json,
    entry_line,
    explain,
    journal_line,
    json_option,
    open_memory,
)
from memory_r1.types import Entry, JournalRow

EntryId = Annotated[str, typer.Argument(help="Id of a memory, as `list` prints it.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("list")(list_entries)
    for command in (
        *(get, update, delete, history, journal, undo),
        *(proposals, approve, reject, feedback, forget),
    ):
        app.command()(command)


def list_entries(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    filters: Filter = "",
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also what is no longer believed, or expired.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 0,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many at first.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print all memories, oldest first."""
    with open_memory(store) as memory:
        entries = memory.list(
            user_id=user,
            filters=json_option("--filter", filters),
            superseded=superseded,
            limit=limit or None,
            offset=offset,
        )
    _show_entries(entries, as_json)
    if not entries:
        explain(f"no memory of {user!r} fits" if filters else f"the memory of {user!r} is empty")


def get(
    entry_id: EntryId,
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print one memory; with --json all that is known of it."""
    with open_memory(store) as memory:
        entry = memory.get(entry_id, user_id=user)
    if as_json:
        answer_json(entry)
    else:
        answer(entry_line(entry))


def update(
    entry_id: EntryId,
    text: Annotated[str, typer.Argument(help="What it should say; left out: as it does.")] = "",
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    metadata: Annotated[str, typer.Option(help="Merged into what is there; JSON object.")] = "",
    expires: Annotated[str, typer.Option(help="From when on it is out of date; or: never.")] = "",
    as_json: AsJson = False,
) -> None:
    """Change by hand what a memory says, or what is kept with it."""
    with open_memory(store) as memory:
        row = memory.update(
            entry_id,
            text or None,
            user_id=user,
            metadata=json_option("--metadata", metadata),
            expires=expires or None,
        )
    _show_rows([row], as_json)


def delete(
    entry_id: EntryId,
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take a memory out of search; its history stays, and `undo` brings it back."""
    with open_memory(store) as memory:
        row = memory.delete(entry_id, user_id=user)
    _show_rows([row], as_json)


def history(
    entry_id: EntryId,
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print how one memory read over time, first version first."""
    with open_memory(store) as memory:
        entries = memory.history(entry_id, user_id=user)
    _show_entries(entries, as_json)


def journal(
    entry_id: Annotated[str, typer.Argument(help="Only of this memory.")] = "",
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print every operation on the memory, in order, with its id for `undo`."""
    with open_memory(store) as memory:
        rows = memory.journal(user_id=user, entry_id=entry_id or None)
    _show_rows(rows, as_json)
    if not rows:
        explain(f"the journal of {user!r} is empty")


def undo(
    target: Annotated[
        str, typer.Argument(help="Id of an operation, or of a memory: its last operation.")
    ] = "",
    since: Annotated[str, typer.Option(help="All that was done from this moment on.")] = "",
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take operations back, exactly."""
    with open_memory(store) as memory:
        rows = memory.undo(target, since=since or None, user_id=user)
    _show_rows(rows, as_json)
    if not rows:
        explain("nothing was done since then")


def proposals(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Print the operations that wait for `approve` or `reject`."""
    with open_memory(store) as memory:
        rows = memory.proposals(user_id=user)
    _show_rows(rows, as_json)
    if not rows:
        explain("nothing waits for approval")


def approve(
    journal_id: Annotated[str, typer.Argument(help="Id of a proposal.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Do what was proposed."""
    with open_memory(store) as memory:
        row = memory.approve(journal_id, user_id=user)
    _show_rows([row], as_json)


def reject(
    journal_id: Annotated[str, typer.Argument(help="Id of a proposal.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Leave undone what was proposed."""
    with open_memory(store) as memory:
        row = memory.reject(journal_id, user_id=user)
    _show_rows([row], as_json)


def feedback(
    question: Annotated[str, typer.Argument(help="What was asked.")],
    said: Annotated[str, typer.Option("--answer", help="What the memory answered.")],
    right: Annotated[bool, typer.Option("--right/--wrong", help="Whether that was right.")],
    correct: Annotated[str, typer.Option(help="What would have been right.")] = "",
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    as_json: AsJson = False,
) -> None:
    """Keep whether an answer was right; training learns from it."""
    from memory_r1.types import Answer

    with open_memory(store, llm) as memory:
        kept = memory.feedback(Answer(said, question), right, user_id=user, correct=correct)
    if as_json:
        answer_json(kept)
    else:
        answer(f"{kept.id}  kept")


def forget(
    user: Annotated[str, typer.Argument(help="Whose memory to erase.")],
    store: Store = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase everything about USER for good: memories, history, journal, messages."""
    if not yes:
        typer.confirm(f"Erase all memories of {user!r}? This can't be undone", abort=True, err=True)
    with open_memory(store) as memory:
        receipt = memory.forget(user)
    if as_json:
        answer_json(receipt)
    else:
        answer("erased " + ", ".join(f"{count} {what}" for what, count in receipt.items()))


def _show_entries(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        answer_json(entries)
        return
    for entry in entries:
        answer(entry_line(entry))


def _show_rows(rows: list[JournalRow], as_json: bool) -> None:
    if as_json:
        answer_json(rows)
        return
    for row in rows:
        answer(journal_line(row))

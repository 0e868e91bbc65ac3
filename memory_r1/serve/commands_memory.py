"""memory-r1 add, retry, search, ask, context: what a memory is for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from memory_r1.remember import AddResult

AsOf = Annotated[str, typer.Option(help="Look at what was believed then.")]
ValidAt = Annotated[str, typer.Option(help="Look at what was so then, as far as is known.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (add, retry, search, ask, context):
        app.command()(command)


def add(
    text: Annotated[str, typer.Argument(help="What was said; - reads it from stdin.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    speaker: Annotated[str, typer.Option(help="Who said it.")] = "",
    at: Annotated[str, typer.Option(help="When, as in 2023-05-07; now by default.")] = "",
    metadata: Annotated[str, typer.Option(help="Kept with the memories, a JSON object.")] = "",
    expires: Annotated[str, typer.Option(help="From when on it is out of date.")] = "",
    verbatim: Annotated[
        bool, typer.Option("--verbatim", help="Keep it word for word; ask no model.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done, and keep nothing.")
    ] = False,
    policy: Annotated[
        str, typer.Option(help="auto, confirm_deletes or confirm_all: what waits for `approve`.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Remember TEXT: extract facts, and let the Memory Manager edit the memory."""
    said = sys.stdin.read() if text == "-" else text
    with open_memory(store, llm, policy=policy) as memory:
        try:
            result = memory.add(
                said,
                user_id=user,
                timestamp=at or None,
                speaker=speaker or user,
                metadata=json_option("--metadata", metadata),
                expires=expires or None,
                infer=not verbatim,
                dry_run=dry_run,
            )
        except KeyboardInterrupt:
            if memory.store.waiting():
                explain("What was said is kept; `memory-r1 retry` processes it.")
            raise
    _show_result(result, as_json)


def retry(
    user: User = DEFAULT_USER,
    every: Annotated[bool, typer.Option("--all", help="Of all users.")] = False,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    as_json: AsJson = False,
) -> None:
    """Process again what was deferred because a model failed."""
    from memory_r1.remember import AddResult

    result = AddResult()
    with open_memory(store, llm) as memory:
        owners = memory.store.waiting() if every else [memory.bank(user).owner]
        for owner in owners:
            result += memory.retry(owner.user_id, agent_id=owner.agent_id, run_id=owner.run_id)
    _show_result(result, as_json)


def _show_result(result: AddResult, as_json: bool) -> None:
    if as_json:
        answer_json(result)
    else:
        for row in result.rows:
            answer(journal_line(row))
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
    filters: Filter = "",
    as_of: AsOf = "",
    valid_at: ValidAt = "",
    explained: Annotated[
        bool, typer.Option("--explain", help="Say what each reason adds to the score.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the memories that fit QUERY best, best first."""
    with open_memory(store) as memory:
        hits = memory.search(
            query,
            user_id=user,
            k=k,
            filters=json_option("--filter", filters),
            as_of=as_of or None,
            valid_at=valid_at or None,
            explain=explained,
        )
    if as_json:
        answer_json(hits)
        return
    for hit in hits:
        answer(f"{hit.score:6.2f}  {entry_line(hit.entry)}")
        if hit.signals:
            parts = "  ".join(f"{name} {value:.2f}" for name, value in hit.signals.items())
            explain(f"        {parts}")
    if not hits:
        explain(f"no memory of {user!r} fits" if filters else f"the memory of {user!r} is empty")


def ask(
    question: Annotated[str, typer.Argument(help="What to answer.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    k: Annotated[
        int, typer.Option("--k", "-k", min=0, help="Memories shown to the model; 0: its default.")
    ] = 0,
    per_speaker: Annotated[int, typer.Option(min=0, help="That many of each speaker instead.")] = 0,
    filters: Filter = "",
    as_of: AsOf = "",
    valid_at: ValidAt = "",
    as_json: AsJson = False,
) -> None:
    """Answer QUESTION from memory; the memories it rests on go to stderr."""
    with open_memory(store, llm) as memory:
        said = memory.ask(
            question,
            user_id=user,
            k=k or None,
            per_speaker=per_speaker or None,
            filters=json_option("--filter", filters),
            as_of=as_of or None,
            valid_at=valid_at or None,
        )
    if as_json:
        answer_json(said)
        return
    answer(said.text)
    for entry in said.used:
        explain(f"  {entry_line(entry)}")
    if said.note:
        explain(f"note: {said.note}")


def context(
    query: Annotated[str, typer.Argument(help="What the prompt is about.")],
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many memories.")] = 10,
) -> None:
    """Print the memories that fit QUERY as quoted data, to put into a prompt of your own."""
    with open_memory(store) as memory:
        answer(memory.context(query, user_id=user, k=k))

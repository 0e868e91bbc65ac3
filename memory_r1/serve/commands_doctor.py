"""`memory-r1 doctor`: look at every configured endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    EMBEDDER_VARIABLE,
    AsJson,
    Llm,
    Store,
    answer,
    answer_json,
    explain,
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(doctor)


def doctor(
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    embedder: Annotated[
        str,
        typer.Option(
            envvar=EMBEDDER_VARIABLE,
            help="wordllama (built in), sentence-transformers:NAME_OR_PATH, or URL#MODEL.",
        ),
    ] = "wordllama",
    as_json: AsJson = False,
) -> None:
    """Check store, embedder and models, and say how to mend what fails (exit code 1)."""
    from memory_r1.doctor import examine

    checks = examine(store, llm, embedder)
    if as_json:
        answer_json(checks)
    else:
        for check in checks:
            took = f"  ({check.milliseconds:,.0f} ms)" if check.milliseconds is not None else ""
            answer(f"{check.status:8} {check.part:9} {check.name}: {check.says}{took}")
            if check.mend:
                answer(f"{'':18} -> {check.mend}")
    if any(check.status == "failed" for check in checks):
        explain("something failed; the lines above say what to do")
        raise typer.Exit(1)

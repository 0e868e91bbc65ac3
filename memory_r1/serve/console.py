"""What all commands share: answers on stdout, explanations on stderr, errors in one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from memory_r1.errors import MemoryR1Error

User = Annotated[str, typer.Option(help="Whose memory.", envvar="MEMORY_R1_USER")]
Store = Annotated[str, typer.Option(help="Path or URL of the store.", envvar="MEMORY_R1_STORE")]
Llm = Annotated[
    str,
    typer.Option(
        help="rules (no model), tiny, tiny-base, a folder, openai:MODEL, URL#MODEL, or a "
        "Hugging Face id.",
        envvar="MEMORY_R1_LLM",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

DEFAULT_USER = "me"
DEFAULT_STORE = "memory.db"
DEFAULT_LLM = "rules"


class Group(TyperGroup):
    """Commands whose expected failures are one sentence on stderr and an exit code.

    1: what was asked could not be done; 2: the command line was wrong; 130: interrupted.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MemoryR1Error as error:
            explain(f"memory-r1: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            explain("memory-r1: interrupted; what was finished before is kept")
            raise typer.Exit(130) from stop


def answer(text: str) -> None:
    """Print what was asked for, on stdout."""
    typer.echo(text)


def answer_json(value: object) -> None:
    """Print a value on stdout as one JSON document; dataclasses and moments are understood."""
    typer.echo(json.dumps(_plain(value), ensure_ascii=False, indent=2))


def explain(text: str) -> None:
    """Print what helps a reader but isn't the answer, on stderr."""
    typer.echo(text, err=True)


def _plain(value: object) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case Path():
            return str(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    return value

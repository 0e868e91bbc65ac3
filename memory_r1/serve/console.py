"""What all commands share: answers on stdout, explanations on stderr, errors in one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from memory_r1.errors import ConfigError, MemoryR1Error

if TYPE_CHECKING:
    from memory_r1.memory import Memory
    from memory_r1.types import Entry, JournalRow

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
Filter = Annotated[
    str,
    typer.Option(
        "--filter",
        help='Only memories with this metadata: {"topic": "travel", "year": {"gte": 2023}}.',
    ),
]

DEFAULT_USER = "me"
DEFAULT_STORE = "memory.db"
DEFAULT_LLM = "rules"
EMBEDDER_VARIABLE = "MEMORY_R1_EMBEDDER"
"""Which embedder all commands use; the built-in one where it isn't set."""


def open_memory(store: str, llm: str = DEFAULT_LLM, **settings: Any) -> Memory:
    """The memory that a command works on."""
    from memory_r1.memory import Memory

    return Memory(store, llm=llm, embedder=os.environ.get(EMBEDDER_VARIABLE), **settings)


def json_option(name: str, text: str) -> dict[str, Any] | None:
    """An option whose value is a JSON object; None when it wasn't given."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is no JSON ({error}): {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} should be a JSON object, got {text[:80]!r}")
    return value


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
        except BrokenPipeError:  # whoever reads has seen enough, as `head` does
            raise
        except OSError as error:  # a full disk, an output that is closed
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


def entry_line(entry: Entry) -> str:
    """`id  vN  text`."""
    gone = f"  (until {entry.superseded:%Y-%m-%d %H:%M})" if entry.superseded else ""
    return f"{entry.id}  v{entry.version}  {entry.text}{gone}"


def journal_line(row: JournalRow) -> str:
    """`id  OP  text`, with what an UPDATE or DELETE replaced."""
    before = row.before.text if row.before else ""
    after = row.after.text if row.after and row.after.superseded is None else ""
    told = " -> ".join(text for text in (before, after) if text) or row.reason
    return f"{row.id}  {row.op:<6}  {told}{'' if row.state == 'done' else f'  ({row.state})'}"

"""The command line: `memory-r1 COMMAND`, one module `commands_*.py` per family of commands."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated

import typer

import memory_r1
from memory_r1 import serve
from memory_r1.serve.console import Group, answer

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Long-term memory for LLM agents that a trained agent manages: "
    "use it, train it, measure it.",
)


def _version(asked: bool) -> None:
    if asked:
        answer(memory_r1.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _register_commands() -> None:
    """Every neighbour named commands_* adds its commands; its heavy imports wait until they run."""
    for module in sorted(pkgutil.iter_modules(serve.__path__), key=lambda module: module.name):
        if module.name.startswith("commands_"):
            importlib.import_module(f"memory_r1.serve.{module.name}").register(app)


try:
    _register_commands()
except KeyboardInterrupt:  # so early that nobody has begun anything
    raise SystemExit(130) from None


def main() -> None:
    """The entry point `memory-r1`."""
    app(prog_name="memory-r1")


if __name__ == "__main__":
    main()

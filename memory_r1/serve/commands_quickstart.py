"""`memory-r1 quickstart`: see the method work in minutes, offline, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from memory_r1.serve.console import explain

if TYPE_CHECKING:
    from memory_r1.serve.quickstart import Algorithm


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(quickstart)


def quickstart(
    out: Annotated[
        Path, typer.Option(help="A new folder for all results; the same one goes on with it.")
    ] = Path("out/quickstart"),
    algo: Annotated[str, typer.Option(help="grpo or ppo.")] = "grpo",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    short: Annotated[
        bool, typer.Option("--short", help="Two steps and few questions: only to see it run.")
    ] = False,
) -> None:
    """Train the bundled tiny model in two stages, and show what it remembers before and after.

    Needs no network and no GPU; about ten minutes on two cores. OUT/report.html tells it all.
    """
    from rich.console import Console

    from memory_r1.serve import quickstart as work

    options = work.Options(out, cast("Algorithm", algo), seed, short)  # refuses other algorithms
    try:
        work.quickstart(options, Console(), Console(stderr=True))
    except KeyboardInterrupt:
        explain(f"Stopped. What is finished is in {out}; the same command goes on.")
        raise typer.Exit(130) from None

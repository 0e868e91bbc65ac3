"""`memory-r1 train`: play a run file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memory_r1.serve.console import explain


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(train)


def train(
    runfile: Annotated[Path, typer.Argument(help="A TOML file; runs/ holds ours.")],
    out: Annotated[Path, typer.Option(help="The run folder: config, metrics, curves, model.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Changes such as grpo.clip=0.3 steps.total=50.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in the folder.")
    ] = False,
) -> None:
    """Train the Memory Manager, the Answer Agent or a model from nothing, as RUNFILE says.

    The folder can be played at once: `--llm DIR` for the memory, `--system DIR` for the benchmark.
    """
    from memory_r1.errors import MissingExtra
    from memory_r1.train.runfile import load_run

    run = load_run(runfile, settings or [])
    try:
        from memory_r1.train.learn import learn
    except ImportError as error:
        raise MissingExtra("training", error.name or "torch", "train") from error
    learned = learn(run, out, resume=resume, command=sys.argv)
    if learned is not None and learned.after:
        before, after = (m.get("eval_em", 0.0) for m in (learned.before, learned.after))
        explain(f"held-out exact match: {before:.3f} before, {after:.3f} after")
    explain(f"the run is in {out}; play it with --llm {out} or --system {out}")

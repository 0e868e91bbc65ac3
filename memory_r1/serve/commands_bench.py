"""`memory-r1 bench`: play a system over a benchmark and print its scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from memory_r1.serve.console import AsJson, answer_json, explain

if TYPE_CHECKING:
    from memory_r1.bench.score import Benchmark
    from memory_r1.data import Split


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    benchmark: Annotated[str, typer.Argument(help="locomo or world.", metavar="BENCHMARK")],
    data: Annotated[Path, typer.Option(help="The benchmark's file, e.g. locomo10.json.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same one goes on with it.")],
    system: Annotated[
        str,
        typer.Option(
            help="rules, tiny-base, tiny, the folder of a training run, openai:MODEL, URL#MODEL;"
            " rag or full with --answer."
        ),
    ] = "rules",
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Ask only the first N questions.")] = None,
    manager: Annotated[
        str | None, typer.Option(help="Another Memory Manager than the system's.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Another Answer Agent than the system's.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(help="Entries the Answer Agent is shown (60; compact models 16).")
    ] = None,
    per_speaker: Annotated[
        int | None,
        typer.Option(help="Show the best N of each speaker; the paper's protocol is 30."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions asked at once; 1 to time them.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Play a system over BENCHMARK, turn by turn, then ask its questions and score the answers.

    OUT receives predictions.jsonl (one line per question), scores.json and the banks. A run that
    was stopped goes on when the same command is given again.
    """
    from rich.console import Console

    from memory_r1.bench.baselines import open_system
    from memory_r1.bench.report import Watch, print_scores
    from memory_r1.bench.run import Plan, run

    plan = Plan(
        benchmark=cast("Benchmark", benchmark),  # Plan refuses others, in a sentence
        data=data,
        out=out,
        system=system,
        manager=manager,
        answer=answer,
        split=cast("Split", split),
        limit=limit,
        k=k,
        per_speaker=per_speaker,
        batch=batch,
    )
    try:
        with Watch(Console(stderr=True)) as watch:
            scores = run(plan, open_system(system, manager, answer), progress=watch)
    except KeyboardInterrupt:
        explain(f"Stopped. What is finished is in {out}; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        answer_json(scores)
    else:
        console = Console()
        print_scores(scores, console)
        console.print(f"kept in {out}", soft_wrap=True)

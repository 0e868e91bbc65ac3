"""`memory-r1 train`: play a run file, or say what it would take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_r1.errors import ConfigError, MemoryR1Error, MissingExtra
from memory_r1.serve.console import answer, explain

if TYPE_CHECKING:
    from memory_r1.train.prompts import Lengths
    from memory_r1.train.runfile import Run


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(train)


def train(
    runfile: Annotated[Path, typer.Argument(help="A TOML file; runs/ holds ours.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Changes such as grpo.clip=0.3 steps.total=50.", metavar="KEY=VALUE"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder: config, metrics, curves, model.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the latest checkpoint in the folder.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print steps, tokens, memory and time.")
    ] = False,
    gpu_gb: Annotated[
        float | None, typer.Option(help="Refuse a run that needs more memory; else [budget]'s.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="With --dry-run: the pace to reckon the hours with.")
    ] = None,
    processes: Annotated[
        int, typer.Option(help="Start so many, one per GPU; docs/several_gpus.md.", min=1)
    ] = 1,
) -> None:
    """Train the Memory Manager, the Answer Agent or a model from nothing, as RUNFILE says.

    The folder can be played at once: `--llm DIR` for the memory, `--system DIR` for the benchmark.
    """
    from memory_r1.train.estimate import check_fits
    from memory_r1.train.runfile import load_run

    with _started() as (first, number):
        run = load_run(runfile, settings or [])
        if dry_run:
            _dry_run(run, gpu_gb, tokens_per_second, processes)
            return
        if out is None:
            raise ConfigError("where to? Name the run folder with --out DIR, or ask with --dry-run")
        check_fits(run, gpu_gb, processes=max(processes, number))
        try:
            from memory_r1.train import launch
            from memory_r1.train.learn import learn
        except ImportError as error:
            raise MissingExtra("training", error.name or "torch", "train") from error
        if processes > 1:
            raise typer.Exit(launch.start(processes, _without_processes(sys.argv[1:])))
        learned = learn(run, out, resume=resume, command=sys.argv)
    if not first:
        return
    if learned is not None and learned.after:
        before, after = (m.get("eval_em", 0.0) for m in (learned.before, learned.after))
        explain(f"held-out exact match: {before:.3f} before, {after:.3f} after")
    if run.engine == "verl" and not (out / "agents.json").exists():
        return  # written, to be launched where the GPUs are
    explain(f"the run is in {out}; play it with --llm {out} or --system {out}")


@contextmanager
def _started() -> Iterator[tuple[bool, int]]:
    """Whether this is the first, or the only one, of how many processes a launcher started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True, 1
        return
    from memory_r1.train.processes import joined

    with joined() as processes:
        yield processes.first, processes.number


def _without_processes(arguments: Sequence[str]) -> list[str]:
    """The command line that each process is started with."""
    kept: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == "--processes":
            next(given, None)
        elif not argument.startswith("--processes="):
            kept.append(argument)
    return kept


def _dry_run(
    run: Run, gpu_gb: float | None, tokens_per_second: float | None, processes: int
) -> None:
    from memory_r1.train.estimate import PROMPT_TOKENS, check_fits, pace

    if run.gives_lessons or run.engine != "local" or run.algorithm == "logo":
        raise ConfigError(
            "--dry-run reckons GRPO, PPO and Memory-SFT on this machine; expected no verl, no "
            "lessons of the tiny model and no LoGo-GRPO"
        )
    prompts = _prompts(run)
    if prompts is not None:
        seen = f"mean {prompts.mean:,} tokens, longest {prompts.longest:,}, of the run's own data"
        answer(f"prompts  {seen} ({prompts.starts:,} starts)")
    else:
        longest = run.rollout.prompt_tokens or PROMPT_TOKENS
        answer(f"prompts  up to {longest:,} tokens (assumed: the data can't be read here)")
    planned = pace(run, prompts.mean if prompts else None)
    answer(f"steps    {planned.steps:,} of {planned.rollouts:,} rollouts")
    answer(
        f"tokens   {planned.prompt_tokens:,} read and at most {planned.completion_tokens:,} "
        "written per step"
    )
    if tokens_per_second:
        hours = planned.hours(tokens_per_second)
        answer(f"time     at most {hours:,.1f} hours at {tokens_per_second:g} tokens a second")
    _say_memory(run, processes)
    _say_calls(run)
    check_fits(run, gpu_gb, processes=processes)


def _prompts(run: Run) -> Lengths | None:
    try:
        from memory_r1.train.prompts import prompt_lengths

        return prompt_lengths(run)
    except (ImportError, MemoryR1Error) as error:
        explain(f"prompts were not looked at: {error}")
        return None


def _say_memory(run: Run, processes: int) -> None:
    from memory_r1.train.estimate import GB, need, shape_of

    shape = shape_of(run.model)
    needed = need(run, shape, processes=processes)
    trained = shape.adapter(run.lora) if run.lora else shape.parameters
    answer(f"model    {shape.parameters / 1e9:.2f} B parameters, {trained / 1e6:,.1f} M trained")
    answer(f"memory   {needed.peak / GB:.1f} GB at worst (arithmetic, not measured)")
    for name in ("kept", "sampling", "updating"):
        parts = getattr(needed, name)
        told = ", ".join(f"{part} {size / GB:.1f}" for part, size in parts.items())
        answer(f"  {name:<9} {sum(parts.values()) / GB:6.1f}  {told}")


def _say_calls(run: Run) -> None:
    """What other models than the trained one will be asked."""
    try:
        from memory_r1.train.cost import cost

        asked: dict[str, Any] = cost(run)
    except (ImportError, MemoryR1Error) as error:
        explain(f"what the partners will be asked is not known: {error}")
        return
    for phase in ("building", "imitated", "training"):
        for role, needs in asked.get(phase, {}).items():
            answer(
                f"calls    {phase}, {role}: {needs['calls']:,} replies, "
                f"{needs['prompt_tokens']:,} tokens read, {needs['completion_tokens']:,} written"
            )

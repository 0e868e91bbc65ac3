"""`memory-r1 bench`: play a system over a benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memory_r1.errors import ConfigError
from memory_r1.serve.console import EMBEDDER_VARIABLE, AsJson, answer, answer_json, explain

if TYPE_CHECKING:
    from memory_r1.bench.plan import Plan, Protocol
    from memory_r1.bench.run import Prices
    from memory_r1.data import Split


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    benchmark: Annotated[
        str, typer.Argument(help="locomo, longmemeval, msc, world or jsonl.", metavar="BENCHMARK")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The benchmark's file; by default looked for in MEMORY_R1_DATA and here."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same one goes on with it. [out/bench/...]"),
    ] = None,
    system: Annotated[
        str,
        typer.Option(
            help="rules, tiny-base, tiny, the folder of a training run, openai:MODEL, URL#MODEL; or"
            " a baseline of docs/systems.md, with --model."
        ),
    ] = "rules",
    model: Annotated[
        str | None, typer.Option(help="The model of a baseline, in all roles.")
    ] = None,
    manager: Annotated[
        str | None, typer.Option(help="Another Memory Manager than the system's.")
    ] = None,
    answer_by: Annotated[
        str | None, typer.Option("--answer", help="Another Answer Agent than the system's.")
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(help="Cross-encoder of the system rerank: id, path or URL#MODEL.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(help="Another embedder than the built-in one.", envvar=EMBEDDER_VARIABLE),
    ] = None,
    peer_python: Annotated[
        str | None, typer.Option(help="A Python that has the package of mem0 or langmem.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Ask only N questions.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draw them by this seed, instead of the first N.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(help="Entries the Answer Agent is shown (60; compact models 16).")
    ] = None,
    per_speaker: Annotated[
        int | None,
        typer.Option(help="Show the best N of each speaker; the paper's protocol is 30."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(help="build: remember all, then ask. stream: ask as the dialogue unfolds."),
    ] = "build",
    every: Annotated[int, typer.Option(help="Streaming: ask after every N sessions.")] = 5,
    judge: Annotated[
        str | None, typer.Option(help="Model that grades the answers, named as a system's models.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions asked at once; 1 to time them.")] = 32,
    jobs: Annotated[
        int | None, typer.Option(help="Dialogues at once (8 for services; local models in step).")
    ] = None,
    price: Annotated[
        str, typer.Option(help="Dollars for a million tokens, IN,OUT, to show what it costs.")
    ] = "",
    label: Annotated[str, typer.Option(help="What reports call this row.")] = "",
    cache: Annotated[
        Path | None,
        typer.Option(help="Where replies and banks are kept for other runs. [the user's cache]"),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep and reuse nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many calls and tokens it will need.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Play a system over BENCHMARK, turn by turn, then ask its questions and score the answers.

    OUT receives predictions.jsonl (one line per question), scores.json and the banks. A run that
    was stopped goes on when the same command is given again. docs/benchmarks.md has the commands
    of the paper's tables, docs/systems.md the baselines.
    """
    from memory_r1.bench.plan import Plan
    from memory_r1.bench.systems import Options, open_system
    from memory_r1.config import Settings
    from memory_r1.data import find
    from memory_r1.llm.replies import cache_folder

    plan = Plan(
        benchmark=benchmark,
        data=data or find(benchmark),
        out=out or _folder(benchmark, system, model, protocol),
        system=system,
        model=model,
        manager=manager,
        answer=answer_by,
        reranker=reranker,
        embedder=embedder,
        label=label,
        split=cast("Split", split),  # Plan refuses others, in a sentence
        limit=limit,
        seed=seed,
        k=k,
        per_speaker=per_speaker,
        protocol=cast("Protocol", protocol),
        every=every,
        batch=batch,
        jobs=jobs,
    )
    options = Options(
        model=model,
        manager=manager,
        answer=answer_by,
        reranker=reranker,
        peer_python=peer_python,
        settings=Settings(k=k, per_speaker=per_speaker),
    )
    prices = _prices(price)
    opened = open_system(system, options)
    try:
        if dry_run:
            from memory_r1.bench.rehearsal import rehearse

            needed = rehearse(plan, opened, prices=prices, judged=judge is not None)
            answer_json(needed) if as_json else answer(_needed(needed))
            return
        _run(plan, opened, None if no_cache else cache or cache_folder(), prices, judge, as_json)
    finally:
        opened.close()


def _run(
    plan: Plan,
    system: Any,
    cache: Path | None,
    prices: Prices | None,
    judge: str | None,
    json: bool,
) -> None:
    from rich.console import Console

    from memory_r1.bench.progress import Watch
    from memory_r1.bench.run import run
    from memory_r1.bench.tables import print_scores
    from memory_r1.serve.commands_judge import open_judge

    judged_by = None if judge is None else open_judge(judge)
    try:
        with Watch(Console(stderr=True)) as watch:
            scores = run(
                plan, system, cache=cache, prices=prices, judged_by=judged_by, progress=watch
            )
    except KeyboardInterrupt:
        explain(f"Stopped. What is finished is in {plan.out}; the same command goes on.")
        raise typer.Exit(130) from None
    if json:
        answer_json(scores)
    else:
        console = Console()
        print_scores(scores, console)
        console.print(f"kept in {plan.out}", soft_wrap=True)


def _folder(benchmark: str, system: str, model: str | None, protocol: str) -> Path:
    """OUT when none is given: told apart by what is played."""
    named = [benchmark, system, model or "", "" if protocol == "build" else protocol]
    words = (re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in named)
    return Path("out") / "bench" / "_".join(word for word in words if word)


def _prices(text: str) -> Prices | None:
    from memory_r1.bench.run import Prices

    if not text:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        prompt = completion = -1.0
    if min(prompt, completion) < 0:
        raise ConfigError(
            f"--price is {text!r}; expected dollars for a million prompt tokens and completion "
            "tokens, such as 0.15,0.60"
        )
    return Prices(prompt, completion)


def _needed(found: Mapping[str, Any]) -> str:
    """The text form of a dry run."""
    lines = [
        f"{found['benchmark']}, {found['system']}: {found['questions']:,} questions on "
        f"{found['turns']:,} turns of {found['dialogues']:,} dialogues",
        f"{'':10}{'calls':>12}{'prompt tokens':>18}{'completion tokens':>20}",
    ]
    for name, row in [*found["needed"].items(), ("total", found["total"])]:
        lines.append(
            f"{name:10}{row['calls']:>12,}{row['prompt_tokens']:>18,}"
            f"{row['completion_tokens']:>20,}"
        )
    if found["dollars"] is not None:
        lines.append(f"about ${found['dollars']:,.2f}")
    return "\n".join([*lines, f"assumes {found['assumes']}"])

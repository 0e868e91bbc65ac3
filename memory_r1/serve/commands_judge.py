"""`memory-r1 judge`: have a language model judge the answers of a benchmark run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_r1.errors import ConfigError
from memory_r1.serve.console import AsJson, answer, answer_json, explain

if TYPE_CHECKING:
    from memory_r1.bench.folder import RunFolder
    from memory_r1.bench.judge import Judged
    from memory_r1.llm import LLM


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(judge)


def judge(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, from `memory-r1 bench`.", metavar="RUN")
    ],
    judge: Annotated[
        str, typer.Option(help="openai:MODEL, URL#MODEL, a folder, or a Hugging Face id.")
    ],
    second: Annotated[
        str | None, typer.Option(help="Another model, to see how far the two agree.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a language model say which answers of RUN are right.

    Verdicts are kept in RUN/judgements.jsonl, and what has one is not asked again. RUN/scores.json
    gets the share of right answers by --judge beside the other measures.
    """
    from rich.console import Console

    from memory_r1.bench import judge as judging
    from memory_r1.bench.agreement import agreement
    from memory_r1.bench.progress import Watch

    folder = judging.open_run(run)
    benchmark = judging.benchmark_of(folder)
    llms = [open_judge(name) for name in (judge, second) if name is not None]
    if len({llm.name for llm in llms}) < len(llms):
        raise ConfigError(f"--judge and --second are the same model, {llms[0].name!r}")
    with Watch(Console(stderr=True)) as watch:
        said = [judging.judge(folder, m, benchmark=benchmark, progress=watch) for m in llms]
    agreed = agreement(said[0].verdicts, said[1].verdicts) if second is not None else None
    found = {
        "benchmark": benchmark,
        **_measured(folder, said[0]),
        "second": _measured(folder, said[1]) if second is not None else None,
        "agreement": agreed.as_json() if agreed else None,
    }
    if as_json:
        answer_json(found)
    else:
        _show(found)
    if (run / "scores.json").exists():
        judging.rescore(folder, said[0].judge)
        explain(f"{run / 'scores.json'} has the share of {said[0].judge} now.")
    else:
        explain(f"{run} has no scores.json yet: the run is not finished. The verdicts are kept.")


def open_judge(name: str) -> LLM:
    """The model of this name; ConfigError for one that can't judge."""
    from memory_r1.grading import check
    from memory_r1.llm.open import open_llm

    if name == "rules":
        raise ConfigError("a judge is a language model; rules is none. Try --judge openai:MODEL")
    llm = open_llm(name)
    check(llm)
    return llm


def _measured(folder: RunFolder, judged: Judged) -> dict[str, Any]:
    from memory_r1.bench import score
    from memory_r1.bench.judge import predictions_of

    of = (score.last_asked(predictions_of(folder)), judged.verdicts)
    return {
        "judge": judged.as_json(),
        "overall": {**score.measures(*of), "intervals": score.intervals(*of)},
        "groups": score.groups(*of),
    }


def _show(found: Mapping[str, Any]) -> None:
    """J with its interval, and beside it what it should never be read without."""
    row = found["overall"]
    answer(_line(found))
    if found["second"]:
        answer(_line(found["second"]))
    answer(f"F1 {row['f1']}, {row['answer_words']} words per answer, {row['n']} answers")
    if agreed := found["agreement"]:
        kappa = "not defined" if agreed["kappa"] is None else f"{agreed['kappa']:.2f}"
        share = "-" if agreed["agreed"] is None else f"{agreed['agreed']}%"
        answer(
            f"agreement {share} of {agreed['n']} that both scored, Cohen's kappa {kappa}; both "
            f"CORRECT {agreed['both_correct']}, both WRONG {agreed['both_wrong']}, only the first "
            f"CORRECT {agreed['only_first']}, only the second {agreed['only_second']}"
        )


def _line(measured: Mapping[str, Any]) -> str:
    """E.g. `J 62.7 (95%: 60.1 to 65.3), 0.2% unscored, by gpt-x, instruction 0123456789ab`."""
    judge, row = measured["judge"], measured["overall"]
    low, high = row["intervals"].get("judge", (None, None))
    share = "-" if low is None else f"{row['judge']} (95%: {low} to {high})"
    return (
        f"J {share}, {judge['unscored']}% unscored, by {judge['name']}, "
        f"instruction {judge['prompt_hash']}"
    )

"""run folders -> the runs of a report; nothing in them is changed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory_r1.bench.given import MEASURES, BenchRun, Given, TrainRun, lines, number
from memory_r1.errors import DataError


def read(folders: Sequence[Path]) -> Given:
    """Read run folders; one that is named twice counts once.

    Raises DataError for a folder that holds no run, or one that can't be read.
    """
    bench: list[BenchRun] = []
    training: list[TrainRun] = []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        if (folder / "scores.json").is_file():
            bench.append(_bench(folder))
        elif (folder / "metrics.jsonl").is_file() and (folder / "config.toml").is_file():
            training.append(_training(folder))
        else:
            raise _no_run(folder)
    return Given(tuple(_told_apart(bench)), tuple(training))


def _bench(folder: Path) -> BenchRun:
    scores = _json(folder / "scores.json")
    overall = scores.get("overall")
    if not isinstance(overall, dict) or "benchmark" not in scores:
        raise DataError(
            f"{folder / 'scores.json'} is not the scores of a benchmark run: expected 'benchmark' "
            f"and 'overall', got {', '.join(sorted(scores)) or 'nothing'}; give a folder that "
            "`memory-r1 bench` wrote"
        )
    for where, row in {"overall": overall, **(scores.get("groups") or {})}.items():
        for name in ("n", *MEASURES, "answer_words"):
            value = row.get(name) if isinstance(row, dict) else row
            if value is not None and number(value) is None:
                raise DataError(
                    f"{folder / 'scores.json'}: {name} of {where!r} is {value!r}, not a number; "
                    "play the run again, or leave this folder out"
                )
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    run = BenchRun(folder, "", scores, config)
    return replace(run, label=run.name)


def _training(folder: Path) -> TrainRun:
    try:
        config = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / 'config.toml'} is no TOML: {error}") from error
    rows = lines(folder / "metrics.jsonl")
    if not rows:
        raise DataError(
            f"{folder}: metrics.jsonl holds no step yet; wait for the training run's first step, "
            "or leave this folder out"
        )
    about = _json(folder / "run.json") if (folder / "run.json").is_file() else {}
    return TrainRun(folder, folder.name, config, about, rows)


def _no_run(folder: Path) -> DataError:
    expected = (
        "expected a folder of `memory-r1 bench` (scores.json) or of `memory-r1 train` "
        "(config.toml, metrics.jsonl)"
    )
    if not folder.is_dir():
        seen = "a file" if folder.exists() else "nothing there"
        return DataError(f"{folder} is no run: {expected}, found {seen}")
    if (folder / "predictions.jsonl").exists():
        return DataError(
            f"{folder} holds an unfinished benchmark run (predictions.jsonl, no scores.json); "
            "give its bench command again, it goes on where it stopped"
        )
    inside = sorted(
        path.name
        for path in folder.iterdir()
        if (path / "scores.json").is_file() or (path / "metrics.jsonl").is_file()
    )
    if inside:
        named = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
        return DataError(f"{folder} is no run but holds some: {named}. Name them: {folder}/*")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return DataError(f"{folder} is no run: {expected}, found {found}")


def _told_apart(runs: Sequence[BenchRun]) -> list[BenchRun]:
    """Runs of one table that share a label get their seed, or else their folder, behind it."""
    found = []
    for run in runs:
        same = [other for other in runs if (other.label, other.key) == (run.label, run.key)]
        seeds = {other.seed for other in same}
        if len(same) == 1:
            found.append(run)
            continue
        seeded = len(seeds) == len(same) and None not in seeds
        tail = f"seed {run.seed}" if seeded else _short(run.folder, [o.folder for o in same])
        found.append(replace(run, label=f"{run.label} ({tail})"))
    return found


def _short(folder: Path, others: Sequence[Path]) -> str:
    """The end of a path, as long as it must be to differ from the others'."""
    for length in range(1, len(folder.parts) + 1):
        tails = {path.parts[-length:] for path in others}
        if len(tails) == len(others):
            return "/".join(folder.parts[-length:])
    return str(folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}; was it cut off?") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, got {str(found)[:60]!r}")
    return found

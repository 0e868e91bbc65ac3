"""Held-out evaluation of the quickstart: two world files, three pairs of agents, one table each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from memory_r1.bench.folder import RunFolder
from memory_r1.bench.plan import Plan
from memory_r1.bench.run import Progress, run
from memory_r1.bench.score import Interval, Prediction, paired_bootstrap, percent
from memory_r1.bench.systems import open_system
from memory_r1.config import Settings
from memory_r1.data import load
from memory_r1.data.world import WorldConfig, WorldWords, write
from memory_r1.train.construct import read_facts

WORLDS: Mapping[str, WorldWords] = {"new": "train", "unseen": "unseen"}
"""New dialogues of the words known from training; and of names and values no training has met."""
TEST_SEED = 5_000_000
"""Added to the quickstart's seed for its test worlds: far from all seeds that are trained on."""
DIALOGUES = 11
"""Per test world: more than 400 questions."""
SHORT_DIALS: Mapping[str, int] = {"threads": 4, "friends": 1, "absent": 1}
"""A small world, for --short."""
SYSTEMS = ("before", "stage1", "both")
"""The pair before training; the trained manager with the old Answer Agent; the trained pair."""


class Row(NamedTuple):
    """One group of questions. Shares are 0..100."""

    group: str
    n: int
    em: tuple[float | None, ...]
    """Exact match of each system, in the order of SYSTEMS."""
    gain: Interval
    """Of both stages over before, points, with a 95% paired bootstrap interval."""


@dataclass(frozen=True)
class Measured:
    """One world's results."""

    world: str
    rows: tuple[Row, ...]
    """All questions first, then by phenomenon and by kind."""
    bank: Mapping[str, Mapping[str, Any]]
    """What scores.json tells of the banks, by system."""


def write_worlds(folder: Path, seed: int, *, short: bool) -> dict[str, Path]:
    """The two test files, by name; the same seed gives the same bytes."""
    folder.mkdir(exist_ok=True)
    size: dict[str, Any] = (
        {"dialogues": 2, "sessions": 2, **SHORT_DIALS} if short else {"dialogues": DIALOGUES}
    )
    paths = {}
    for name, words in WORLDS.items():
        paths[name] = folder / f"{name}.json"
        write(WorldConfig.of({"seed": TEST_SEED + seed, "words": words, **size}), paths[name])
    return paths


def evaluate(
    data: Path,
    out: Path,
    system: str,
    *,
    limit: int | None,
    banks_of: Path | None = None,
    progress: Progress = lambda stage, done, total, note: None,
) -> None:
    """Play one system over one world file; a folder that was begun is gone on with.

    banks_of: the folder of a run whose manager is the same: its banks are taken over.
    """
    if banks_of is not None and not out.exists():
        draft = out.with_name(out.name + ".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        shutil.copytree(banks_of / "banks", draft / "banks")
        shutil.copy(banks_of / "turns.jsonl", draft)
        draft.replace(out)
    plan = Plan(
        benchmark="world", data=data, out=out, system=system, split="all", limit=limit, batch=128
    )
    players = open_system(system)
    if banks_of is None:
        # Facts don't depend on the bank: read all at once, they wait in the model's own cache
        # when the banks are built turn by turn.
        read_facts(load(data), players.agents, Settings())
    run(plan, players, progress=progress)


def compare(world: str, folders: Sequence[Path]) -> Measured:
    """The table of one world from the run folders of SYSTEMS."""
    runs = [RunFolder(folder, _json(folder / "config.json")) for folder in folders]
    predictions = [
        {question_id: p for (question_id, _), p in run_folder.predictions().items()}
        for run_folder in runs
    ]
    banks = {
        name: _json(folder / "scores.json")["bank"]
        for name, folder in zip(SYSTEMS, folders, strict=True)
    }
    return Measured(world, tuple(table(predictions)), banks)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def table(predictions: Sequence[Mapping[str, Prediction]]) -> list[Row]:
    """Exact match of several systems on the same questions: all, and each group.

    predictions: per system, by question id; the first and the last are compared.
    """
    members: dict[str, list[str]] = {"all": []}
    for question_id, prediction in predictions[0].items():
        members["all"].append(question_id)
        for name in prediction.groups:
            members.setdefault(name, []).append(question_id)
    # Phenomena first: they are what the world is for.
    names = sorted(members, key=lambda name: (name != "all", name.startswith("kind"), name))
    return [_row(name, members[name], predictions) for name in names]


def _row(name: str, ids: Sequence[str], predictions: Sequence[Mapping[str, Prediction]]) -> Row:
    em = [[of[i].em for i in ids] for of in predictions]
    gain = paired_bootstrap(em[-1], em[0], resamples=4000)
    return Row(
        name,
        len(ids),
        tuple(percent(scores) for scores in em),
        Interval(*(round(100 * value, 1) for value in gain)),
    )


def mix(operations: Mapping[str, int]) -> dict[str, float]:
    """Shares (0..100) of the four operations."""
    total = max(1, sum(operations.values()))
    return {
        op: round(100 * operations.get(op, 0) / total, 1)
        for op in ("ADD", "UPDATE", "DELETE", "NOOP")
    }

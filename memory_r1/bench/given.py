"""What a report is made of: benchmark runs and training runs.

Folders of an older version lack some keys of scores.json; what is absent is None, never 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from memory_r1.bench.score import Prediction, intervals
from memory_r1.bench.systems import kind_of
from memory_r1.errors import DataError

Json = dict[str, Any]
Asked = tuple[str, int]
"""A question, and how many sessions the memory had seen then (0: all)."""
Row = Mapping[str, float | None]

OURS = ("memory-r1", "no-distillation")
"""The systems that are Memory-R1."""
RESAMPLES = 2_000
"""Of each interval that scores.json doesn't tell."""
UNTRAINED = ("rules", "tiny-base")
"""Names that say by themselves that nobody was trained (old folders don't say it elsewhere)."""
_FOLDER = re.compile(r"(?<![^\s(,])(?:~|\.{1,2})?/(?:[^\s(),/]+/)*([^\s(),/]+)")
"""A path in a label, absolute or from here: it tells a reader elsewhere nothing."""
TRAINED_TINY = "tiny"
"""The bundled trained pair, which comes without the run files that would tell so."""
TINY = (TRAINED_TINY, "tiny-base")
"""The bundled models, whose numbers must not be read as those of a language model."""
MEASURES: Mapping[str, str] = {"f1": "F1", "bleu1": "B1", "judge": "J", "em": "EM"}
"""What tables and figures compare, 0..100, and its heading."""


@dataclass(frozen=True)
class Trained:
    """How one agent was trained."""

    algorithm: str
    model: str
    """What training started from."""
    reward: str
    seed: int | None


@dataclass(frozen=True)
class BenchRun:
    """A finished benchmark run."""

    folder: Path
    label: str
    """What tables call it; `read` makes it differ from the others'."""
    scores: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What runs of one table share: benchmark, data, its SHA-256, split, protocol."""
        return (
            self.text("benchmark"),
            self.text("data"),
            self.text("data_sha256"),
            self.text("split"),
            self.text("protocol") or "build",
        )

    @property
    def name(self) -> str:
        """Its label, with folders by their last name: runs that differ in their seeds share it."""
        return _FOLDER.sub(r"\1", self.text("label") or self.text("system")) or "?"

    @property
    def system(self) -> str:
        """The system's name without its settings."""
        return self.text("system").split("?")[0]

    @property
    def players(self) -> Mapping[str, str]:
        """The model in each role: extract, manage, answer."""
        found = self.scores.get("players")
        return {k: str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}

    @property
    def overall(self) -> Row:
        """All questions in one row."""
        return _row(self.scores["overall"])

    @property
    def groups(self) -> Mapping[str, Row]:
        """The row of each kind of question."""
        return {name: _row(row) for name, row in (self.scores.get("groups") or {}).items()}

    @property
    def judge(self) -> tuple[str, str] | None:
        """Name and prompt hash of the judge; None where none was asked."""
        match self.scores.get("judge"):
            case {"name": name, "prompt_hash": prompt_hash}:
                return str(name), str(prompt_hash)
        return None

    @property
    def says_who_was_trained(self) -> bool:
        """False for folders written before scores.json told it."""
        return isinstance(self.scores.get("trained"), Mapping)

    @property
    def ours(self) -> bool:
        """Whether it is Memory-R1, with whatever agents.

        Not so `no-distillation` with a model that can't answer without: it is neither arm.
        """
        selects_still = self.system == "no-distillation" and self.distillation
        return kind_of(self.system) in OURS and not selects_still

    @property
    def distillation(self) -> bool:
        """Whether the Answer Agent selects memories before it answers."""
        return self.scores.get("distillation", self.system != "no-distillation") is True

    @property
    def untrained(self) -> bool:
        """Whether nobody was trained: then it is a baseline."""
        if TRAINED_TINY in (self.system, *self.players.values()):
            return False
        if self.says_who_was_trained:
            return self.trained("manage") is None and self.trained("answer") is None
        return self.system in UNTRAINED or not self.ours

    def trained(self, role: str) -> Trained | None:
        """How the agent of a role was trained; None where it wasn't, or nobody says so."""
        told = (self.scores.get("trained") or {}).get(role)
        if not isinstance(told, Mapping):
            return None
        seed = told.get("seed")
        return Trained(
            str(told.get("algorithm", "?")),
            str(told.get("model", "?")),
            str(told.get("reward", "?")),
            seed if isinstance(seed, int) else None,
        )

    @property
    def seed(self) -> int | None:
        """The seed of the training that came last; None where nobody was trained."""
        for role in ("answer", "manage"):
            if (trained := self.trained(role)) is not None and trained.seed is not None:
                return trained.seed
        return None

    @property
    def size(self) -> float | None:
        """Billions of parameters of the model that answers."""
        return number(self.scores.get("size"))

    @property
    def is_tiny(self) -> bool:
        """Whether a bundled tiny model, or one trained from it, has a part in it."""
        made_from = (self.trained(role) for role in ("manage", "answer"))
        names = [*self.players.values(), self.system, *(t.model for t in made_from if t)]
        return any(name in TINY for name in names)

    @property
    def latency(self) -> Mapping[str, tuple[float, float]]:
        """Component -> seconds at the median and at the 95th percentile."""
        found = {}
        for component, row in (self.scores.get("latency") or {}).items():
            p50, p95 = number(row.get("p50")), number(row.get("p95"))
            if p50 is not None and p95 is not None:
                found[component] = (p50, p95)
        return found

    @property
    def batch(self) -> int:
        """How many questions were asked at once; 1 where nobody says so."""
        found = self.scores.get("batch", self.config.get("batch"))
        return found if isinstance(found, int) else 1

    @cached_property
    def predictions(self) -> Mapping[Asked, Prediction]:
        """The answered questions; empty where the folder has none.

        Streaming, each question counts as it was answered last, as in scores.json.
        """
        known = {field.name for field in fields(Prediction)}
        found: dict[str, Prediction] = {}
        for row in lines(self.folder / "predictions.jsonl"):
            try:
                one = Prediction(**{name: row[name] for name in row.keys() & known})
            except TypeError as error:
                raise DataError(
                    f"{self.folder / 'predictions.jsonl'} was written by another version: {error}; "
                    "play the run again into another --out"
                ) from error
            before = found.get(one.question_id)
            if before is None or one.sessions >= before.sessions:
                found[one.question_id] = one
        return {one.key: one for one in found.values()}

    @cached_property
    def verdicts(self) -> Mapping[Asked, bool | None]:
        """What the run's judge said; None where it said nothing clear."""
        if self.judge is None:
            return {}
        said = {"CORRECT": True, "WRONG": False}
        return {
            (str(row.get("question_id")), int(row.get("sessions") or 0)): said.get(
                str(row.get("verdict"))
            )
            for row in lines(self.folder / "judgements.jsonl")
            if (row.get("judge"), row.get("instruction_hash", self.judge[1])) == self.judge
        }

    @cached_property
    def intervals(self) -> Mapping[str | None, Mapping[str, Sequence[float]]]:
        """The 95% intervals of the measures: group (None: all questions) -> measure -> low, high.

        Those of scores.json where it tells them, else made from the predictions.
        """
        members: dict[str | None, list[Prediction]] = {None: [*self.predictions.values()]}
        for one in self.predictions.values():
            for name in one.groups:
                members.setdefault(name, []).append(one)
        told = self.scores["overall"].get("intervals")
        if told:
            del members[None]
        found = {
            name: intervals(of, self.verdicts or None, resamples=RESAMPLES)
            for name, of in members.items()
        }
        return {**found, None: told} if told else found

    def interval(self, measure: str, group: str | None = None) -> tuple[float, float] | None:
        """The 95% interval of a measure over all questions, or over those of a group."""
        match self.intervals.get(group, {}).get(measure):
            case [int() | float() as low, int() | float() as high]:
                return float(low), float(high)
        return None

    def text(self, name: str) -> str:
        """A word of scores.json, else of config.json, else ""."""
        found = self.scores.get(name, self.config.get(name))
        return "" if found is None else str(found)


@dataclass(frozen=True)
class TrainRun:
    """A training run, finished or not."""

    folder: Path
    label: str
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    """run.json."""
    rows: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl."""

    @property
    def kind(self) -> str:
        """sft, manager or answer."""
        return str(self.config.get("kind", "?"))

    @property
    def algorithm(self) -> str:
        """grpo, ppo, or whatever else the run file says."""
        return "sft" if self.kind == "sft" else str(self.config.get("algorithm", "grpo"))

    @property
    def is_tiny(self) -> bool:
        """Whether it starts from a bundled tiny model."""
        return str(self.config.get("model")) in TINY


@dataclass(frozen=True)
class Given:
    """All that a report is made from."""

    bench: tuple[BenchRun, ...]
    training: tuple[TrainRun, ...]


def number(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _row(row: Mapping[str, Any]) -> Row:
    return {name: number(value) for name, value in row.items()}


def lines(path: Path) -> list[Json]:
    """The rows of a file of JSON lines; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    rows = []
    for place, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if place == len(lines):  # no newline behind it: torn
                break
            raise DataError(f"{path}, line {place} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {place}: expected a JSON object, got {line[:60]!r}")
        rows.append(row)
    return rows

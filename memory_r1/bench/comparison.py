"""Runs of the same data, split and protocol -> one table: rows, the paper's rows, differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from memory_r1.bench.given import MEASURES, Asked, BenchRun, Row
from memory_r1.bench.paper import Reference, category_reference, references
from memory_r1.bench.score import Interval, paired_bootstrap

RESAMPLES = 2_000
"""Of each difference: enough for one decimal, and a page of ten systems takes seconds."""
TITLES: Mapping[str, str] = {
    "locomo": "LoCoMo",
    "longmemeval": "LongMemEval",
    "msc": "MSC-Self-Instruct",
    "world": "World",
}


@dataclass(frozen=True)
class Difference:
    """How much better a run is than the best baseline, in points, on the questions of both."""

    points: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Table:
    """Runs that may be compared: same benchmark, data, split and protocol."""

    benchmark: str
    data: str
    sha256: str
    split: str
    protocol: str
    runs: tuple[BenchRun, ...]
    twin: bool = False
    """Another table has the same names and other data, so the title must tell them apart."""

    @property
    def title(self) -> str:
        """E.g. "LoCoMo, split test, locomo10.json"."""
        parts = [TITLES.get(self.benchmark, self.benchmark)]
        if self.split:
            parts.append(f"split {self.split}")
        if self.protocol == "stream":
            parts.append("streaming")
        if self.data:
            parts.append(f"{self.data} {self.sha256[:8]}" if self.twin else self.data)
        return ", ".join(parts)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The paper's rows on the same benchmark."""
        return references(self.benchmark, self.split, self.protocol)

    def reference(self, group: str) -> Reference | None:
        """The paper's row for one group."""
        return category_reference(self.benchmark, self.split, self.protocol, group)

    @property
    def groups(self) -> list[str]:
        """The kinds of questions, in order of their names."""
        return sorted({name for run in self.runs for name in run.groups})

    @cached_property
    def baseline(self) -> BenchRun | None:
        """The untrained run with the highest F1; None where all are trained."""
        untrained = [
            run for run in self.runs if run.untrained and run.overall.get("f1") is not None
        ]
        return max(untrained, key=lambda run: run.overall["f1"] or 0.0, default=None)

    @property
    def judges(self) -> list[tuple[str, str]]:
        """Names and prompt hashes of the judges that were asked."""
        return sorted({run.judge for run in self.runs if run.judge is not None})

    @property
    def same_questions(self) -> bool:
        """Whether all runs answered the same questions: else no row is the best."""
        asked = [run.predictions.keys() for run in self.runs if run.predictions]
        return len({run.overall.get("n") for run in self.runs}) == 1 and all(
            keys == asked[0] for keys in asked
        )

    def comparable(self, measure: str) -> bool:
        """Whether the values of a measure may be compared: J only under one judge."""
        return measure != "judge" or len(self.judges) == 1

    def best(self, measure: str, group: str | None = None) -> float | None:
        """The highest value among the runs; None where they can't be ranked."""
        if len(self.runs) < 2 or not self.same_questions or not self.comparable(measure):
            return None
        rows = (_of(run, group) for run in self.runs)
        values = [value for row in rows if (value := row.get(measure)) is not None]
        return max(values, default=None)

    def difference(self, run: BenchRun, measure: str) -> Difference | None:
        """How much better a run is than the baseline; None where the two share no question."""
        if self.baseline is None or run is self.baseline or not self.comparable(measure):
            return None
        a, b = _values(run, measure), _values(self.baseline, measure)
        common = sorted(a.keys() & b.keys())
        if not common:
            return None
        found: Interval = paired_bootstrap(
            [a[asked] for asked in common], [b[asked] for asked in common], resamples=RESAMPLES
        )
        points, low, high = (round(100 * value, 1) for value in found)
        return Difference(points, low, high, len(common))

    def as_json(self) -> dict[str, Any]:
        """All numbers of the table as JSON values."""
        return {
            "title": self.title,
            "benchmark": self.benchmark,
            "data": self.data,
            "data_sha256": self.sha256,
            "split": self.split,
            "protocol": self.protocol,
            "baseline": self.baseline.label if self.baseline else None,
            "rows": [self._row(run) for run in self.runs],
            "paper": [asdict(reference) for reference in self.references],
        }

    def _row(self, run: BenchRun) -> dict[str, Any]:
        """All numbers of a run in this table, as JSON values."""
        differences = {
            name: [found.points, found.low, found.high, found.n]
            for name in MEASURES
            if (found := self.difference(run, name)) is not None
        }
        return {
            "label": run.label,
            "system": run.text("system"),
            "players": dict(run.players),
            "overall": dict(run.overall) | {"intervals": _intervals(run)},
            "groups": {name: dict(row) for name, row in run.groups.items()},
            "minus_baseline": differences,
            "judge": list(run.judge) if run.judge else None,
            "seed": run.seed,
            "folder": run.folder.name,
        }


def tables(runs: Sequence[BenchRun]) -> list[Table]:
    """One table for each benchmark, data, split and protocol; rows from the lowest F1 up."""
    members: dict[tuple[str, str, str, str, str], list[BenchRun]] = {}
    for run in runs:
        members.setdefault(run.key, []).append(run)
    names = [(*key[:2], *key[3:]) for key in members]
    found = []
    for key in sorted(members, key=_order):
        twin = names.count((*key[:2], *key[3:])) > 1
        ranked = sorted(members[key], key=lambda run: (run.overall.get("f1") or 0.0, run.label))
        found.append(Table(*key, tuple(ranked), twin))
    return found


def averages(runs: Sequence[BenchRun], measure: str) -> tuple[float, float, float] | None:
    """What stands for some runs in a figure: the mean, and from where to where its bar goes.

    One run: its 95% interval (its value where it has none). Several, which differ in their seeds:
    the lowest and the highest. None where no run has the measure.
    """
    values = [value for run in runs if (value := run.overall.get(measure)) is not None]
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) > 1:
        return mean, min(values), max(values)
    only = next(run for run in runs if run.overall.get(measure) is not None)
    low, high = only.interval(measure) or (mean, mean)
    return mean, min(low, mean), max(high, mean)


def _intervals(run: BenchRun) -> dict[str, list[float]]:
    return {name: list(found) for name in MEASURES if (found := run.interval(name)) is not None}


def _of(run: BenchRun, group: str | None) -> Row:
    return run.overall if group is None else run.groups.get(group, {})


def _values(run: BenchRun, measure: str) -> dict[Asked, float]:
    """A run's score (0..1) for each question."""
    if measure == "judge":
        return {asked: float(said) for asked, said in run.verdicts.items() if said is not None}
    return {asked: float(getattr(one, measure)) for asked, one in run.predictions.items()}


def _order(key: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    known = list(TITLES)
    return (known.index(key[0]) if key[0] in known else len(known), key)

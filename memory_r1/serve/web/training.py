"""/runs, /run: what training runs do while they run, from the files in their folders.

Read without torch, and while they are written: a line that is damaged, or only half there, is
left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import Response

from memory_r1.errors import ConfigError
from memory_r1.serve import quickstart_charts as charts
from memory_r1.serve.web.visit import Page, Visit, Visits
from memory_r1.train.curves import PANELS, Panel

DEEP = 4
"""Folders within folders that runs are looked for in."""
POINTS = 1000
"""Steps that a curve is drawn from; of more, some are left out."""
QUIET = 3600.0
"""Seconds without a step after which a run that never said it ended is not waited for."""
routes = APIRouter(route_class=Page, include_in_schema=False)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder."""

    name: str
    """Its path in the folder of all."""
    rows: Sequence[Row]
    about: Mapping[str, Any]
    """run.json; empty where it can't be read."""
    config: str
    """config.toml."""
    changed: datetime

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def running(self) -> bool:
        """Whether more steps may come."""
        quiet = (datetime.now(UTC) - self.changed).total_seconds()
        return "ended" not in self.about and quiet < QUIET

    @property
    def state(self) -> str:
        """What has become of it, in words."""
        if "ended" in self.about:
            return str(self.about.get("outcome", "finished"))
        return "running" if self.running else "stopped without saying why"

    @property
    def latest(self) -> Mapping[str, float]:
        """The last values of what matters most, by what they are called."""
        names = {"reward_mean": "reward", "em": "exact match", "loss": "loss", "entropy": "entropy"}
        found = {}
        for name, called in names.items():
            if points := charts.series(self.rows, name):
                found[called] = points[-1][1]
        return found


def found_in(folder: Path) -> dict[str, Path]:
    """The run folders in a folder, by path, the last changed first; links are not followed."""
    found = {}
    for place, inner, files in os.walk(folder):
        here = Path(place)
        if len(here.relative_to(folder).parts) >= DEEP:
            inner.clear()
        if "metrics.jsonl" in files:
            found[here.relative_to(folder).as_posix()] = here
    return dict(sorted(found.items(), key=lambda item: -_changed(item[1])))


def _changed(folder: Path) -> float:
    try:
        return (folder / "metrics.jsonl").stat().st_mtime
    except OSError:  # gone in the meantime
        return 0.0


def load(name: str, folder: Path) -> Run:
    """A run as it is by now."""
    about = _object(_text(folder / "run.json"))
    changed = datetime.fromtimestamp(_changed(folder), UTC)
    rows = list(_rows(_text(folder / "metrics.jsonl")))
    return Run(name, rows, about, _text(folder / "config.toml"), changed)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(text: str) -> Iterator[Row]:
    """The rows that can be drawn: with a step, their other values finite numbers."""
    for line in text.splitlines():
        row = {name: value for name, value in _object(line).items() if _drawable(value)}
        if row.get("step", -1) >= 0:
            yield row


def _drawable(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def drawn(rows: Sequence[Row]) -> list[Markup]:
    """A curve of every metric that the run logs; held-out values as points on its own."""
    every = -(-len(rows) // POINTS) or 1
    # What is measured rarely stays whole.
    kept = [row for i, row in enumerate(rows) if i % every == 0 or _held_out(row)]
    found = []
    for panel in PANELS:
        if panel.stacked:
            found.append(charts.operations_chart(panel.title, kept))
            continue
        for name in panel.lines:
            if name.removeprefix("eval_") in panel.lines and name.startswith("eval_"):
                continue
            found.append(charts.line_chart(_title(panel, name), kept, name))
    # Made of our own words and of numbers only.
    return [Markup(svg) for svg in found if svg]


def _title(panel: Panel, name: str) -> str:
    """What the chart of one of a panel's metrics is called, short enough for its width."""
    called = panel.lines[name]
    if name.startswith("eval_"):
        return f"{panel.title}: {called}"
    if len(panel.lines) == 1 or called == "training":
        return panel.title
    words = called if panel.unit == "share" else f"{panel.title.split()[0]} {called}"
    return words[0].upper() + words[1:]


def _held_out(row: Row) -> bool:
    return any(name.startswith("eval_") for name in row)


@routes.get("/runs")
def runs(visit: Visits) -> Response:
    """The runs of the folder that the server was told of."""
    found = [load(name, path) for name, path in _known(visit).items()]
    return visit.page("runs.html", runs=found, folder=visit.service.settings.runs)


@routes.get("/run")
def run(visit: Visits, name: str) -> Response:
    """The curves of one; the script asks again every few seconds while it runs."""
    path = _known(visit).get(name)
    if path is None:
        raise HTTPException(404, f"there is no run {name!r} in the folder of the runs")
    found = load(name, path)
    return visit.page("run.html", run=found, charts=drawn(found.rows))


def _known(visit: Visit) -> dict[str, Path]:
    visit.caller.everything()
    if not visit.service.settings.runs:
        raise ConfigError("no folder of runs is shown; start the server with --runs FOLDER")
    return found_in(Path(visit.service.settings.runs))

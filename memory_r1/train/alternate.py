"""[stages]: one run file -> several trainings, each with what the last ones left.

A stage is an ordinary run in a folder of its own (`1-manager`, `2-answer`, ...). An agent that is
trained again goes on from its own weights; its partner is the one that was trained last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from memory_r1.errors import ConfigError
from memory_r1.llm.open import ROLES_FILE
from memory_r1.train.configfile import flat
from memory_r1.train.processes import present
from memory_r1.train.runfile import Run, dump, load_run
from memory_r1.train.runlog import MAY_CHANGE

if TYPE_CHECKING:
    from memory_r1.train.learn import Learned


def alternate(
    run: Run,
    out: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
    console: Console | None = None,
) -> Learned | None:
    """Train the stages of a run, one after the other; takes and raises what `learn` does.

    With `resume` finished stages are left alone, and the one that was stopped goes on. Returns the
    first stage's beginning and the last one's end; None when all had been finished before.
    """
    from memory_r1.train.learn import Learned, learn

    assert run.stages is not None
    processes = present()
    if processes.first:
        _begin(run, out, resume)
    show = console or Console(stderr=True, quiet=not processes.first)
    order = run.stages.order
    trained: dict[str, Path] = {}
    results: list[Learned] = []
    for number, kind in enumerate(order, 1):
        folder = out / f"{number}-{kind}"
        named = f"stage {number} of {len(order)}: {kind}, in {folder}"
        # The first one's view: it may write there before another has looked.
        files = (folder / ROLES_FILE, folder / "run.json")
        finished, begun = processes.tell([file.is_file() for file in files])
        if finished:
            show.print(f"{named}: finished before", markup=False, soft_wrap=True)
        else:
            show.print(named, markup=False, soft_wrap=True)
            learned = learn(
                stage_of(run, kind, trained),
                folder,
                resume=begun,
                command=command,
                watch=watch,
                console=console,
            )
            results += [learned] if learned else []
        trained[kind] = folder
    if processes.first:
        _write_players(out, folder)
    return Learned(out, results[0].before, results[-1].after) if results else None


def stage_of(run: Run, kind: Literal["manager", "answer"], trained: Mapping[str, Path]) -> Run:
    """The run of one stage. trained: by kind, the folder of the stage that trained it last."""

    def latest(name: str, first: str | None) -> str | None:
        return str(trained[name]) if name in trained else first

    return replace(
        run,
        kind=kind,
        stages=None,
        model=latest(kind, None) or run.model,
        manager=None if kind == "manager" else latest("manager", run.manager),
        answer=None if kind == "answer" else latest("answer", run.answer),
    )


def _begin(run: Run, out: Path, resume: bool) -> None:
    """Keep the whole run's settings beside its stages; ConfigError when others are there."""
    config = out / "config.toml"
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is not empty; continue the run in it with --resume, or choose another folder"
        )
    if resume and not config.is_file():
        raise ConfigError(f"{out} holds no run to resume; start it without --resume")
    if resume:
        before, now = flat(load_run(config)), flat(run)
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name) and not name.startswith(MAY_CHANGE):
                raise ConfigError(
                    f"{out} was started with {name} = {before.get(name)!r}, not "
                    f"{now.get(name)!r}; resume it unchanged, or start another folder"
                )
    out.mkdir(parents=True, exist_ok=True)
    config.write_text(dump(run), "utf-8")


def _write_players(out: Path, last: Path) -> None:
    """The players of the last stage are those of the whole run."""
    players = json.loads((last / ROLES_FILE).read_text("utf-8"))
    for role, player in players.items():
        if (last / player).is_dir():
            players[role] = os.path.relpath((last / player).resolve(), out.resolve())
    text = json.dumps(players, indent=2, sort_keys=True)
    (out / ROLES_FILE).write_text(text + "\n", "utf-8")

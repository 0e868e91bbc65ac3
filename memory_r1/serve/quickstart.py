"""From a bundled model to a trained pair in one command: story, two stages, measurement, report."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

import memory_r1
from memory_r1.bench.progress import Watch
from memory_r1.errors import ConfigError, MissingExtra
from memory_r1.llm.open import ROLES_FILE, fingerprint, open_agents
from memory_r1.serve import quickstart_measure as measure
from memory_r1.serve import quickstart_report as report
from memory_r1.serve import quickstart_story as story
from memory_r1.serve.quickstart_view import StageView, duration
from memory_r1.train.curves import read_metrics
from memory_r1.train.runfile import Run, load_run

STATE = "quickstart.json"
"""In the output folder: what was asked for, so that it can be gone on with, and seconds taken."""
STAGES: Mapping[str, str] = {
    "manager": "Stage 1: the Memory Manager",
    "answer": "Stage 2: the Answer Agent",
}
"""The folders of the two stages and what they train."""
SHORT_STEPS = 2
SHORT_QUESTIONS = 20

Algorithm = Literal["grpo", "ppo"]


@dataclass(frozen=True)
class Options:
    """What the command is asked for."""

    out: Path
    algo: Algorithm = "grpo"
    seed: int = 0
    """Of everything random: the training worlds, the sampling, the test worlds."""
    short: bool = False
    """Two steps per stage and a few questions: the same path, to see that it works."""
    base: str = "tiny-base"
    """Where training starts."""

    def __post_init__(self) -> None:
        """Refuse what can't be played."""
        if self.algo not in ("grpo", "ppo"):
            raise ConfigError(f"--algo is {self.algo!r}; expected grpo or ppo")
        if not 0 <= self.seed < 100_000:  # beyond, training and test worlds could meet
            raise ConfigError(f"--seed is {self.seed}; expected 0 to 99999")


def quickstart(options: Options, screen: Console, progress: Console) -> Path:
    """Play everything and return the path of the report.

    What OUT holds of the same quickstart is not done again. Raises ConfigError when OUT holds
    something else, MissingExtra without torch, ModelUnavailable without the base model.
    """
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingExtra("quickstart", package, "train")
    open_agents(options.base)  # a missing model is refused before anything is written
    work = _Work(options, screen, progress)
    before = work.two_dogs("before", options.base, "1. Two dogs, before training")
    work.say(
        f"\n2. Training with {options.algo.upper()} from one signal: are questions answered right?"
    )
    for kind in STAGES:
        work.train(kind)
    work.say("\n3. Held-out dialogues, before and after")
    measured = work.test()
    for one in measured:
        screen.print(report.table(one))
        screen.print(report.operations(one))
    after = work.two_dogs("after", str(options.out / "answer"), "4. Two dogs, after training")
    page = report.write(options.out, work.result(before, after, measured))
    work.say(f"\nTook {duration(sum(work.seconds.values()))} in all. The whole story: {page}")
    work.say("\nWhat to type next:")
    for what, command in next_commands(options.out):
        work.say(f"  # {what}\n  {command}")
    return page


class _Work:
    """One quickstart in its folder; every part is skipped when the folder already holds it."""

    def __init__(self, options: Options, screen: Console, progress: Console) -> None:
        self.options, self.out = options, options.out
        self._screen, self._progress = screen, progress
        self._state = _begin(options)

    @property
    def seconds(self) -> dict[str, float]:
        """What each part took, interrupted attempts included."""
        taken: dict[str, float] = self._state["seconds"]
        return taken

    def say(self, text: str) -> None:
        """A line on the screen, as it is."""
        self._screen.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            taken = self.seconds.get(part, 0.0) + time.monotonic() - began
            self.seconds[part] = round(taken, 1)
            _write_json(self.out / STATE, self._state)

    def two_dogs(self, when: str, llm: str, title: str) -> story.Story:
        """The two dogs as `llm` remembers them, played or read again."""
        kept = self.out / f"story-{when}.json"
        if not kept.is_file():
            with self._timed(f"two dogs {when}"):
                story.save(story.play(llm, self.out / f"{when}.db"), kept)
        told = story.load(kept)
        self.say(f"\n{title} ({llm}, {self.out / when}.db)")
        for line in story.lines(told):
            self.say(line)
        return told

    def train(self, kind: str) -> None:
        """One stage: begun, gone on with, or already finished."""
        from memory_r1.train import checkpoint
        from memory_r1.train.learn import learn

        folder, title, run = self.out / kind, STAGES[kind], run_of(kind, self.options)
        finished = (folder / ROLES_FILE).is_file()
        if not finished:
            resume = any((folder / checkpoint.FOLDER).glob("step-*"))
            if not resume:  # nothing to keep of a run that never reached a checkpoint
                shutil.rmtree(folder, ignore_errors=True)
            past = read_metrics(folder / "metrics.jsonl")
            view = StageView(title, run.steps.total, self._progress, past)
            # The run log has a progress bar of its own, which would write over the view.
            quiet = Console(file=io.StringIO())
            with self._timed(kind), view:
                learn(run, folder, resume=resume, command=sys.argv, watch=view, console=quiet)
        rows = read_metrics(folder / "metrics.jsonl")
        first, last = (_held_out(rows[i]) for i in (0, -1))
        self.say(
            f"  {title}: {run.steps.total} steps, {duration(self.seconds.get(kind, 0.0))}; "
            f"reward on held-out episodes {first:.3f} -> {last:.3f}; kept in {folder}"
        )

    def test(self) -> list[measure.Measured]:
        """Every world played by every system; what is finished is only read."""
        short = self.options.short
        worlds = measure.write_worlds(self.out / "worlds", self.options.seed, short=short)
        systems = {
            "before": self.options.base,
            "stage1": str(self.out / "manager"),
            "both": str(self.out / "answer"),
        }
        found = []
        for world, data in worlds.items():
            folders = {name: self.out / "bench" / f"{world}-{name}" for name in systems}
            for name, system in systems.items():
                if (folders[name] / "scores.json").is_file():
                    continue
                with self._timed(f"test {world} {name}"), Watch(self._progress) as watch:
                    measure.evaluate(
                        data,
                        folders[name],
                        system,
                        limit=SHORT_QUESTIONS if short else None,
                        # Stage 2 changes the Answer Agent only: the banks are those of stage 1.
                        banks_of=folders["stage1"] if name == "both" else None,
                        progress=watch,
                    )
            found.append(measure.compare(world, [folders[name] for name in measure.SYSTEMS]))
        return found

    def result(
        self, before: story.Story, after: story.Story, measured: list[measure.Measured]
    ) -> report.Result:
        """Everything the report tells."""
        stages = [
            report.Stage(
                title,
                read_metrics(self.out / kind / "metrics.jsonl"),
                (self.out / kind / "config.toml").read_text("utf-8"),
            )
            for kind, title in STAGES.items()
        ]
        about = json.loads((self.out / "manager" / "run.json").read_text("utf-8"))
        return report.Result(
            self._state["asked"], before, after, stages, measured, about, self.seconds
        )


def _held_out(row: Mapping[str, Any]) -> float:
    return float(row.get("eval_reward_mean") or 0.0)


def _begin(options: Options) -> dict[str, Any]:
    """The state of the folder: a new one, or that of the same quickstart."""
    out = options.out
    asked = {
        "algo": options.algo,
        "seed": options.seed,
        "short": options.short,
        "base": fingerprint(options.base),
        "version": memory_r1.__version__,
    }
    if (out / STATE).is_file():
        state: dict[str, Any] = json.loads((out / STATE).read_text("utf-8"))
        for name, value in asked.items():
            if state["asked"].get(name) != value:
                raise ConfigError(
                    f"{out} holds a quickstart with {name} = {state['asked'].get(name)!r}, not "
                    f"{value!r}; choose another --out, or delete it"
                )
        return state
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} holds something that is no quickstart; choose another --out, or delete it"
        )
    try:
        (out / "bench").mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    state = {"asked": asked, "seconds": {}}
    _write_json(out / STATE, state)
    return state


def _write_json(path: Path, value: object) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    draft.replace(path)


def run_files() -> Path:
    """The folder of our run files: inside an installed package, at the top of a checkout."""
    package = Path(str(files("memory_r1")))
    installed = package / "runs"
    return installed if installed.is_dir() else package.parent / "runs"


def run_of(kind: str, options: Options) -> Run:
    """The run file of a stage with what the command changes in it.

    Seed 0 is the run file as it stands, apart from the manager that stage 2 works with.
    """
    run = load_run(run_files() / f"tiny_{kind}_{options.algo}.toml")
    assert run.world is not None  # both files are about worlds
    world = replace(run.world, seed=run.world.seed + 10 * options.seed)
    run = replace(
        run,
        seed=options.seed,
        model=options.base,
        manager=str(options.out / "manager") if kind == "answer" else None,
        world=world,
    )
    if not options.short:
        return run
    return replace(
        run,
        world=replace(world, dialogues=2, sessions=2, dials=measure.SHORT_DIALS),
        rollout=replace(run.rollout, prompts=4, group_size=min(4, run.rollout.group_size)),
        steps=replace(run.steps, total=SHORT_STEPS, checkpoint_every=1, samples_every=1),
        eval=replace(run.eval, every=0, questions=SHORT_QUESTIONS),
    )


def next_commands(out: Path) -> list[tuple[str, str]]:
    """What a reader may want to do with the pair, as (what, command)."""
    pair = out / "answer"
    memory = f"--store {out / 'after.db'} --user {story.USER} --llm {pair}"
    commands = [
        (
            "tell the trained pair more, and ask it",
            f'memory-r1 add "I got a new parrot, the name is Echo." --speaker Judith {memory}\n'
            f'  memory-r1 ask "What is the name of Judith\'s parrot?" {memory}',
        ),
        (
            "LoCoMo without any model, the baseline to beat (locomo10.json: see README)",
            f"memory-r1 bench locomo --data locomo10.json --out {out / 'locomo-rules'}",
        ),
        (
            "LoCoMo with the trained pair: a model that knows its own small world only",
            f"memory-r1 bench locomo --data locomo10.json --system {pair} "
            f"--out {out / 'locomo-tiny'}",
        ),
    ]
    # Offered only where a run file for it is there.
    if real := sorted(run_files().glob("locomo_manager_*.toml")):
        what = "train a large model on LoCoMo (a GPU)"
        commands.append((what, f"memory-r1 train {real[0]} --out {out / real[0].stem}"))
    return commands

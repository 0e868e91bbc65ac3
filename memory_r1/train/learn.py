"""A run file, played: `memory-r1 train RUNFILE --out DIR`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from memory_r1.errors import ConfigError, ModelUnavailable
from memory_r1.train import checkpoint
from memory_r1.train.card import write_card
from memory_r1.train.players import GaveUp
from memory_r1.train.processes import present
from memory_r1.train.remote import RemoteSampler
from memory_r1.train.rollout import Rollout
from memory_r1.train.runfile import Run
from memory_r1.train.runlog import NoLog, RunLog
from memory_r1.train.stage import MODEL, Stage, prepare, samples

if TYPE_CHECKING:
    from rich.console import Console

    from memory_r1.train.logo_stage import LogoStage

Watch = Callable[[int, Mapping[str, float]], None]
"""Called after every step with its number and metrics."""


class Algorithm(Protocol):
    """GRPO or PPO: one optimizer step at a time, and what it takes to continue."""

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Do step `number` (from 0); returns its metrics and what was played."""
        ...

    def state(self) -> dict[str, Any]:
        """State dicts for a checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        ...


@dataclass(frozen=True)
class Learned:
    """What a run came to."""

    out: Path
    before: Mapping[str, float]
    """Held-out metrics before the first step."""
    after: Mapping[str, float]


def learn(
    run: Run,
    out: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Watch = lambda step, metrics: None,
    console: Console | None = None,
) -> Learned | None:
    """Train what the run says and leave a run folder.

    watch: called after every step. console: where progress is shown, stderr by default; a caller
    that shows its own passes a quiet one. Of several processes (`processes.joined`) all call this,
    the first one writes and shows, and each must see `out`.

    With `resume` it goes on from the latest checkpoint in `out`: the same weights result as if it
    had never stopped, bit for bit on a CPU with one thread. Raises ConfigError, DataError,
    ModelUnavailable.
    """
    if run.stages is not None:
        from memory_r1.train.alternate import alternate

        return alternate(run, out, resume=resume, command=command, watch=watch, console=console)
    processes = present()
    if processes.number > 1 and (run.gives_lessons or run.engine == "verl"):
        raise ConfigError(
            f"{processes.number} processes were started; expected one for a tiny model's lessons "
            "and for engine 'verl', which starts its own"
        )
    if run.gives_lessons:
        from memory_r1.train.sft import teach

        teach(run, out, resume=resume, command=command, watch=watch)
        return None
    if run.engine == "verl":
        from memory_r1.train.verl.launch import launch

        launch(run, out, resume=resume, console=console)
        return None
    saved = processes.tell(checkpoint.latest(out / checkpoint.FOLDER) if resume else None)
    if resume and not (out / "config.toml").is_file():
        raise ConfigError(f"{out} holds no run to resume; start it without --resume")
    loaded = checkpoint.load(saved) if saved else None
    first = loaded.step if loaded else 0
    with ExitStack() as held:
        resumed = first if resume else None
        log: RunLog | NoLog = NoLog()
        if processes.first:
            log = held.enter_context(RunLog(out, run, command, resume=resumed, console=console))
        stage = _stage(run, log.say)
        log.say(f"{len(stage.practice)} episodes to practise on, {len(stage.held_out)} held out")
        if run.sampler is not None:
            stage.sampler = held.enter_context(
                RemoteSampler(stage.policy, run.sampler, out / "sampler", log.say)
            )
        if processes.number > 1:
            spread = "spread over them" if stage.policy.sharded else "in each of them"
            log.say(f"{processes.number} processes, the weights {spread}")
        algorithm = _algorithm(stage, out, log.say)
        if loaded is not None:
            algorithm.restore(dict(loaded.states))
            before = dict(loaded.extra["before"])
        else:
            before = stage.evaluate()
            log.log(0, before)
            watch(0, before)
        after = before if first < run.steps.total else stage.evaluate()

        def keep(done: int) -> None:
            states = algorithm.state()
            if processes.first:
                checkpoint.save(
                    out / checkpoint.FOLDER,
                    done,
                    states=states,
                    write_model=partial(stage.policy.save, state=states["model"]),
                    extra={"before": before},
                )

        for number in range(first, run.steps.total):
            try:
                metrics, played = algorithm.step(number)
            except (GaveUp, ModelUnavailable):
                # It came before anything of this step was learned.
                if number > first and processes.number == 1:
                    keep(number)
                raise
            metrics |= stage.sampler.noted if stage.sampler else {}
            done = number + 1
            if done == run.steps.total or (run.eval.every and done % run.eval.every == 0):
                after = stage.evaluate()
                metrics |= after
            log.log(done, metrics)
            if processes.first and (done % run.steps.samples_every == 0 or done == 1):
                log.samples(done, samples(played))
            watch(done, metrics)
            if done == run.steps.total or done % run.steps.checkpoint_every == 0:
                keep(done)
        again = "The last checkpoint is whole; make room, then go on with --resume"
        with checkpoint.written(f"the trained model in {out}", again):
            stage.save(out)
        if processes.first:
            write_card(out / MODEL, run, before, after)
    return Learned(out, before, after)


def _stage(run: Run, say: Callable[[str], None]) -> Stage | LogoStage:
    if run.algorithm == "logo":
        from memory_r1.train import logo_stage

        return logo_stage.prepare(run, say)
    return prepare(run, say)


def _algorithm(stage: Stage | LogoStage, out: Path, say: Callable[[str], None]) -> Algorithm:
    if not isinstance(stage, Stage):
        from memory_r1.train.logo import Logo

        return Logo(stage)
    if stage.run.teacher is not None:
        from memory_r1.train import imitate

        played = imitate.collect(stage, out / imitate.FILE, say)
        keep = stage.run.teacher.keep
        rows = imitate.rows_from(played, stage.policy.llm, keep=keep)
        say(f"{len(rows)} completions to imitate, of {len(played)} episodes ({keep})")
        return imitate.Imitation(stage, rows)
    if stage.run.algorithm == "ppo":
        from memory_r1.train.ppo import Ppo

        return Ppo(stage)
    from memory_r1.train.grpo import Grpo

    return Grpo(stage)

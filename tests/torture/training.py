"""Training killed at any moment and resumed: it ends as if nothing had been, to the last bit.

Each life is the real `memory-r1 train`, in a process forked from one that has loaded torch.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from torture.made import Figures

_WORLD: Final = """\
[world]
seed = 1
dialogues = 2
dials = {friends = 0, absent = 1, chat = 0.2, weights = {accumulate = 4.0, retract = 3.0}}
"""
_REST: Final = """
[optimizer]
lr = 1e-3
[steps]
total = 4
checkpoint_every = 1
micro_batch_tokens = 2048
[eval]
every = 2
questions = 4
"""
_ROLLOUT: Final = "[rollout]\nprompts = 3\ngroup_size = 4\nmax_tokens = 40\nquestions = 2\n"
_HEAD: Final = 'model = "tiny-base"\nseed = 3\n'
RUNS: Final[Mapping[str, str]] = {
    "manager, GRPO": f'kind = "manager"\n{_HEAD}{_WORLD}{_ROLLOUT}'
    f"[grpo]\nkl = 0.01\nminibatches = 2{_REST}",
    "manager, PPO": f'kind = "manager"\nalgorithm = "ppo"\n{_HEAD}{_WORLD}{_ROLLOUT}'
    f"[ppo]\nkl = 0.01\ncritic_lr = 1e-3\nminibatches = 2{_REST}",
    "answer, GRPO": f'kind = "answer"\n{_HEAD}{_WORLD}'
    f"[rollout]\nprompts = 6\ngroup_size = 4\nmax_tokens = 40\ntemperature = 1.6\n"
    f"[grpo]\nkl = 0.01{_REST}",
    "manager, LoGo": f'kind = "manager"\nalgorithm = "logo"\n{_HEAD}{_WORLD}'
    "sessions = 2\n"
    "[rollout]\nprompts = 1\ngroup_size = 4\nmax_tokens = 40\n"
    f"[logo]\nlocal_questions = 2\n[grpo]\nkl = 0.0{_REST}",
}
"""Run files that end in seconds, each with steps that move the weights."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("torch", "transformers", "memory_r1.serve.cli", "memory_r1.train.learn"),
        *("memory_r1.train.grpo", "memory_r1.train.ppo", "memory_r1.train.logo", "peft"),
        *("memory_r1.llm.local", "matplotlib.pyplot"),
    ]
)
Prepare = Callable[[], None]
"""What is done in the process before the command: it arranges for what shall go wrong."""


@dataclass(frozen=True)
class Ended:
    """How a life ended."""

    code: int
    """Its exit status; -9 when it was killed."""
    said: str
    """Its stdout and stderr."""


def train(
    run: str, out: Path, *changes: str, prepare: Prepare | None = None, after: float | None = None
) -> Ended:
    """`memory-r1 train` to its end, or killed after so many seconds; resumed where it began.

    run: the text of a run file. changes: further arguments.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    file, said = out.with_suffix(".toml"), out.with_suffix(".txt")
    file.write_text(run, "utf-8")
    arguments = ["train", str(file), *changes, "--out", str(out)]
    if (out / "config.toml").exists():
        arguments.append("--resume")
    process = _CONTEXT.Process(target=_live, args=(arguments, str(said), prepare))
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return Ended(-9 if code is None else code, said.read_text("utf-8") if said.exists() else "")


def _live(arguments: Sequence[str], said: str, prepare: Prepare | None) -> None:
    import torch

    from memory_r1.serve import cli

    torch.set_num_threads(1)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if prepare is not None:
        prepare()
    sys.argv = ["memory-r1", *arguments]
    cli.main()


def die_at(call: str, count: int) -> None:
    """SIGKILL itself at the so many-th call: "fsync", of checkpoints; or "replace", of a name."""
    calls = iter(range(1, count))
    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[call]
    true = getattr(owner, name)

    def counted(*arguments: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(*arguments)

    setattr(owner, name, counted)


def kill_training(name: str, kills: int, seed: int, whole: Path | None = None) -> Figures:
    """Run `name`, killed so often and resumed, against the same run left alone.

    Half of the kills come at any time, half while files are being written. whole: a folder where
    the run that is left alone is kept, for callers that come again.
    """
    rng, figures = random.Random(f"{seed}/{name}"), Figures()
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    whole = whole or root / "whole"
    began = time.perf_counter()
    ended = train(RUNS[name], whole)
    lasts = time.perf_counter() - began
    if ended.code:
        figures.wrong.append(f"the run that is left alone ended with {ended.code}: {ended.said}")
        return figures
    if sum("grad_norm" in row for row in told(whole)) < 2:
        figures.wrong.append("the run that is left alone learned nothing: nothing can be compared")
    killed, trained = 0, 0
    out = root / "run 0"
    while killed < kills or out.exists():
        prepare, after = None, None
        if killed < kills:
            if rng.random() < 0.5:
                after = rng.uniform(0.1, 0.8) * lasts
            else:
                call = rng.choice(("fsync", "fsync", "replace"))
                prepare = partial(die_at, call, rng.randrange(1, 12))
        ended = train(RUNS[name], out, prepare=prepare, after=after)
        if ended.code == -9:
            killed += 1
            figures.add(kills=1, while_writing=int(prepare is not None))
            figures.wrong += unsound(out)
        elif ended.code:
            figures.wrong.append(f"resumed, it ended with {ended.code}: {ended.said[-600:]}")
            return figures
        else:
            figures.wrong += differences(whole, out)
            trained += 1
            figures.add(runs=1, different_weights=int(not _same_model(whole, out)))
            out = root / f"run {trained}"
    return figures


def unsound(out: Path) -> list[str]:
    """What is wrong with a run folder after a kill: whatever is there by name must be whole."""
    from memory_r1.errors import MemoryR1Error
    from memory_r1.train import checkpoint
    from memory_r1.train.curves import read_metrics
    from memory_r1.train.runfile import load_run

    wrong = []
    try:
        if (latest := checkpoint.latest(out / checkpoint.FOLDER)) is not None:
            checkpoint.load(latest)
        if (out / "config.toml").exists():
            load_run(out / "config.toml")
            json.loads((out / "run.json").read_text("utf-8"))
        read_metrics(out / "metrics.jsonl")
    except (MemoryR1Error, OSError, ValueError) as error:
        wrong.append(f"after a kill: {type(error).__name__}: {error}")
    return wrong


def differences(one: Path, other: Path) -> list[str]:
    """Where two ended runs are not the same, the time they took apart."""
    wrong = [] if _same_model(one, other) else ["the final weights differ"]
    if not _same_states(one, other):
        wrong.append("the states of the last checkpoint differ")
    rows = [told(out) for out in (one, other)]
    wrong += [f"metrics differ: {a} and {b}" for a, b in zip(*rows, strict=False) if a != b]
    if len(rows[0]) != len(rows[1]):
        wrong.append(f"{len(rows[0])} and {len(rows[1])} rows of metrics")
    samples = [(out / "samples.jsonl").read_text("utf-8") for out in (one, other)]
    return wrong + (["samples differ"] if samples[0] != samples[1] else [])


def told(out: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times."""
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("seconds", "tokens_per"))}
        for line in lines
    ]


def _same_model(one: Path, other: Path) -> bool:
    found = [(out / "model" / "model.safetensors").read_bytes() for out in (one, other)]
    return found[0] == found[1]


def _same_states(one: Path, other: Path) -> bool:
    from memory_r1.train import checkpoint

    last = [checkpoint.latest(out / checkpoint.FOLDER) for out in (one, other)]
    if last[0] is None or last[1] is None:
        return False
    loaded = [checkpoint.load(path) for path in last if path is not None]
    return _same(loaded[0].states, loaded[1].states) and loaded[0].step == loaded[1].step


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)

"""Training poisoned, starved and without room: it stops or waits, says why, and goes on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from model_server import Server, completion

from torture.made import Figures
from torture.training import RUNS, Ended, differences, kill_training, told, train, unsound

# --- a gradient that is no number


def poison(what: str, call: int) -> None:
    """At the so many-th update: "gradient", one number of it is NaN; "loss", it is infinite."""
    import torch

    from memory_r1.train.policy import Policy

    calls = iter(range(1, call))
    clip, score = torch.nn.utils.clip_grad_norm_, Policy.score

    def clipped(parameters: Any, *arguments: Any) -> Any:
        parameters = list(parameters)
        if next(calls, None) is None:
            next(p for p in parameters if p.grad is not None).grad.view(-1)[0] = float("nan")
        return clip(parameters, *arguments)

    def scored(self: Any, *arguments: Any) -> Any:
        found = score(self, *arguments)
        if next(calls, None) is None:
            return found._replace(logp=found.logp * float("inf"))
        return found

    if what == "gradient":
        torch.nn.utils.clip_grad_norm_ = clipped
    else:
        Policy.score = scored  # type: ignore[method-assign, assignment]


def poison_training(name: str, whole: Path, seed: int) -> Figures:
    """Each poison once, at a random update: it stops, says why, and goes on from what is whole."""
    figures, rng = Figures(), random.Random(f"{seed}/{name}")
    for what in ("gradient", "loss"):
        out = Path(tempfile.mkdtemp(prefix="torture-")) / "run"
        ended = train(RUNS[name], out, prepare=partial(poison, what, rng.randrange(1, 3)))
        if ended.code == 0:  # it had fewer updates than that
            figures.wrong.append(f"{what}: the poison was never taken")
            continue
        figures.add(poisoned=1)
        _stopped(ended, "the gradient became", out, figures)
        ended = train(RUNS[name], out)
        figures.wrong += differences(whole, out) if ended.code == 0 else [ended.said]
        figures.add(went_on=1)
    return figures


def _stopped(ended: Ended, why: str, out: Path, figures: Figures) -> None:
    """It ended by itself with one sentence that says why, and what it left is whole."""
    if ended.code != 1 or why not in ended.said or "Traceback" in ended.said:
        figures.wrong.append(f"ended with {ended.code}, not with {why!r}: {ended.said[-600:]}")
    if "--resume" not in ended.said:
        figures.wrong.append(f"it doesn't say how to go on: {ended.said[-600:]}")
    figures.wrong += unsound(out)


# --- a judge that goes away


class Judge:
    """A judge over HTTP, on one port for good, that leaves after so many verdicts."""

    def __init__(self) -> None:
        self._server = Server()
        self._server.respond = self._verdict
        self._leaves_after: int | None = None
        self.url = self._server.url
        self.asked = 0

    def _verdict(self, body: Any) -> tuple[int, Any]:
        self.asked += 1
        if self._leaves_after is not None:
            self._leaves_after -= 1
            if self._leaves_after < 0:
                threading.Thread(target=self.leave).start()
                return 503, {"error": "going down"}
        shown = body["messages"][-1]["content"]
        said = shown.rpartition("Answer to grade: ")[2]
        right = f"Gold answer: {said}" in shown
        return 200, completion(
            json.dumps({"reason": "", "verdict": "CORRECT" if right else "WRONG"})
        )

    def leave(self) -> None:
        """Nobody listens at the port any more."""
        if self._leaves_after is not None:
            self._leaves_after = None
            self._server.close()

    def leave_after(self, verdicts: int) -> None:
        """From the next one on, nothing but 503, and soon nobody."""
        self._leaves_after = verdicts

    def come_back(self) -> None:
        """On the same port."""
        old = self._server.http
        self._server.http = ThreadingHTTPServer(old.server_address, old.RequestHandlerClass)
        serve = partial(self._server.http.serve_forever, 0.01)
        self._server.thread = threading.Thread(target=serve)
        self._server.thread.start()

    def close(self) -> None:
        """For good."""
        self._server.close()


def waiting(cache: str, pauses: tuple[float, ...]) -> None:
    """Verdicts are kept in a folder of the run's own; how long an absent judge is waited for."""
    from memory_r1.train import players

    os.environ["MEMORY_R1_CACHE"] = cache
    players.PAUSES = pauses  # type: ignore[misc]


def starve_training(name: str, seed: int) -> Figures:
    """The judge leaves in the middle of a run: once it comes back in time, once it doesn't.

    Both runs must come to what a run comes to whose judge stays, to the last bit: no update can
    have used a reward that nobody gave.
    """
    figures, judge = Figures(), Judge()
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    run = f'{RUNS[name]}[reward]\nname = "judge"\njudge = "{judge.url}#judge"\n'

    def lives(out: str, *pauses: float) -> Ended:
        return train(run, root / out, prepare=partial(waiting, str(root / f"{out}-cache"), pauses))

    try:
        ended = lives("whole")
        needed = judge.asked
        if ended.code or needed < 8:
            figures.wrong.append(
                f"it ended with {ended.code} after {needed} verdicts: {ended.said}"
            )
            return figures
        rng = random.Random(f"{seed}/{name}")
        judge.leave_after(rng.randrange(needed // 4, needed // 2))
        back = threading.Thread(target=_return_when_gone, args=(judge,), daemon=True)
        back.start()
        ended = lives("pausing", *[1.0] * 100)
        back.join(60)
        if ended.code or "paused: " not in ended.said:
            figures.wrong.append(f"it did not pause and go on: {ended.code}: {ended.said[-600:]}")
        else:
            figures.wrong += differences(root / "whole", root / "pausing")
        figures.add(outages=1, waited_out=1)
        judge.leave_after(rng.randrange(needed // 2, needed - 2))
        ended = lives("stopping", 0.1)
        figures.add(outages=1, stopped=1)
        _stopped(ended, "did not reply", root / "stopping", figures)
        judge.come_back()
        ended = lives("stopping")
        if ended.code:
            figures.wrong.append(f"resumed, it ended with {ended.code}: {ended.said[-600:]}")
        else:
            figures.wrong += differences(root / "whole", root / "stopping")
        kept = [row for out in ("pausing", "stopping") for row in told(root / out)]
        made_up = sum(int(row.get("infra_failures", 0)) for row in kept)
        figures.add(steps=len(kept), rewards_missing=made_up)
    finally:
        judge.close()
    return figures


def _return_when_gone(judge: Judge) -> None:
    while judge._leaves_after is not None:
        time.sleep(0.1)
    time.sleep(10)
    judge.come_back()


# --- a full disk


def fill_disk_at(save: int) -> None:
    """Where nothing can be mounted: from this checkpoint on, files end at one megabyte."""
    import resource

    import torch

    saves, true = iter(range(1, save)), torch.save

    def counted(*arguments: Any) -> Any:
        if next(saves, None) is None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        return true(*arguments)

    torch.save = counted


def fill_disk(name: str, whole: Path) -> Figures:
    """A checkpoint no longer fits: the one before it stays whole, and is gone on from."""
    figures, root = Figures(), Path(tempfile.mkdtemp(prefix="torture-"))
    first = sum(f.stat().st_size for f in (whole / "checkpoints").rglob("*") if f.is_file()) / 2
    disk, out = root / "disk", root / "disk" / "run"
    disk.mkdir()
    real = _mount("-t", "tmpfs", "-o", f"size={int(first * 1.6)}", "tmpfs", str(disk))
    try:
        ended = train(RUNS[name], out, prepare=None if real else partial(fill_disk_at, 2))
        figures.add(full_disks=1, of_them_real=int(real))
        _stopped(ended, "could not be written", out, figures)
        kept = sorted(path.name for path in (out / "checkpoints").iterdir())
        if not kept or any(not re.fullmatch(r"step-\d+", name) for name in kept):
            figures.wrong.append(f"{kept} is left, not whole checkpoints alone")
        if kept and kept[-1] not in ended.said:
            figures.wrong.append(f"it doesn't say that {kept[-1]} is whole: {ended.said[-600:]}")
        if real:
            _mount("-o", f"remount,size={int(first * 9)}", str(disk))
        ended = train(RUNS[name], out)
        figures.wrong += differences(whole, out) if ended.code == 0 else [ended.said]
        figures.add(went_on=1)
    finally:
        if real:
            subprocess.run(["umount", str(disk)], check=False)
    return figures


def _mount(*arguments: str) -> bool:
    """Whether it could be mounted; that takes rights which not everybody has."""
    try:
        return (
            subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def torment(names: Sequence[str], kills: int, seed: int) -> dict[str, Figures]:
    """All of it, for each of these runs; a run that is left alone is made once."""
    found: dict[str, Figures] = {}
    for name in names:
        whole = Path(tempfile.mkdtemp(prefix="torture-")) / "whole"
        found[f"{name}, killed"] = kill_training(name, kills, seed, whole)
        found[f"{name}, infinite or no number"] = poison_training(name, whole, seed)
        found[f"{name}, judge away"] = starve_training(name, seed)
        found[f"{name}, disk full"] = fill_disk(name, whole)
    return found

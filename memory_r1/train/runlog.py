"""what a training run does -> a run folder that explains itself, and progress on the screen.

config.toml    every setting, as the run used it
run.json       seed, command, code and library versions, machine, start and end, alarms
metrics.jsonl  one JSON object per step; shares are 0..1, times seconds, a number that is not
               finite is null
samples.jsonl  episodes written out, and samples.md, the same for reading
curves.png     drawn from metrics.jsonl when the run ends

With [watch] in the run file the metrics also go to TensorBoard and Weights & Biases.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from memory_r1 import __version__
from memory_r1.errors import ConfigError, MemoryR1Error, MissingExtra
from memory_r1.train.configfile import flat
from memory_r1.train.curves import plot_curves, read_metrics
from memory_r1.train.observe import Alarms
from memory_r1.train.runfile import Run, dump, load_run
from memory_r1.train.samples import Sample, as_markdown
from memory_r1.train.sinks import Sinks, check

__all__ = ["METRICS", "RunLog", "Sample", "describe", "print_table"]

METRICS = {
    "step": "steps done; 0 is before the first",
    "loss": "what the optimizer lowered",
    "tokens": "warm start: tokens read so far, shared prompts once",
    "new/<role>, unseen/<role>": "warm start, as eval_: share of replies exactly right, by role "
    "and then by what is hard, on words like those of training and on unseen ones",
    "reward_mean": "mean reward of the step's rollouts",
    "reward_std": "its standard deviation",
    "em": "share of questions answered with exactly an accepted answer",
    "f1": "mean token F1 of the answers",
    "format_valid": "share of completions that followed their grammar",
    "frac_zero_std": "share of groups whose rollouts all got one reward",
    "groups": "groups played in the step, those drawn in place of tied ones (rollout.resample) too",
    "op_add, op_update, op_delete, op_noop": "shares of the operations decided",
    "evidence_kept": "share of the turns that the linked questions rest on, of those the bank "
    "could hold, that are still a source of one of its entries after the decision",
    "unsupported_text": "share of the words of written entries that neither the turn and its facts "
    "nor an entry they changed or deleted holds",
    "entry_words": "words of a written entry",
    "response_length_mean, response_length_max": "tokens of a completion",
    "response_length_clip_ratio": "share of completions cut off at the limit",
    "entropy": "of the policy, nats per token",
    "kl": "to the reference, nats per token",
    "approx_kl": "to the policy that sampled, nats per token",
    "clip_fraction": "share of tokens the clip stopped",
    "logp_difference": "largest |sampled - recomputed| log-prob before the update; ~0 is right",
    "sampler_difference": "of a [sampler]: mean |sampled - recomputed| log-prob, nats per token",
    "grad_norm": "before clipping",
    "lr": "learning rate",
    "value_loss": "of the critic",
    "explained_variance": "of the critic: 1 foresees the returns, 0 no better than their mean",
    "seconds_<phase>": "time spent: sample, reward, update, eval, publish (weights to a sampler)",
    "tokens_per_second": "completion tokens over the whole step's time",
    "rows": "completions the update of LoGo-GRPO learned from",
    "rows_local": "share of them from redone sessions",
    "advantage_local": "share of all |advantage| that they carry",
    "rows_cancelled": "share of completions left out because copies of them cancel out",
    "frac_zero_std_local": "share of groups of redone sessions that all got one reward",
    "rerollout_distinct": "share of rerollouts that differ from their group's first; 0: all are "
    "copies, which carry no signal",
    "utility": "what redone sessions were worth: their score less that of leaving them out",
    "bank_words, bank_entries": "size of the banks at the end of the dialogues",
    "bank_share": "words of those banks per word said",
    "penalty": "mean punishment of their size",
    "sessions": "sessions per dialogue at this stage of the curriculum",
    "sampled_tokens": "completion tokens sampled since the run began",
    "infra_failures": "rollouts dropped because a model could not be reached, or the judge gave no "
    "verdict",
    "sampler_dropped": "of them: those that the sampler failed, their whole groups included",
    "cache_hits": "share of frozen answers that were known already",
    "eval_<metric>": "the same, on held-out dialogues, greedy",
}
"""What the columns of metrics.jsonl mean."""

MAY_CHANGE = ("steps.", "eval.every", "watch.", "sampler.", "processes.")
"""Settings a resumed run may change: how long it is, what is measured and where it is shown,
sampled and computed; not what is learned."""
MAY_BE_MENDED = ("optimizer.lr", "optimizer.grad_clip", "ppo.critic_lr")
"""Those too, since a run whose gradient became infinite could not go on otherwise; run.json tells
what was changed at which step."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PLAIN_SECONDS = 10.0
"""Between progress lines where there is no terminal to draw a bar on."""


class RunLog:
    """Writes a run folder while the run lasts; a context manager.

    out_dir:  the run folder; raises ConfigError when it holds something and is not resumed, and
              MissingExtra when a sink of [watch] is not installed
    command:  the command line, as in sys.argv
    resume:   the step of the checkpoint that is continued (0: from the start): what was logged
              after it is dropped. Raises ConfigError when there is no run or another one.
    """

    def __init__(
        self,
        out_dir: str | Path,
        run: Run,
        command: Sequence[str],
        *,
        resume: int | None = None,
        console: Console | None = None,
    ) -> None:
        check(run.watch)
        self.folder = Path(out_dir)
        self._run = run
        self._alarms = Alarms()
        if resume is None:
            self._begin(command)
        else:
            self._continue(command, resume)
        self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._progress = _Progress(resume or 0, run.steps.total, console)
        self._sinks = Sinks(run, self.folder, resume or 0, self.say)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        try:
            self._metrics.close()
            self._sinks.close()
            about = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            about["ended"] = _now()
            about["outcome"] = (
                "finished" if kind is None else f"stopped by {kind.__name__}: {error}"
            )
            _write(self.folder / "run.json", _json(about))
            plot_curves(self.folder)
        except MissingExtra as missing:
            self.say(str(missing))
        except OSError as problem:
            if error is None:
                error = problem
        if isinstance(error, OSError) and error.errno in _FULL:
            raise MemoryR1Error(
                f"the run folder {self.folder} could not be written ({error}). What was written is "
                "whole; make room, then go on with --resume"
            ) from error
        if kind is None and error is not None:
            raise error

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one step's row (names: METRICS), move the progress on, raise alarms."""
        row = {"step": step, **{name: _number(value) for name, value in metrics.items()}}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        self._progress.update(step, row)
        self._sinks.log(step, row)
        if alarms := self._alarms.hear(step, row):
            for alarm in alarms:
                self.say(f"warning: step {step}: {alarm.kind}: {alarm.text}")
            about = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            about["alarms"] = [*about.get("alarms", []), *(asdict(alarm) for alarm in alarms)]
            _write(self.folder / "run.json", _json(about))

    def samples(self, step: int, samples: Iterable[Sample]) -> None:
        """Keep rollouts for reading."""
        rows = [{"step": step, **asdict(sample)} for sample in samples]
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (self.folder / "samples.md").open("a", encoding="utf-8") as file:
            file.writelines(as_markdown(row) for row in rows)

    def say(self, text: str) -> None:
        """A line on stderr that does not break the progress bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def _begin(self, command: Sequence[str]) -> None:
        if self.folder.exists() and (not self.folder.is_dir() or not _unused(self.folder)):
            raise ConfigError(
                f"{self.folder} is not empty; continue the run in it with --resume, "
                "or choose another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        # The configuration comes last: where it lies, there is a run to resume.
        _write(self.folder / "run.json", _json(describe(self._run, command)))
        _write(self.folder / "config.toml", dump(self._run))

    def _continue(self, command: Sequence[str], step: int) -> None:
        config = self.folder / "config.toml"
        if not config.is_file():
            raise ConfigError(f"{self.folder} holds no run to resume; start it without --resume")
        before, now = flat(load_run(config)), flat(self._run)
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        for name in changed:
            if not name.startswith(MAY_CHANGE) and name not in MAY_BE_MENDED:
                raise ConfigError(
                    f"{self.folder} was started with {name} = {before.get(name)!r}, not "
                    f"{now.get(name)!r}; resume it unchanged, or start another folder"
                )
        _write(config, dump(self._run))
        about = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        mended = {n: [before[n], now[n]] for n in changed if n in MAY_BE_MENDED}
        again = {"from_step": step, **describe(self._run, command)}
        again |= {"changed": mended} if mended else {}
        about["resumed"] = [*about.get("resumed", []), again]
        if alarms := [alarm for alarm in about.pop("alarms", []) if alarm["step"] <= step]:
            about["alarms"] = alarms
        _write(self.folder / "run.json", _json(about))
        for name in ("metrics.jsonl", "samples.jsonl"):
            rows = [r for r in read_metrics(self.folder / name) if step and r["step"] <= step]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            _write(self.folder / name, "".join(lines))
            if name == "metrics.jsonl":
                for row in rows:
                    self._alarms.hear(row["step"], row)
        _write(self.folder / "samples.md", "".join(as_markdown(row) for row in rows))


class NoLog:
    """In place of a `RunLog`, in the processes of a run that leave writing to the first."""

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Nothing."""

    def samples(self, step: int, samples: Iterable[Sample]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def describe(run: Run, command: Sequence[str]) -> dict[str, Any]:
    """What a reader needs to repeat a run: seed, command, code, libraries, machine (unnamed)."""
    return {
        "started": _now(),
        "command": shlex.join([Path(command[0]).name, *command[1:]]) if command else "",
        "seed": run.seed,
        "memory_r1": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "libraries": _versions("torch", "transformers", "tokenizers", "peft", "numpy"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "gpus": _gpus(),
        },
    }


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    console: Console | None = None,
) -> None:
    """A table on stdout: names left, numbers right, fractions with three decimals."""
    table = Table(title=title, title_justify="left")
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows]
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in cells:
        table.add_row(*row)
    (console or Console()).print(table, markup=False)


class _Progress:
    """A bar on a terminal, else a line every few seconds; both with the time that is left."""

    def __init__(self, done: int, total: int, console: Console | None) -> None:
        self.console = console or Console(stderr=True)
        self._first, self._total = done, total
        self._started = time.monotonic()
        self._last_line = -math.inf
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[now]}", markup=False),
            console=self.console,
            refresh_per_second=2,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, now="")

    def start(self) -> None:
        self._started = time.monotonic()
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(step - self._first, 1) * (self._total - step)
        for name, called in (("reward_mean", "reward"), ("loss", "loss")):
            if row.get(name) is not None:
                now = f"{called} {row[name]:.3f}  {_duration(left)} left"
                break
        else:
            now = f"{_duration(left)} left"
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step, now=now)
        elif elapsed - self._last_line >= PLAIN_SECONDS or step == self._total:
            self._last_line = elapsed
            self.console.print(f"step {step}/{self._total}  {now}", highlight=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None) -> float | None:
    """A plain finite number: JSON has no NaN, and numpy's and torch's numbers are not JSON."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)


def _unused(folder: Path) -> bool:
    """Whether it holds nothing, or what a start leaves that is killed before its configuration."""
    left = ("run.json", "run.json.partial", "config.toml.partial")
    return all(path.name in left for path in folder.iterdir())


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """All of it or nothing: under a temporary name first."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the code that runs; None where it is not under version control."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # Installed inside somebody's own repository, the package is not a file of it.
    if not shutil.which("git") or git("ls-files", "--error-unmatch", here.name) is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', 'HEAD')}{' with local changes' if changed else ''}"


def _gpus() -> list[str]:
    """Names of the GPUs, asked of the driver because this module does without torch."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []

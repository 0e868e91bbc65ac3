"""metrics of a run -> TensorBoard and Weights & Biases, beside the run folder's own files.

A sink is asked for in the run file's [watch]. One that fails says so once and is left alone: the
training goes on, and metrics.jsonl has everything.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from memory_r1.errors import MissingExtra
from memory_r1.train.configfile import flat
from memory_r1.train.runfile import Run, Watch

_ORDINARY = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
"""What goes wrong on a full disk, without a network, or when a library changes."""


class Sink(Protocol):
    """Somewhere a run is shown."""

    name: str

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Show a step's finite numbers (names: runlog.METRICS)."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in the run folder's `tensorboard/`."""

    name = "TensorBoard"

    def __init__(self, folder: Path, step: int) -> None:
        """step: the last one that counts; what a resumed run had logged after it is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        open_writer: Any = SummaryWriter  # untyped
        self._writer = open_writer(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; with WANDB_MODE=offline it stays in the run folder's `wandb/`."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, step: int, project: str, run: Run) -> None:
        """project: its name, or entity/name. A resumed run goes on in the same page."""
        import wandb

        note = folder / "wandb" / "run_id.txt"
        note.parent.mkdir(exist_ok=True)
        if not note.exists():
            note.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        entity, _, name = project.rpartition("/")
        self._run: Any = wandb.init(
            entity=entity or None,
            project=name,
            name=folder.resolve().name,
            id=note.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=flat(run),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own step may not go back, as a resumed run's does: ours is the axis.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """One point per metric."""
        self._run.log({**row, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def check(watch: Watch) -> None:
    """MissingExtra for a sink whose package is not installed; before anything is written."""
    if watch.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("watch.tensorboard", "tensorboard", "watch")
    if watch.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise MissingExtra("watch.wandb", "wandb", "watch")


class Sinks:
    """All sinks of a run."""

    def __init__(self, run: Run, folder: Path, step: int, say: Callable[[str], None]) -> None:
        """step: the one a resumed run goes on after, else 0; say: shows a line to the user."""
        self._say = say
        self._open: list[Sink] = []
        self._failures: tuple[type[Exception], ...] = _ORDINARY
        if run.watch.tensorboard:
            self._try("TensorBoard", lambda: self._open.append(TensorBoard(folder, step)))
        if (project := run.watch.wandb) is not None:
            import wandb

            self._failures = (*_ORDINARY, wandb.Error)
            self._try(
                "Weights & Biases",
                lambda: self._open.append(WeightsAndBiases(folder, step, project, run)),
            )

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Show a row of metrics.jsonl everywhere."""
        numbers = {k: float(v) for k, v in row.items() if v is not None and k != "step"}
        self._open = [s for s in self._open if self._try(s.name, partial(s.log, step, numbers))]

    def close(self) -> None:
        """Close them all."""
        for sink in self._open:
            self._try(sink.name, sink.close)
        self._open = []

    def _try(self, name: str, do: Callable[[], None]) -> bool:
        """Whether it went well; if not, the user has been told."""
        try:
            do()
        except self._failures as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._say(
                f"warning: {name} failed ({why}); the training goes on without it, and "
                "metrics.jsonl has everything"
            )
            return False
        return True

"""state of a training run -> a folder that is whole or absent, and back, bit for bit."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from memory_r1.errors import DataError, MemoryR1Error

FOLDER = "checkpoints"
"""Where a run folder keeps its checkpoints."""
STATE_FILE = "state.pt"
_NAME = "step-{:08d}"
_PARTIAL = ".partial"
_REPLACED = ".replaced"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    path: Path
    """Its folder, where the model files are."""
    step: int
    """Steps done when it was made."""
    states: Mapping[str, Any]
    """State dicts by name, as they were given to `save`."""
    extra: Mapping[str, Any]
    rng: Mapping[str, Any]

    def restore_rng(self) -> None:
        """Set Python's, numpy's and torch's global generators to where they were."""
        version, internal, gauss = self.rng["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = self.rng["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(self.rng["torch"])
        if self.rng["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.rng["cuda"])


def save(
    directory: str | Path,
    step: int,
    *,
    states: Mapping[str, Any],
    write_model: Callable[[Path], object] | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write `directory/step-<step>` under a temporary name, rename it, drop all but the last few.

    A crash at any moment leaves the previous checkpoints as they were.

    states:       what `state_dict()` gave: model, optimizer, critic, schedule, by name
    write_model:  writes model files (save_pretrained, adapters) into the folder it is given
    extra:        plain values: sampler position, KL weight, curriculum stage
    keep:         how many checkpoints stay
    returns:      the folder. The states of the global random generators are in it as well.
    Raises MemoryR1Error when it can't be written, as on a full disk; what was written is removed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _clear(directory, _PARTIAL)
    _clear(directory, _REPLACED)
    final = directory / _NAME.format(step)
    partial = final.with_name(final.name + _PARTIAL)
    before = latest(directory)
    whole = f"{before.name}, before it, is whole" if before else "there is none before it"
    try:
        with written(f"the checkpoint {final}", f"{whole}; make room, then go on with --resume"):
            partial.mkdir()
            if write_model:
                write_model(partial)
            rest = {"states": dict(states), "extra": dict(extra or {}), "rng": _rng()}
            torch.save({"step": step, **rest}, partial / STATE_FILE)
            # On disk before the name says so: a power cut must not leave a whole name on half a
            # file.
            for file in (*partial.rglob("*"), partial):
                _sync(file)
    except MemoryR1Error:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():  # a resumed run came by the same step again
        final.rename(final.with_name(final.name + _REPLACED))
    partial.rename(final)
    _sync(directory)
    _clear(directory, _REPLACED)
    for old in _all(directory)[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def written(what: str, then: str) -> Iterator[None]:
    """Files are written within it: what keeps them from it is a MemoryR1Error, with what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own
        raise MemoryR1Error(
            f"{what} could not be written ({str(error).splitlines()[0]}). Is the disk full? {then}"
        ) from error


def latest(directory: str | Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    found = _all(Path(directory))
    return found[-1] if found else None


def load(path: str | Path, *, map_location: str = "cpu") -> Checkpoint:
    """Read a checkpoint folder; nothing in it can run code. Raises DataError if it is not one."""
    path = Path(path)
    try:
        state = torch.load(path / STATE_FILE, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} is not a whole checkpoint: {error}") from error
    rng = {**state["rng"], "torch": state["rng"]["torch"].cpu()}
    rng["cuda"] = [generator.cpu() for generator in rng["cuda"]]
    return Checkpoint(path, state["step"], state["states"], state["extra"], rng)


def _all(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first; of a step that was being replaced, the newer whole one."""
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if match := re.fullmatch(rf"(step-\d+)({re.escape(_REPLACED)})?", path.name):
            found.setdefault(match[1], path)
    return list(found.values())


def _clear(directory: Path, suffix: str) -> None:
    """Remove what a crash left, but not a replaced checkpoint whose successor never came."""
    for leftover in directory.glob(f"*{suffix}"):
        if suffix != _REPLACED or leftover.with_name(leftover.name.removesuffix(suffix)).exists():
            shutil.rmtree(leftover)


def _rng() -> dict[str, Any]:
    """Generator states as tensors and plain values, which load without unpickling objects."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""What is asked of a benchmark run, and what two runs must share to be one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import memory_r1
from memory_r1.data import BENCHMARKS, Split
from memory_r1.errors import ConfigError, DataError
from memory_r1.llm.open import fingerprint

Protocol = Literal["build", "stream"]
"""build: the whole dialogue is remembered, then all is asked (the paper's). stream: what can be
known by then is asked every few sessions, so that saturation and forgetting can be seen."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a benchmark run; the fields are the command's options."""

    benchmark: str
    """A name of `data.BENCHMARKS`."""
    data: Path
    out: Path
    system: str = "rules"
    model: str | None = None
    manager: str | None = None
    answer: str | None = None
    reranker: str | None = None
    embedder: str | None = None
    """See `embed.open_embedder`; None: the one in the package."""
    label: str = ""
    """What tables and figures call this row; by default the system and its models."""
    split: Split | Literal["all"] = "test"
    limit: int | None = None
    """Ask only this many questions, and build only their dialogues."""
    seed: int | None = None
    """Draw them at random by this seed; None: the first ones of the file."""
    k: int | None = None
    """Entries the Answer Agent is shown; see `Settings.k`."""
    per_speaker: int | None = None
    protocol: Protocol = "build"
    every: int = 5
    """Sessions between two rounds of questions (protocol "stream")."""
    batch: int = 32
    """Questions asked at once."""
    jobs: int | None = None
    """Dialogues played at the same time by threads; None: 8 where all models are services, else 1,
    which plays many in step, so that a local model gets batches."""

    def __post_init__(self) -> None:
        """Refuse what can't be played."""
        if self.benchmark not in BENCHMARKS:
            raise ConfigError(
                f"unknown benchmark {self.benchmark!r}; known: {', '.join(BENCHMARKS)}"
            )
        if self.split not in (*get_args(Split), "all"):
            raise ConfigError(
                f"unknown split {self.split!r}; expected train, validation, test or all"
            )
        if self.protocol not in get_args(Protocol):
            raise ConfigError(f"unknown protocol {self.protocol!r}; expected build or stream")
        for name in ("limit", "batch", "jobs", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; at least 1 is needed")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What two runs must share to be one; kept as OUT/config.json. The file is hashed once.

        --limit may change: it only says when to stop. Not so when streaming, where a bank that
        went on can't be asked about the past.
        """
        stream = self.protocol == "stream"
        return {
            "benchmark": self.benchmark,
            "data": self.data.name,
            "data_sha256": _digest(self.data),
            "system": fingerprint(self.system),
            "model": fingerprint(self.model),
            "manager": fingerprint(self.manager),
            "answer": fingerprint(self.answer),
            "reranker": fingerprint(self.reranker),
            "embedder": fingerprint(self.embedder),
            "split": self.split,
            "seed": self.seed,
            "k": self.k,
            "per_speaker": self.per_speaker,
            "protocol": self.protocol,
            "every": self.every if stream else None,
            "limit": self.limit if stream else None,
            "batch": self.batch,
            "version": memory_r1.__version__,
        }


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error

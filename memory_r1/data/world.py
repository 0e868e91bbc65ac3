"""A seeded generator of multi-session dialogues in LoCoMo's own JSON, with labelled phenomena.

What a world contains is described in docs/world.md; story.py builds its dialogues.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from memory_r1.data.story import NATURES, Builder
from memory_r1.data.topics import TOPICS
from memory_r1.errors import ConfigError, DataError

WorldWords = Literal["train", "unseen", "mixed"]

_RANGES = {
    "dialogues": (1, 100_000),
    "sessions": (1, 1_000),
    "threads": (1, len(TOPICS)),  # a person has at most one thread on a topic
    "friends": (0, 1_000),
    "absent": (0, 1_000),
}


def _weights() -> dict[str, float]:
    return {
        "accumulate": 3.0,
        "overwrite": 1.5,
        "refine": 1.0,
        "retract": 1.5,
        "repeat": 1.5,
        "temporal": 1.0,
        "unrelated": 1.5,
    }


@dataclass(frozen=True)
class WorldConfig:
    """What a world is like. The dials are documented in docs/world.md.

    Raises ConfigError for a dial of the wrong type or out of range.
    """

    seed: int = 0
    """Same seed and settings, same world, byte for byte."""
    dialogues: int = 20
    """How many dialogues, each with people of its own."""
    sessions: int = 4
    """Sessions per dialogue, days to weeks apart."""
    words: WorldWords = "train"
    """Names and values: those known from training, held out from it, or training's mixed half and
    half with invented ones (what the tiny model's warm start reads)."""
    threads: int = 9
    """Topics per speaker; 9 leave at least 20 memories with the default friends."""
    friends: int = 3
    """Further people the speakers tell of: distractors with the same kinds of facts."""
    chat: float = 0.35
    """Share of turns answered by chit-chat that should store nothing."""
    absent: int = 3
    """Unanswerable questions per dialogue."""
    weights: Mapping[str, float] = field(default_factory=_weights)
    """How often a thread has each phenomenon."""

    def __post_init__(self) -> None:
        for name in ("seed", *_RANGES):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"world.{name} is {value!r}; expected a whole number")
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"world.{name} is {getattr(self, name)}; expected {least} to {most}"
                )
        if self.words not in get_args(WorldWords):
            raise ConfigError(
                f"world.words is {self.words!r}; expected 'train', 'unseen' or 'mixed'"
            )
        if not _is_number(self.chat) or not 0 <= self.chat <= 1:
            raise ConfigError(f"world.chat is {self.chat!r}; expected a share between 0 and 1")
        _check_weights(self.weights)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> WorldConfig:
        """From the [world] table of a run file; an unknown dial raises ConfigError.

        Phenomena that [world.weights] does not name keep their default weight.
        """
        known = {f.name for f in fields(cls)}
        for name in table:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r} in [world]{_near(name, known)}")
        values = dict(table)
        if isinstance(weights := values.get("weights"), Mapping):
            values["weights"] = {**_weights(), **weights}
        return cls(**values)


def _check_weights(weights: object) -> None:
    if not isinstance(weights, Mapping):
        raise ConfigError(f"world.weights is {weights!r}; expected a weight per phenomenon")
    for name, weight in weights.items():
        if name not in NATURES:
            raise ConfigError(f"unknown phenomenon {name!r} in [world.weights]{_near(name)}")
        if not _is_number(weight) or not 0 <= weight < math.inf:
            raise ConfigError(
                f"world.weights.{name} is {weight!r}; expected a number that is not negative"
            )
    if not any(weights.values()):
        raise ConfigError("world.weights are all 0; at least one phenomenon must be wanted")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(name: object, known: Iterable[str] = NATURES) -> str:
    near = get_close_matches(str(name), known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def generate(config: WorldConfig) -> list[dict[str, Any]]:
    """The dialogues of a world as LoCoMo writes them.

    `world` and the questions' `kind`, `phenomenon`, `accepted` and `id` are additions of ours.
    Raises ConfigError when a dialogue asks for more words than there are.
    """
    return [Builder(config, number).build() for number in range(config.dialogues)]


def write(config: WorldConfig, path: Path) -> dict[str, int]:
    """Write a world to a file, over what is there; returns how much is in it.

    Raises ConfigError as `generate` does, and DataError when the file can't be written.
    """
    samples = generate(config)
    text = json.dumps(samples, indent=1, ensure_ascii=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}") from error
    return {
        "dialogues": len(samples),
        "turns": sum(
            len(turns)
            for sample in samples
            for turns in sample["conversation"].values()
            if isinstance(turns, list)
        ),
        "questions": sum(len(sample["qa"]) for sample in samples),
        "memories": sum(len(sample["world"]["bank"]) for sample in samples),
    }

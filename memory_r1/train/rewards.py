"""question + answer -> what the answer is worth: the reward that a run file names (no torch here).

An answer that deserves nothing is worth 0. Where nobody can say what it is worth, because the judge
is away or its reply holds no verdict, there is no reward: ModelUnavailable, and the rollout is
dropped and counted, never paid with 0.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from memory_r1 import grading
from memory_r1.data import Question
from memory_r1.errors import ConfigError, ModelUnavailable
from memory_r1.llm import Call, Conversation
from memory_r1.text import em, f1

Function = Callable[[str, str, Sequence[str]], float | None]
"""A reward of one's own: (question, prediction, golds) -> a number, usually 0 to 1.

question: its text. prediction: what the Answer Agent said, "" for nothing readable. golds: every
accepted answer, the first one first. None, or ModelUnavailable: no reward can be had now; it is
asked again once, then the rollout is dropped.
"""
MEASURES: Final = {"em": em, "f1": f1}
"""The rewards that ask nobody, as `text` defines them: the best over the accepted answers."""


class Unscored(ModelUnavailable):
    """The judge replied, but without a verdict: no reward, and asking again may not help."""


class Reward(Protocol):
    """Pays for one answer. ModelUnavailable where it can't be said what the answer is worth."""

    def __call__(self, question: Question, prediction: str) -> Conversation[float]:
        """What the answer is worth; asks the judge, or nobody."""
        ...


def best(measure: Callable[[str, str], float], question: Question, prediction: str) -> float:
    """A measure (0..1) of an answer against the accepted answer that it is nearest to."""
    return max(measure(prediction, gold) for gold in question.golds)


@dataclass(frozen=True)
class Measured:
    """A measure of `memory_r1.text`."""

    name: str

    def __call__(self, question: Question, prediction: str) -> Conversation[float]:
        """See `Reward`."""
        return best(MEASURES[self.name], question, prediction)
        yield  # a conversation that never calls


@dataclass(frozen=True)
class Judged:
    """1 where the judge says CORRECT, 0 where it says WRONG: the benchmark's own judge."""

    benchmark: str
    """A name of `data.BENCHMARKS`: how strict the judge is told to be."""

    def __call__(self, question: Question, prediction: str) -> Conversation[float]:
        """See `Reward`. An empty answer is WRONG and asks nobody, as in the benchmark."""
        if not prediction.strip():
            return 0.0
        prompt = grading.render(
            self.benchmark, question.text, question.golds, prediction, question.guidance
        )
        reply = yield Call("judge", prompt, grading.MAX_TOKENS, grading.SCHEMA)
        right = grading.parse(reply.text)
        if right is None:
            raise Unscored(
                f"the judge's reply holds no verdict, or two: {reply.text[:200]!r}. Expected "
                'JSON with "verdict": "CORRECT" or "WRONG"; name another model in reward.judge'
            )
        return float(right)


@dataclass(frozen=True)
class Own:
    """A function of one's own; see `Function`."""

    name: str
    function: Function

    def __call__(self, question: Question, prediction: str) -> Conversation[float]:
        """See `Reward`. ConfigError when the function returns what is no number."""
        paid = self.function(question.text, prediction, question.golds)
        if paid is None:
            raise Unscored(f"the reward {self.name} returned None: no reward")
        if not isinstance(paid, int | float) or not math.isfinite(paid):
            raise ConfigError(
                f"the reward {self.name} returned {paid!r:.80} for the answer {prediction[:60]!r}; "
                "expected a finite number, or None where there is no reward"
            )
        return float(paid)
        yield  # a conversation that never calls


def open_reward(name: str, benchmark: str = "") -> Reward:
    """The reward of this name: "em", "f1", "judge", or "module:function".

    benchmark: whose judge, see `Judged`. A module is looked for where Python looks, and in the
    current folder. Raises ConfigError.
    """
    if name in MEASURES:
        return Measured(name)
    if name == "judge":
        return Judged(benchmark)
    return Own(name, _function(name))


def _function(name: str) -> Function:
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(
            f"no reward is called {name!r}; expected {', '.join(MEASURES)}, judge, or a function "
            "as module:function"
        )
    sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the reward {name!r} can't be imported: {error}. Expected the name of an installed "
            f"module, or a file {module}.py in the current folder"
        ) from error
    finally:
        sys.path.pop(0)
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ConfigError(
            f"the reward {name!r}: module {module} has no function {attribute!r}; expected one "
            "that takes (question, prediction, golds) and returns a number"
        )
    found: Function = function
    return found

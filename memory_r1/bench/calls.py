"""Calls of models in a benchmark: counted and timed, conversation by conversation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from memory_r1.llm import Agents, Conversation

T = TypeVar("T")


def services(agents: Agents) -> bool:
    """Whether there are models and all are services, which gain from being asked at once."""
    players = [llm for llm in (agents.extract, agents.manage, agents.answer) if llm is not None]
    return bool(players) and all(
        getattr(getattr(llm, "llm", llm), "concurrent", False) for llm in players
    )


@dataclass
class Spent:
    """What one conversation took."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    own: float = 0.0
    """Seconds of our own code."""
    model: float = 0.0
    """Seconds of the models; of a cached reply, those it took when it was new."""

    @property
    def seconds(self) -> float:
        """All of it, without the time it waited for other conversations."""
        return self.own + self.model

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.own + other.own,
            self.model + other.model,
        )


def metered(
    conversation: Conversation[T], spent: Spent, stop: Callable[[], None] = lambda: None
) -> Conversation[T]:
    """The same conversation with what it takes written to `spent`.

    An absent model ends it: what is thrown in passes through to the runner, since a turn lost on
    the way would spoil what is measured. stop: called before each call of a model; may raise.
    """
    began = time.perf_counter()
    try:
        call = next(conversation)
        while True:
            spent.own += time.perf_counter() - began
            stop()
            reply = yield call
            began = time.perf_counter()
            spent.calls += 1
            spent.prompt_tokens += reply.prompt_tokens
            spent.completion_tokens += reply.completion_tokens
            spent.model += reply.seconds
            call = conversation.send(reply)
    except StopIteration as done:
        spent.own += time.perf_counter() - began
        result: T = done.value
        return result

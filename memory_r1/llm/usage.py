"""How often a model was asked, and how many tokens that took."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from memory_r1.llm import Agents
from memory_r1.types import Completion


@dataclass(frozen=True)
class Tally:
    """Calls and tokens; the difference of two is what happened in between."""

    calls: int = 0
    """Replies that a model wrote. One that was known already is none; nor is a failure."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: Tally) -> Tally:
        return Tally(
            self.calls - other.calls,
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
        )


class Usage:
    """The counter a model carries as its `usage`; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally()

    def count(self, completion: Completion) -> None:
        """Count one reply."""
        one = Tally(1, completion.prompt_tokens, completion.completion_tokens)
        with self._lock:
            self._tally += one

    @property
    def tally(self) -> Tally:
        """What was counted since the model was made."""
        return self._tally


def usage_of(agents: Agents) -> Tally:
    """What the models of all roles have counted; one that plays several counts once.

    Models without a counter (ScriptedLLM, a user's own) add nothing.
    """
    roles = (agents.extract, agents.manage, agents.answer, agents.judge)
    players = {id(llm): llm for llm in roles}
    counters = (getattr(llm, "usage", None) for llm in players.values())
    return sum((c.tally for c in counters if isinstance(c, Usage)), Tally())

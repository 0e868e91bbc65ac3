"""run file -> who plays beside the policy: cached partners, the judge, the teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from memory_r1 import grading
from memory_r1.errors import ConfigError, MemoryR1Error, ModelUnreachable
from memory_r1.llm import LLM, Agents
from memory_r1.llm.open import open_agents, open_llm
from memory_r1.llm.replies import Replies, Watched, cache_folder
from memory_r1.train.runfile import Run
from memory_r1.types import Completion, Prompt, Style

REPLIES = "replies.db"
"""In the cache folder: what models replied, to benchmarks and trainings alike."""
PAUSES: Final = (10.0, 20.0, 40.0, 80.0, *[160.0] * 22)
"""Seconds between attempts to reach a server that is away: about an hour, beside the attempts."""


def partners(run: Run) -> Agents:
    """Who plays each role beside the agent in training; what the run leaves open, its model does.

    No weights are loaded. Raises what `open_agents` raises.
    """
    base = open_agents(run.model)
    return Agents(
        extract=open_agents(run.extract).extract if run.extract else base.extract,
        manage=open_agents(run.manager).manage if run.manager else base.manage,
        answer=open_agents(run.answer).answer if run.answer else base.answer,
    )


def kept(agents: Agents) -> Agents:
    """The same agents; what they reply at temperature 0 is kept on disk, and never paid for twice.

    Not of models of the compact style: theirs cost less than the disk.
    """
    roles = (agents.extract, agents.manage, agents.answer, agents.judge)
    dear = {id(llm): llm for llm in roles if is_dear(llm) and not isinstance(llm, Watched)}
    if not dear:
        return agents
    replies = Replies(cache_folder() / REPLIES)
    watched = {name: Watched(llm, replies) for name, llm in dear.items() if llm is not None}
    return Agents(*(watched.get(id(llm), llm) for llm in roles))


class GaveUp(MemoryR1Error):
    """A server that the reward needs stayed away. Nothing was learned without it."""


class Patient:
    """A model on a server, which is waited for when it is away.

    An episode without a reward is dropped, so without this an outage would thin out the steps, and
    a run would not be what it is without one. After `PAUSES` comes GaveUp, which ends the run.
    """

    def __init__(
        self,
        llm: LLM,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.llm = llm
        self.name = llm.name
        self.style: Style = llm.style
        self._say = say
        self._sleep = sleep

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order, however long it takes; see `GaveUp`."""
        for pause in (*PAUSES, None):
            try:
                return self.llm.complete(
                    prompts, max_tokens=max_tokens, temperature=temperature, schema=schema
                )
            except ModelUnreachable as error:
                if pause is None:
                    waited = sum(PAUSES) / 60
                    raise GaveUp(
                        f"{error} The run waited {waited:.0f} minutes for it and stopped. Nothing "
                        "was learned without it: start it, then go on with --resume"
                    ) from error
                self._say(f"paused: {error} Trying again in {pause:.0f} seconds")
                self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def patient(agents: Agents, say: Callable[[str], None]) -> Agents:
    """The same agents; those on a server are waited for, and `say` is told."""
    roles = (agents.extract, agents.manage, agents.answer, agents.judge)
    waited = {id(llm): Patient(llm, say) for llm in roles if llm is not None and is_dear(llm)}
    return Agents(*(waited.get(id(llm), llm) for llm in roles))


def is_dear(llm: LLM | None) -> bool:
    """Whether a reply of a model is worth keeping."""
    return llm is not None and llm.style != "compact"


def judge_of(run: Run) -> LLM | None:
    """The model that grades answers, where the reward is its verdict; ConfigError if it can't."""
    if run.reward.judge is None:
        return None
    judge = open_llm(run.reward.judge)
    grading.check(judge)
    return judge


def teacher_of(run: Run, policy: LLM, frozen: Agents) -> Agents | None:
    """Who plays what is imitated, with partners; None where nothing is."""
    if run.teacher is None:
        return None
    teacher = open_agents(run.teacher.model)
    for role in run.trains:
        player = getattr(teacher, role)
        if player is None or player.style != policy.style:
            raise ConfigError(
                f"teacher.model {run.teacher.model!r} can't teach {run.model!r}: expected a model "
                f"that is prompted in the {policy.style!r} style, as that one is, got "
                f"{player.style if player else 'rules'!r}"
            )
    return kept(
        replace(
            frozen,
            manage=teacher.manage if run.manager is None else frozen.manage,
            answer=teacher.answer if run.answer is None else frozen.answer,
        )
    )

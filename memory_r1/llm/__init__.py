"""Language models behind one small protocol, and the three roles they play."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from memory_r1.errors import ConfigError, ModelUnavailable
from memory_r1.llm.scripted import ScriptedLLM
from memory_r1.types import Completion, Prompt, Style

__all__ = ["LLM", "Agents", "Call", "Conversation", "Role", "ScriptedLLM", "Streams", "drive"]


@runtime_checkable
class LLM(Protocol):
    """Anything that completes prompts. Raises ModelUnavailable when it can't be reached."""

    name: str
    style: Style

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order. `schema` is a JSON schema the reply should obey."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A model whose reply can be read while it is written."""

    def stream(
        self, prompt: Prompt, tell: Callable[[str], None], *, max_tokens: int = 512
    ) -> Completion:
        """The completion, at temperature 0; `tell` is given its text piece by piece as it comes.

        Raises what `complete` raises, also after some of the text was told.
        """
        ...


@dataclass(frozen=True)
class Agents:
    """Which model plays which role; None is the rule-based stand-in that needs no model."""

    extract: LLM | None = None
    manage: LLM | None = None
    answer: LLM | None = None
    judge: LLM | None = None
    """Grades answers, where training pays for its verdict; no part of a memory."""


Role = Literal["extract", "manage", "answer"]


@dataclass(frozen=True)
class Call:
    """One question to one role's model, asked by a conversation."""

    role: Role | Literal["judge"]
    prompt: Prompt
    max_tokens: int = 512
    schema: Mapping[str, Any] | None = None


T = TypeVar("T")
Conversation = Generator[Call, Completion, T]
"""Code that yields calls and is sent completions. Serving drives one at a time, training and
benchmarks drive hundreds in step, so that the same code path is batched."""


def strictly(conversation: Conversation[T]) -> Conversation[T]:
    """The same conversation, but an absent model ends it.

    `remember` would keep the turn for another day, which is right for users; where a result is
    measured or learned from, a turn lost on the way would spoil it silently.
    """
    try:
        call = next(conversation)
        while True:
            call = conversation.send((yield call))
    except StopIteration as stop:
        result: T = stop.value
        return result


def drive(conversations: Sequence[Conversation[T]], agents: Agents) -> list[T]:
    """Run conversations to their end, with one batched `complete` per role and round.

    A model that can't be reached is thrown into the conversations that asked it; what they
    don't catch is raised here.
    """
    results: dict[int, T] = {}
    pending: dict[int, Call] = {}

    def advance(i: int, step: Callable[[], Call]) -> None:
        try:
            pending[i] = step()
        except StopIteration as stop:
            results[i] = stop.value

    for i, conversation in enumerate(conversations):
        advance(i, partial(next, conversation))
    while pending:
        rounds: dict[tuple[Any, ...], list[int]] = {}
        for i, call in pending.items():
            key = (call.role, call.max_tokens, json.dumps(call.schema, sort_keys=True))
            rounds.setdefault(key, []).append(i)
        asked, pending = pending, {}
        for members in rounds.values():
            first = asked[members[0]]
            llm = getattr(agents, first.role)
            if llm is None:
                raise ConfigError(f"no model plays the role {first.role!r}")
            try:
                replies = llm.complete(
                    [asked[i].prompt for i in members],
                    max_tokens=first.max_tokens,
                    schema=first.schema,
                )
            except ModelUnavailable as error:
                for i in members:
                    advance(i, partial(conversations[i].throw, error))
                continue
            for i, reply in zip(members, replies, strict=True):
                advance(i, partial(conversations[i].send, reply))
    return [results[i] for i in range(len(conversations))]

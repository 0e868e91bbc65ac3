"""Language models behind one small protocol, and the three roles they play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from memory_r1.types import Completion, Prompt, Style


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


@dataclass(frozen=True)
class Agents:
    """Which model plays which role; None is the rule-based stand-in that needs no model."""

    extract: LLM | None = None
    manage: LLM | None = None
    answer: LLM | None = None

"""A language model that reads from a script: for tests, examples and demos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from memory_r1.types import Completion, Prompt, Style

Line = str | Exception
"""A reply, or an error to raise in its place."""


class ScriptedLLM:
    """Replays replies in order, or computes them, and keeps every prompt it was shown."""

    def __init__(
        self,
        replies: Iterable[Line] | Callable[[Prompt], str],
        *,
        style: Style = "instruct",
        name: str = "scripted",
    ) -> None:
        """Play `replies` one per prompt; a function is asked for the reply to each prompt."""
        self.name = name
        self.style = style
        self.prompts: list[Prompt] = []
        self._function = replies if callable(replies) else None
        self._script = [] if callable(replies) else list(replies)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """The next reply of the script for each prompt; AssertionError when it has run out."""
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt: Prompt) -> Completion:
        self.prompts.append(prompt)
        if self._function is not None:
            return Completion(self._function(prompt))
        if not self._script:
            raise AssertionError(f"script ran out at call {len(self.prompts)}:\n{prompt.text}")
        line = self._script.pop(0)
        if isinstance(line, Exception):
            raise line
        return Completion(line)

"""A model's place, filled by form alone: what would be asked is counted, nobody is asked.

The real code plays with it, so that every prompt is the one a model would be shown, as long as the
memories are of the length that is assumed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memory_r1.llm import LLM, Role
from memory_r1.llm.prompting import ARROW, NOTHING
from memory_r1.types import Completion, Prompt

PER_TOKEN = 4
"""Characters, as English counts with most tokenizers."""
FACT_WORDS = 20
"""The longest fact an extractor is told to write; a turn is taken to hold one."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass
class Needed:
    """What a role needs."""

    calls: float = 0
    prompt_tokens: float = 0
    completion_tokens: float = 0


class StandIn:
    """Plays a role by form alone, and counts."""

    def __init__(self, role: Role | Literal["judge"], llm: LLM) -> None:
        """role: what is played; llm: whose place it is, for its name and style."""
        self.role = role
        self.name = llm.name
        self.style = llm.style
        self.needed = Needed()

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """A reply of the right form and length for each prompt."""
        return [self._reply(prompt, schema) for prompt in prompts]

    def _reply(self, prompt: Prompt, schema: Mapping[str, Any] | None) -> Completion:
        said = self._words(prompt)
        compact = self.style == "compact"
        match self.role:
            case "extract" if schema is not None:
                reply = json.dumps({"facts": [{"text": said, "quote": "", "when": ""}]})
            case "manage" if schema is not None:
                reply = json.dumps({"operations": [{"op": "ADD", "text": said}]})
            case "judge":
                reply = json.dumps({"reason": "a short sentence says why", "verdict": "CORRECT"})
            case "answer":
                reply = f"{NOTHING} {ARROW} six words" if compact else "**Answer:** about six words"
            case "manage" if compact:
                reply = f"{NOTHING} {ARROW} ADD"
            case _:
                reply = said
        read, written = len(prompt.text) // PER_TOKEN + 1, len(reply) // PER_TOKEN + 1
        self.needed.calls += 1
        self.needed.prompt_tokens += read
        self.needed.completion_tokens += written
        return Completion(reply, read, written)

    def _words(self, prompt: Prompt) -> str:
        """The start of what was said last, as a fact would repeat it."""
        if self.style == "compact":
            said = prompt.text.removesuffix(ARROW).split(" : ")[-1]
        else:
            quotes = _QUOTED.findall(prompt.messages[-1][1])
            said = json.loads(quotes[-1]) if quotes else prompt.text[-100:]
        words = re.sub(r"[<>;]", " ", said).split()[:FACT_WORDS]
        return " ".join(words) or "something was said"

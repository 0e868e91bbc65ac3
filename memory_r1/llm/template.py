"""prompt -> the tokens of a chat model's own template (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_r1.types import Prompt


def templated(tokenizer: Any, prompt: Prompt) -> Sequence[int]:
    """The prompt in the tokenizer's chat template, with the opening of the reply."""
    from jinja2 import TemplateError

    messages = [{"role": role, "content": sound(text)} for role, text in prompt.messages]

    def render(messages: list[dict[str, str]]) -> Sequence[int]:
        ids: Sequence[int] = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            return_dict=False,
            enable_thinking=False,  # read by templates of models that would think aloud
        )
        return ids

    try:
        return render(messages)
    except TemplateError:
        # Some templates (Gemma's) know no system role.
        if len(messages) < 2 or messages[0]["role"] != "system":
            raise
        first, second, *rest = (message["content"] for message in messages)
        opening = {"role": messages[1]["role"], "content": f"{first}\n\n{second}"}
        return render([opening, *messages[2:]])


def sound(text: str) -> str:
    """Half a surrogate pair, which no tokenizer takes, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")

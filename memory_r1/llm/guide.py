"""JSON schema + a model's tokens -> which of them may come next, so that the reply obeys.

A reply that ends by itself follows the schema, whatever the weights. One that is cut off at its
token limit is the beginning of one that would, and its `finished` says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray

from memory_r1.errors import ConfigError, ModelUnavailable

_WRITING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models write JSON; with free white space a weak one could go on with spaces for ever."""


class Guide:
    """What may come next in one reply."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """(vocabulary,) which tokens may come next; an end token only when the reply is whole."""
        bias = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        self._check()
        return bias.astype(np.bool_)

    def take(self, token: int) -> None:
        """The token that was chosen among those."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason, *_ = self._matcher.get_error().splitlines()  # then its state, on many lines
            raise ModelUnavailable(f"the reply can't be held to its JSON schema: {reason}")


class Grammar:
    """The tokens of one model, ready to be guided."""

    def __init__(self, tokens: LLTokenizer) -> None:
        self._tokens = tokens

    def guides(self, schema: Mapping[str, Any]) -> Callable[[], Guide]:
        """What makes a guide per reply; ConfigError for a schema that can't be enforced."""
        text = LLMatcher.grammar_from_json_schema(json.dumps(dict(schema)), overrides=_WRITING)
        first = LLMatcher(self._tokens, text, log_level=0)
        if first.is_error():
            reason, *_ = first.get_error().splitlines()
            raise ConfigError(f"the JSON schema can't be enforced: {reason}")
        return lambda: Guide(first.deep_copy())


def grammar_of(tokenizer: Any, vocabulary: int, end: Collection[int]) -> Grammar | None:
    """The tokens of a model; None where llguidance can't read them. Takes about a second.

    tokenizer: one of transformers. vocabulary: how many tokens the model knows, those without a
    text included. end: ids that finish a reply.
    """
    if not end:
        return None
    try:
        tokens = from_tokenizer(tokenizer, max(vocabulary, len(tokenizer)), sorted(end))
    except ValueError:
        return None
    # Of some kinds it takes the words for the texts: its masks would be wrong.
    ids = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    return Grammar(tokens) if tokens.decode_str(ids).strip() == _SAMPLE else None


_SAMPLE = '{"text": "Zoë has 2 dogs, 狗"}'

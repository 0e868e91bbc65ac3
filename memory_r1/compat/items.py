"""An item of LangGraph's store <-> an entry of ours; needs no LangGraph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from memory_r1.errors import ConfigError
from memory_r1.extract import redact

KEPT: Final = "langgraph"
"""Under this key of an entry's metadata is what LangGraph gave; see `written`."""

Namespace = tuple[str, ...]


def user_of(namespace: Namespace) -> str:
    """The user whose memory a namespace is. Labels hold no periods, so it can be read back."""
    return ".".join(namespace)


class Written(NamedTuple):
    """An item as an entry: what it says, and the metadata that gives the item back."""

    text: str
    metadata: dict[str, Any]


def written(
    key: str,
    value: Mapping[str, Any],
    created: datetime,
    *,
    fields: Sequence[str] | None = None,
    ttl: float | None = None,
    safe: bool = True,
) -> Written:
    """An item as an entry.

    created: when the item was put first. fields: see `text_of`; what says nothing by them goes by
    its key, and no query finds it. ttl: minutes from its last use. safe: leave obvious credentials
    out of the text; the value is what was put. Raises ConfigError for a value that isn't JSON.
    """
    try:
        value = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the value of {key!r} must be JSON: {error}") from error
    said = text_of(value, fields)
    text = (redact(said) if safe else said) if said.strip() else key
    item = {
        "key": key,
        "value": value,
        "created": created.isoformat(),
        "ttl": ttl,
        "indexed": bool(said.strip()),
        "text": digest(text),
    }
    return Written(text, {KEPT: item})


def digest(text: str) -> str:
    """Sixteen hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def text_of(value: Mapping[str, Any], fields: Sequence[str] | None = None) -> str:
    """What a value says, for search and for answers.

    fields: JSON paths as in LangGraph's `index`. By default one text stands for itself, and
    anything else is written out as "name: value" lines.
    """
    if fields is not None:
        from langgraph.store.base import get_text_at_path, tokenize_path

        told = [text for field in fields for text in get_text_at_path(value, tokenize_path(field))]
        return "\n".join(told)
    match list(value.values()):
        case [str(text)]:
            return text
    return "\n".join(
        f"{name}: {said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)}"
        for name, said in value.items()
    )

"""the bytes of a reply, whole or streamed -> its text, without a change to the bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memory_r1.serve.proxy.asked import text_of
from memory_r1.serve.proxy.upstream import MOST_BYTES


def text_in(data: bytes) -> str:
    """The text of a reply that came in one piece; "" where it has none."""
    return _text(_json(data))


class Streamed:
    """The text of a reply that comes in server-sent events, put together as they pass."""

    def __init__(self) -> None:
        self._rest = b""
        self._parts: list[str] = []
        self._whole = False
        self._size = 0

    def take(self, chunk: bytes) -> None:
        """Note the next bytes, which may end anywhere; of a reply without end, none any more."""
        self._size += len(chunk)
        if self._size > MOST_BYTES:
            self._rest, self._parts, self._whole = b"", [], False
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._note(_json(line[len(b"data:") :]))

    @property
    def text(self) -> str:
        """The text; "" when the reply broke off."""
        return "".join(self._parts) if self._whole else ""

    def _note(self, event: Mapping[str, Any]) -> None:
        if event.get("type") in ("response.completed", "response.incomplete"):
            self._parts, self._whole = [_text(event.get("response"))], True
        choice = _first(event)
        delta = choice.get("delta")
        if isinstance(delta, Mapping) and isinstance(said := delta.get("content"), str):
            self._parts.append(said)
        self._whole |= choice.get("finish_reason") is not None


def _text(reply: object) -> str:
    if not isinstance(reply, Mapping):
        return ""
    if isinstance(output := reply.get("output"), list):  # /responses
        items = [item for item in output if isinstance(item, Mapping)]
        return "".join(text_of(item) for item in items if item.get("type") == "message")
    message = _first(reply).get("message")
    return text_of(message) if isinstance(message, Mapping) else ""


def _first(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first of the choices, of which n were asked for."""
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and choice.get("index", 0) == 0:
            return choice
    return {}


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # [DONE], and what is no reply
        return {}
    return value if isinstance(value, dict) else {}

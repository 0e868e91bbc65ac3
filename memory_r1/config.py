"""Settings: frozen dataclasses whose fields explain themselves."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import unquote

from memory_r1.errors import ConfigError
from memory_r1.types import Policy, Style


@dataclass(frozen=True)
class Settings:
    """How a memory works, apart from its store and its models."""

    k: int | None = None
    """Entries the Answer Agent is shown. None: 60 (the paper's number), 16 for a compact model."""
    per_speaker: int | None = None
    """Show the best this many of each speaker instead; the paper's protocol is 30."""
    related: int | None = None
    """Entries the Memory Manager is shown. None: 10, 6 for a compact model."""
    context: int = 4
    """Earlier turns the extractor is shown, so that it knows what "it" is (instruct only)."""
    redact: bool = True
    """Replace obvious credentials before anything is stored."""
    policy: Policy = "auto"
    """auto: operations are done at once; confirm_deletes, confirm_all: DELETE, or whatever changes
    something, is only proposed and waits for `approve`."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, least in (("k", 1), ("per_speaker", 1), ("related", 1), ("context", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ConfigError(f"setting {name!r} is {value!r}; expected a number from {least}")
        if self.policy not in get_args(Policy):
            raise ConfigError(
                f"setting 'policy' is {self.policy!r}; expected {', '.join(get_args(Policy))}"
            )

    def shown_to_answer(self, style: Style | None) -> int:
        """How many entries an Answer Agent of this style is shown."""
        return self.k or (16 if style == "compact" else 60)

    def shown_to_manage(self, style: Style | None) -> int:
        """How many entries a Memory Manager of this style is shown."""
        return self.related or (6 if style == "compact" else 10)


def settings(values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; ConfigError names an unknown one and the nearest known."""
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown setting {name!r}; {hint}")
    return Settings(**values)


def without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL as it may be shown and kept, and the (name, password) that stood in it, or None."""
    found = _LOGIN.search(url)
    if found is None:
        return url, None
    name, _, password = found[0][:-1].partition(":")
    return _LOGIN.sub("", url, count=1), (unquote(name), unquote(password))


_LOGIN = re.compile(r"(?<=://)[^/?#]*@")

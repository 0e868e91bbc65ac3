"""How a server behaves; every field is an option of `memory-r1 serve`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, get_args

from memory_r1.errors import ConfigError

Remembered = Literal["user", "both", "none"]
"""Whose words the proxy remembers: the user's, the model's too, or nobody's."""
Placed = Literal["system", "user"]
"""Where the proxy puts memories: a system message before the user's last, or into that message."""

_WEB = re.compile(r"https?://[^/\s?#]+(?:/[^\s?#]*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Serving:
    """Where to listen, what to accept, whom to forward to."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs API keys."""
    port: int = 8700
    """0: any that is free."""
    names: tuple[str, ...] = ()
    """Names it is reached by besides localhost, where a proxy on this machine passes them on."""
    max_body: int = 4_194_304
    """Bytes of one request."""
    rate: str = "1000/second"
    """Requests of one caller, e.g. "20/second" or "600/minute"; "": as many as come."""
    retry_every: float = 300.0
    """Seconds between tries of what was deferred because a model failed; 0: never."""
    drain: int = 30
    """Seconds that requests get to finish in when the server is told to stop."""
    upstream: str = ""
    """The OpenAI-compatible service that chats are forwarded to, e.g. http://localhost:8000/v1."""
    upstream_key: str = ""
    """What the server shows there; "": what the caller showed here, where no keys are in use."""
    remember: Remembered = "user"
    """What the proxy remembers of a chat."""
    k: int = 10
    """Memories that the proxy adds to a chat."""
    place: Placed = "system"
    """As what it adds them. "user": for models that take a system message only at the beginning."""
    runs: str = ""
    """A folder of training runs to show in the inspector."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, least in (("port", 0), ("max_body", 1), ("retry_every", 0), ("drain", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; expected at least 1")
        if self.remember not in get_args(Remembered):
            expected = ", ".join(get_args(Remembered))
            raise ConfigError(f"remember is {self.remember!r}; expected {expected}")
        if self.place not in get_args(Placed):
            raise ConfigError(f"place is {self.place!r}; expected {', '.join(get_args(Placed))}")
        if self.upstream and not _WEB.fullmatch(self.upstream):
            raise ConfigError(
                f"upstream is {self.upstream!r}; expected a URL such as http://localhost:8000/v1"
            )

    @property
    def upstream_shown(self) -> str:
        """The upstream's URL for people to read, without the password that may stand in it."""
        return re.sub("//[^/]*@", "//", self.upstream.rstrip("/"))

    @property
    def private(self) -> bool:
        """True when only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Requests and tokens per minute: waits so that a service never has to refuse."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from memory_r1.errors import ConfigError

_MINUTE = 60.0


@dataclass
class Sent:
    """A request that was let through."""

    at: float
    """By the limit's clock, in seconds."""
    tokens: int
    """Of prompt and reply: expected, and corrected by the sender once they are known."""


class RateLimit:
    """At most so many requests and tokens in any sixty seconds; threads share it.

    requests, tokens: per minute, None for no limit. A single request of more tokens than the
    limit goes when no other has gone for a minute. Raises ConfigError for less than 1.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"a limit of {value} {name} per minute; expected at least 1")
        self.requests, self.tokens = requests, tokens
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._recent: deque[Sent] = deque()

    def enter(self, tokens: int) -> Sent:
        """Wait until a request of about so many tokens may be sent, and count it as sent."""
        while True:
            with self._lock:
                now = self._clock()
                pause = self._pause(now, tokens)
                if pause <= 0:
                    self._recent.append(sent := Sent(now, tokens))
                    return sent
            self._sleep(pause)  # then looked at again: another thread may have been faster

    def _pause(self, now: float, tokens: int) -> float:
        """Seconds until enough of the last minute's requests are over a minute old."""
        while self._recent and self._recent[0].at + _MINUTE <= now:
            self._recent.popleft()
        free = now
        if self.requests is not None and len(self._recent) >= self.requests:
            free = self._recent[-self.requests].at + _MINUTE
        if self.tokens is not None:
            used = sum(sent.tokens for sent in self._recent)
            for sent in self._recent:
                if used + tokens <= self.tokens:
                    break
                used -= sent.tokens
                free = max(free, sent.at + _MINUTE)
        return free - now

"""the time -> an id that sorts by it  (UUID version 7, RFC 9562, method 2)."""

from __future__ import annotations

import os
import secrets
import threading
import time

_RANDOM_BITS = 74
_lock = threading.Lock()
_last_millisecond = 0
_last_random = 0


def new_id() -> str:
    """A UUIDv7: unique across processes, rising within one even when its clock steps back."""
    global _last_millisecond, _last_random
    with _lock:
        millisecond = time.time_ns() // 1_000_000
        if millisecond > _last_millisecond:
            # The top bit stays free, so that counting up has room before it spills.
            _last_millisecond = millisecond
            _last_random = secrets.randbits(_RANDOM_BITS - 1)
        else:
            _last_random += 1
        millisecond, random = _last_millisecond, _last_random
    value = millisecond << 80 | 0x7 << 76 | random >> 62 << 64 | 0b10 << 62 | random & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def moved(made: str, seconds: float) -> str:
    """The lowest id of the moment so many seconds after (below 0: before) an id was made."""
    millisecond = max(0, int(made.replace("-", "")[:12], 16) + round(seconds * 1000))
    return f"{millisecond:012x}"[:8] + "-" + f"{millisecond:012x}"[8:12]


def _forget_last() -> None:
    """A forked child would otherwise count on from its parent's number, as the parent does."""
    global _lock, _last_millisecond
    _lock = threading.Lock()
    _last_millisecond = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_last)

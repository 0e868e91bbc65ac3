"""What this process remembers of texts, whoever they are of, and that `forget` has to empty."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

C = TypeVar("C")
_caches: Final[WeakKeyDictionary[Any, Callable[[Any], object]]] = WeakKeyDictionary()
_caches_lock: Final = threading.Lock()


def forgettable(cache: C, empty: Callable[[C], object]) -> None:
    """Have `forget_texts` empty this cache of texts, as long as it is there."""
    with _caches_lock:
        _caches[cache] = empty


def forget_texts() -> None:
    """Empty all caches of texts of this process: they don't know whose text is whose."""
    with _caches_lock:
        known = list(_caches.items())
    for kept, empty in known:
        empty(kept)

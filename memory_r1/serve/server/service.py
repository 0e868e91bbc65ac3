"""What every face of a server shares: the memory, its settings, who may call, how often."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Final, TypedDict

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from memory_r1.errors import ConfigError, MemoryR1Error
from memory_r1.memory import Memory
from memory_r1.serve.server.caller import Caller, Unauthorized, identified, shown_in
from memory_r1.serve.server.keys import Keys
from memory_r1.serve.server.metrics import Metrics
from memory_r1.serve.server.problems import Busy
from memory_r1.serve.server.replies import Replies
from memory_r1.serve.server.settings import Serving, is_loopback
from memory_r1.types import Owner

FAILURES: Final = "20/minute"
"""Wrong keys that one address may show before it has to wait."""


@dataclass
class Service:
    """A memory that is served. Its methods may be called by many threads."""

    memory: Memory
    settings: Serving = field(default_factory=Serving)

    def __post_init__(self) -> None:
        """ConfigError for a rate that is none."""
        self.keys = Keys(self.memory.store)
        self.replies = Replies(self.memory.store)
        self.metrics = Metrics()
        self.memory.watch = lambda result: self.metrics.count(result.rows)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._rate = _rate(self.settings.rate)
        self._failures = parse(FAILURES)
        self._locked = self.keys.in_use()
        self._stop = threading.Event()
        self._upkeep: threading.Thread | None = None

    def admit(self, shown: str, address: str) -> Caller:
        """The caller who shows this key, coming from this address; Unauthorized, Busy."""
        try:
            caller = identified(self.keys, shown, required=self._needs_key(address))
        except Unauthorized as error:
            # Only who is wrong waits: others may come from the same address.
            if shown and not self._limiter.hit(self._failures, "failed", address):
                raise Busy("too many wrong keys from this address", 60) from error
            raise
        rate = self._rate
        if rate is not None and not self._limiter.hit(rate, caller.name or address):
            raise Busy(f"more than {self.settings.rate} requests", max(1, rate.get_expiry() // 2))
        return caller

    def _needs_key(self, address: str) -> bool:
        """Whether nobody gets in without; else the store has no key, and the caller is here.

        Revoking the last key must not open what keys have closed, and a proxy on this machine
        must not open it to those it speaks for.
        """
        self._locked = self._locked or self.keys.in_use()
        return self._locked or not self.settings.private or not is_loopback(address)

    def start(self) -> None:
        """Go on with what a process before this one left, and look after it from time to time."""
        self.memory.resume()
        self._upkeep = threading.Thread(target=self._look_after, daemon=True)
        self._upkeep.start()

    def stop(self) -> None:
        """Finish the background add in hand; what else waits stays in the store."""
        self._stop.set()
        if self._upkeep:
            self._upkeep.join()
        self.memory.close()

    def _look_after(self) -> None:
        """Retry what was deferred, and forget old replies."""
        every = self.settings.retry_every
        while not self._stop.wait(every or timedelta(hours=1).total_seconds()):
            try:
                if every:
                    self.memory.resume(deferred=True)
                self.replies.drop_old()
            except MemoryR1Error as error:  # a store that is away for now: the next round comes
                logging.getLogger("memory_r1").warning("looking after the store failed: %s", error)


def _rate(text: str) -> RateLimitItem | None:
    try:
        return parse(text) if text else None
    except ValueError as error:
        raise ConfigError(f"rate is {text!r}; expected e.g. 20/second or 600/minute") from error


def service_of(request: Request) -> Service:
    """The service a request came to."""
    service: Service = request.app.state.service
    return service


async def caller_of(request: Request) -> Caller:
    """Who sent a request; Unauthorized, Busy."""
    state = request.state
    if not hasattr(state, "caller"):
        address = request.client.host if request.client else ""
        admit, shown = service_of(request).admit, shown_in(request.headers)
        state.caller = await run_in_threadpool(admit, shown, address)
    caller: Caller = state.caller
    return caller


class Admitted(APIRoute):
    """A route whose caller is known before the body is read: strangers' JSON is not parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler; raises Unauthorized, Busy."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            await caller_of(request)
            return await handle(request)

        return handled


async def _service(request: Request) -> Service:
    """What needs no thread costs no change of threads: so it is with `whose`."""
    return service_of(request)


Serves = Annotated[Service, Depends(_service)]
Calls = Annotated[Caller, Depends(caller_of)]


async def whose(caller: Calls, user_id: str = "", agent_id: str = "", run_id: str = "") -> Owner:
    """The owner named in a query."""
    return caller.owner(user_id, agent_id, run_id)


Whose = Annotated[Owner, Depends(whose)]


class Ids(TypedDict):
    """An owner as the keywords of `Memory`'s verbs."""

    user_id: str
    agent_id: str
    run_id: str


def ids(owner: Owner) -> Ids:
    """An owner as the keywords of `Memory`'s verbs."""
    return {"user_id": owner.user_id, "agent_id": owner.agent_id, "run_id": owner.run_id}

"""messages that wait -> processed, oldest first, each by one process at a time.

A message is committed before anything is done with it. Whoever processes it claims it first; a
claim of a process that died lapses. So nothing is lost or done twice, whatever is killed when.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timedelta

from memory_r1.errors import StoreError
from memory_r1.remember import AddResult
from memory_r1.store import Store
from memory_r1.types import Message, MessageState, Owner

LEASE = timedelta(minutes=10)
"""How long a claim holds: longer than a model may take for one turn."""
AGAIN = 1.0
"""Seconds until a background drain that somebody else held up looks again."""


class Outbox:
    """The messages of a store that wait for the Memory Manager.

    process: reads a claimed message into its owner's bank and settles its state.
    """

    def __init__(
        self, store: Store, now: Callable[[], datetime], process: Callable[[Message], AddResult]
    ) -> None:
        self._store, self._now, self._process = store, now, process
        self._thread: ThreadPoolExecutor | None = None
        self._submitted: dict[Future[None], Owner] = {}
        self._held_up: set[Owner] = set()
        self._closed = False
        self._lock = threading.Lock()  # of the four above

    def claimed(self, message: Message) -> Message:
        """The message, marked as being processed from now on."""
        return replace(message, state="working", since=self._now())

    def drain(self, owner: Owner, deferred: bool = False) -> AddResult:
        """Process what waits, in the order it was said; what was deferred too when asked.

        Ends early where another process is at an earlier message of this owner: memories have to
        be managed in order.
        """
        states: list[MessageState] = ["pending", "working"]
        states += ["deferred"] if deferred else []
        messages = [message for state in states for message in self._store.messages(owner, state)]
        done = AddResult()
        for message in sorted(messages, key=lambda message: message.id):
            if message.state == "working" and not self._lapsed(message):
                break
            mine = self.claimed(message)
            if not self._store.set_message(mine, was=message):
                break
            done += self.process(mine)
        return done

    def process(self, claimed: Message) -> AddResult:
        """Process one message; what stops that leaves it deferred, and is raised."""
        try:
            return self._process(claimed)
        except BaseException as error:
            left = replace(claimed, state="deferred", error=repr(error), since=self._now())
            self._store.set_message(left, was=claimed)
            raise

    def _lapsed(self, message: Message) -> bool:
        return (message.since or message.received) < self._now() - LEASE

    def submit(self, owner: Owner) -> None:
        """Process an owner's messages in the background, after those submitted before."""
        if self._thread is None:
            self.resume()  # a process may have died
        with self._lock:
            self._start(owner)

    def resume(self, deferred: bool = False) -> None:
        """Process in the background whatever waits; what was deferred too when asked."""
        owners = self._store.waiting()
        with self._lock:
            for owner in owners:
                self._start(owner, deferred)

    def _start(self, owner: Owner, deferred: bool = False) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory-r1-outbox")
        self._drop_done()
        future = self._thread.submit(self._drain_all, owner, deferred)
        future.add_done_callback(_report)
        self._submitted[future] = owner

    def forget(self, owner: Owner) -> None:
        """Let go of what an owner's background adds came to: errors hold what was worked on."""
        with self._lock:
            self._drop_done(owner)

    def _drop_done(self, of: Owner | None = None) -> None:
        self._submitted = {
            future: owner
            for future, owner in self._submitted.items()
            if not (future.done() and of in (None, owner))
        }

    def _drain_all(self, owner: Owner, deferred: bool) -> None:
        """Drain; what somebody else's work held up is looked at again in a moment."""
        self.drain(owner, deferred)
        if any(self._store.messages(owner, state) for state in ("pending", "working")):
            with self._lock:
                if owner not in self._held_up:
                    self._held_up.add(owner)
                    timer = threading.Timer(AGAIN, self._look_again, (owner,))
                    timer.daemon = True
                    timer.start()

    def _look_again(self, owner: Owner) -> None:
        with self._lock:
            self._held_up.discard(owner)
            if not self._closed:
                self._start(owner)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything submitted has been processed; raises what went wrong on the way.

        What stands behind a message that somebody else is working on is not waited for. timeout:
        seconds; StoreError when it isn't done by then.
        """
        with self._lock:
            submitted = set(self._submitted)
        done, late = wait(submitted, timeout)
        if late:
            raise StoreError(f"{len(late)} background adds are not processed after {timeout} s")
        with self._lock:
            for future in done:
                self._submitted.pop(future, None)
        for future in done:
            future.result()

    def close(self) -> None:
        """Finish the message in hand; the others stay in the store and wait."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None


def _report(future: Future[None]) -> None:
    """Nobody may be waiting for it: what went wrong in the background is logged."""
    if not future.cancelled() and (error := future.exception()):
        logging.getLogger("memory_r1").error("a background add failed: %s", error)

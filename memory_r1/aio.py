"""The same memory for asyncio: every verb of `Memory`, each in a thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from memory_r1.memory import Memory

P = ParamSpec("P")
T = TypeVar("T")


def _awaitable(
    verb: Callable[Concatenate[Memory, P], T],
) -> Callable[Concatenate[AsyncMemory, P], Coroutine[Any, Any, T]]:
    """The same verb, to be awaited. A thread keeps the loop free while models and disks work."""

    @functools.wraps(verb)
    async def call(self: AsyncMemory, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(verb, self.memory, *args, **kwargs)

    return call


class AsyncMemory:
    """`Memory` with verbs that are awaited; takes the same arguments.

    >>> async with AsyncMemory("memory.db") as memory:
    ...     await memory.add("I adopted a dog, Rex", user_id="ann")
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        """See `Memory`; or wrap one: `AsyncMemory(memory)`."""
        given = args[0] if args else None
        self.memory = given if isinstance(given, Memory) else Memory(*args, **settings)

    async def __aenter__(self) -> Self:
        """Use it in an `async with` block, which closes it."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        await self.close()

    add = _awaitable(Memory.add)
    flush = _awaitable(Memory.flush)
    resume = _awaitable(Memory.resume)
    message = _awaitable(Memory.message)
    retry = _awaitable(Memory.retry)
    search = _awaitable(Memory.search)
    context = _awaitable(Memory.context)
    ask = _awaitable(Memory.ask)
    get = _awaitable(Memory.get)
    list = _awaitable(Memory.list)
    update = _awaitable(Memory.update)
    delete = _awaitable(Memory.delete)
    history = _awaitable(Memory.history)
    journal = _awaitable(Memory.journal)
    recent = _awaitable(Memory.recent)
    undo = _awaitable(Memory.undo)
    proposals = _awaitable(Memory.proposals)
    approve = _awaitable(Memory.approve)
    reject = _awaitable(Memory.reject)
    feedback = _awaitable(Memory.feedback)
    forget = _awaitable(Memory.forget)
    stats = _awaitable(Memory.stats)
    audit = _awaitable(Memory.audit)
    check = _awaitable(Memory.check)
    close = _awaitable(Memory.close)

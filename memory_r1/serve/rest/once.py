"""Idempotency-Key: what a request that may be sent again is known by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Header, Request

from memory_r1.serve.rest.shapes import RowShape
from memory_r1.serve.server.replies import Once
from memory_r1.serve.server.reply import Reply
from memory_r1.serve.server.service import Calls, Service
from memory_r1.types import JournalRow, Owner


async def once_of(
    request: Request,
    caller: Calls,
    idempotency_key: Annotated[
        str,
        Header(
            max_length=256,
            description="Any text; the same request with the same key happens once.",
        ),
    ] = "",
) -> Once:
    """The key of a request and a hash of what it asks."""
    if not idempotency_key:
        return Once("", "", "")
    asked = hashlib.sha256()
    for part in (request.method, request.url.path, request.url.query):
        asked.update(part.encode() + b"\0")
    asked.update(await request.body())
    return Once(idempotency_key, caller.name, asked.hexdigest())


MayRepeat = Annotated[Once, Depends(once_of)]


def changed(
    service: Service, repeat: Once, owner: Owner, change: Callable[[], JournalRow]
) -> Reply:
    """The reply that tells of one operation, done once."""

    def work() -> Reply:
        row = change()
        service.metrics.count([row])
        return Reply(RowShape.of(row))

    return service.replies.once(repeat, owner, work)

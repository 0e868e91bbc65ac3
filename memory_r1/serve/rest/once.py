"""Idempotency-Key: what a request that may be sent again is known by."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Depends, Header, Request

from memory_r1.serve.server.replies import Once
from memory_r1.serve.server.service import Calls


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

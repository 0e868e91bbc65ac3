"""Around every request: no other site's page, no body without end, no reply taken for a page."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_r1.serve.server.problems import problem
from memory_r1.serve.server.settings import Serving, is_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS: Final = 30.0
"""That a body may take to come, and one more for each of these:"""
BODY_BYTES: Final = 100_000
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    # A memory, or a service behind, may hold a page with a script: nothing here is one, except
    # for the inspector's pages, which say what they may do.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware against other sites' pages in the user's browser, and against slow senders.

    A page can send requests to this machine, and a name it controls can be made to point here.
    So a server that listens on this machine only answers to this machine's names, and nothing is
    changed for a page of another origin. Programs send no Origin, and are let through.
    """

    def __init__(self, app: ASGIApp, settings: Serving) -> None:
        self._app, self._private = app, settings.private
        self._names = [name.lower() for name in settings.names]
        self._most = settings.max_body
        self._patience = BODY_SECONDS + settings.max_body / BODY_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on, of whose body no more is read than may be."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        headers = Headers(scope=scope)
        told = headers.get("content-length", "")
        declared = int(told[:18]) if told.isdecimal() else 0
        late, whole, size = time.monotonic() + self._patience, False, 0

        async def in_bounds() -> Message:
            nonlocal whole, size
            if declared > self._most:
                raise HTTPException(413, self._too_long(f"{declared}"))
            if whole:  # what comes now is that the client has gone: may that take long
                return await receive()
            with anyio.move_on_after(max(0.0, late - time.monotonic())):
                message = await receive()
                whole = not message.get("more_body", False)
                size += len(message.get("body", b""))
                if size > self._most:
                    raise HTTPException(413, self._too_long("more"))
                return message
            raise HTTPException(408, "the body did not come in time", {"Connection": "close"})

        async def as_it_says(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers)
        await (problem(403, refusal) if refusal else self._app)(scope, in_bounds, as_it_says)

    def _too_long(self, size: str) -> str:
        return f"a body may have {self._most} bytes here, and this has {size}; see --max-body"

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin", "")
        try:
            address = urlsplit(f"//{host}")
            name, _ = address.hostname or "", address.port  # which raises for one that is none
            from_here = not origin or urlsplit(origin).netloc == host
        except ValueError:
            return f"{host!r} or {origin!r} is no address"
        if self._private and not is_loopback(name) and name not in self._names:
            return f"this server answers to localhost, not to {host!r}; see the option --name"
        if scope["method"] not in _SAFE and not from_here:
            return f"a page of {origin!r} may not change anything here"
        return ""

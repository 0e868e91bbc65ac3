"""What is refused before a request is read: web pages that reach for a server on this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from memory_r1.serve.server.problems import problem
from memory_r1.serve.server.settings import is_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Middleware against other sites' pages in the user's browser.

    A page can send requests to this machine, and a name it controls can be made to point here.
    So a server that listens on this machine only answers to this machine's names, and nothing is
    changed for a page of another origin. Programs send no Origin, and are let through.
    """

    def __init__(self, app: ASGIApp, private: bool) -> None:
        """private: the server listens on this machine only."""
        self._app, self._private = app, private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await problem(403, refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._private and not is_loopback(name):
            return f"this server answers to localhost, not to {host!r}"
        if origin and scope["method"] not in _SAFE and urlsplit(origin).netloc != host:
            return f"a page of {origin!r} may not change anything here"
        return ""

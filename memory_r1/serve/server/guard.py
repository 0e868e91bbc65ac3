"""What is refused before a request is read: web pages that reach for a server on this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_r1.serve.server.problems import problem
from memory_r1.serve.server.settings import Serving, is_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Middleware against other sites' pages in the user's browser.

    A page can send requests to this machine, and a name it controls can be made to point here.
    So a server that listens on this machine only answers to this machine's names, and nothing is
    changed for a page of another origin. Programs send no Origin, and are let through.
    """

    def __init__(self, app: ASGIApp, settings: Serving) -> None:
        self._app, self._private = app, settings.private
        self._names = settings.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def as_it_says(message: Message) -> None:
            """A memory may hold a page with a script: a browser must not take JSON for one."""
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        refusal = self._refusal(scope)
        await (problem(403, refusal) if refusal else self._app)(scope, receive, as_it_says)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            from_here = not origin or urlsplit(origin).netloc == host
        except ValueError:
            return f"{host!r} or {origin!r} is no address"
        if self._private and not is_loopback(name) and name not in self._names:
            return f"this server answers to localhost, not to {host!r}; see the option --name"
        if scope["method"] not in _SAFE and not from_here:
            return f"a page of {origin!r} may not change anything here"
        return ""


def _parts(url: str) -> tuple[str, str]:
    """Name, and name with port, of where a URL leads; "" for what is none."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.netloc
    except ValueError:
        return "", ""

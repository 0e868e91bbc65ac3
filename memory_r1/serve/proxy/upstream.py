"""The OpenAI-compatible service behind the proxy, and what passes to it and back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeVar

import httpx
from starlette.datastructures import Headers
from starlette.requests import Request

from memory_r1.errors import MemoryR1Error
from memory_r1.serve.server.caller import Caller
from memory_r1.serve.server.settings import Serving

_CREDENTIALS: Final = (b"authorization", b"x-api-key")
# Of one connection only, or between a browser and this server.
_OURS: Final = frozenset(
    name.encode()
    for name in (
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("proxy-authorization", "proxy-authenticate", "proxy-connection", "host", "origin"),
        *("content-length", "content-encoding", "accept-encoding", "cookie", "set-cookie"),
        *("forwarded", "referer", "date", "server", "alt-svc", "strict-transport-security"),
        *("location", "x-real-ip", "refresh", "link", "clear-site-data", "service-worker-allowed"),
        *("content-security-policy", "x-content-type-options"),
    )
)
_OUR_PREFIXES: Final = (b"x-memory", b"x-forwarded-", b"access-control-", b"sec-")
# A reply may take as long as OpenAI's client waits.
_TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0, pool=None)
_IDLE_SECONDS: Final = 4.0
"""Less than the five after which many servers close a connection that isn't used."""

MOST_BYTES: Final = 1 << 26
"""Of one reply; a service behind that never ends could take all memory."""
BROKEN: Final = "upstream_broke_off"
CUT: Final = "the reply of the service broke off half-way"
T = TypeVar("T")


class Refused(MemoryR1Error):
    """The proxy can't forward a request. status, code: of the response that says so."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Gone(Refused):
    """The client went away before its reply came; the status is nginx's for this."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "the client went away")


class Upstream:
    """A client of `Serving.upstream` for all requests of one event loop."""

    def __init__(self, settings: Serving) -> None:
        self._url, self._key = settings.upstream.rstrip("/"), settings.upstream_key
        self._shown = settings.upstream_shown
        self._client: httpx.AsyncClient | None = None

    def _connections(self) -> httpx.AsyncClient:
        if not self._url:
            raise Refused(
                *(501, "no_upstream"),
                "this server forwards no chats; start it with  --upstream URL  of an "
                "OpenAI-compatible service, e.g. http://localhost:8000/v1",
            )
        if self._client is None:
            limits = httpx.Limits(keepalive_expiry=_IDLE_SECONDS)
            self._client = httpx.AsyncClient(timeout=_TIMEOUT, limits=limits)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def ask(
        self,
        path: str,
        request: Request,
        caller: Caller,
        body: bytes | None = None,
    ) -> httpx.Response:
        """The response, whose body is yet to be read: whatever the service says, errors too.

        One attempt, since the client has its own; body: None for a GET. Raises Refused when the
        service can't be reached, sends the request elsewhere, or wants a key that isn't known;
        Gone.
        """
        client, query = self._connections(), request.url.query
        sent = client.build_request(
            "GET" if body is None else "POST",
            f"{self._url}/{path}" + (f"?{query}" if query else ""),
            headers=self._sent(request.headers, caller),
            content=body,
        )
        try:
            response = await _while_wanted(request, client.send(sent, stream=True))
        except httpx.TimeoutException as error:
            raise Refused(504, "upstream_timeout", self._failed(error)) from error
        except httpx.TransportError as error:
            raise Refused(502, "upstream_unreachable", self._failed(error)) from error
        if response.is_redirect:
            await response.aclose()
            raise Refused(
                *(502, "upstream_redirects"),
                f"the service at {self._shown} sends requests elsewhere; give its new URL to "
                "--upstream",
            )
        if response.status_code == 401 and caller.key is not None and not self._key:
            await response.aclose()
            raise Refused(
                *(502, "upstream_key_missing"),
                f"the service at {self._shown} wants an API key, and the caller's is for this "
                "server; start it with  --upstream-key",
            )
        return response

    def _sent(self, headers: Headers, caller: Caller) -> list[tuple[bytes, bytes]]:
        # The caller's credentials are for the service behind only where they aren't ours.
        theirs = caller.key is None and not self._key
        sent = [
            (name, value)
            for name, value in _passing(headers.raw)
            if theirs or name not in _CREDENTIALS
        ]
        if self._key:
            sent.append((b"authorization", f"Bearer {self._key}".encode()))
        # Bytes that are passed on as they come can't be compressed for somebody else.
        return [*sent, (b"accept-encoding", b"identity")]

    def _failed(self, error: httpx.TransportError) -> str:
        return f"the service at {self._shown} did not reply ({type(error).__name__}); does it run?"

    async def whole(self, response: httpx.Response, request: Request) -> bytes:
        """What a response holds; Refused when it breaks off or never ends, Gone."""
        try:
            return await _while_wanted(request, self._read(response))
        except httpx.TransportError as error:
            raise Refused(502, BROKEN, CUT) from error
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response) -> bytes:
        parts, size = [], 0
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise Refused(
                    *(502, "upstream_too_long"),
                    f"the service at {self._shown} replied with more than {MOST_BYTES} bytes",
                )
        return b"".join(parts)

    def told(self, data: bytes) -> bytes:
        """What the service says of an error, without the key, which some repeat."""
        return data.replace(self._key.encode(), b"[key]") if self._key else data


async def _while_wanted(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work on a request whose body was read; Gone ends it, and what it costs."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def returned(response: httpx.Response) -> dict[str, str]:
    """The headers that a client is to see: rate limits, the request's id, when to come again."""
    passing = _passing(response.headers.raw)
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in passing}


def _passing(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [
        (name, value)
        for name, value in ((name.lower(), value) for name, value in headers)
        if name not in _OURS and not name.startswith(_OUR_PREFIXES)
    ]

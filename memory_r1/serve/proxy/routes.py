"""/v1/chat/completions, /v1/responses, /v1/models: another service's chats, with memory.

Only these three are forwarded. All errors have OpenAI's shape, since OpenAI's clients read them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from memory_r1.errors import ConfigError, DataError, MemoryR1Error
from memory_r1.serve.proxy.asked import Asked, Field
from memory_r1.serve.proxy.replied import Streamed, text_in
from memory_r1.serve.proxy.upstream import BROKEN, CUT, Gone, Refused, Upstream, returned
from memory_r1.serve.server.caller import Caller
from memory_r1.serve.server.problems import response_to
from memory_r1.serve.server.service import Calls, Serves, Service, ids
from memory_r1.types import Entry, Owner

Wish = Literal["on", "read-only", "off"]
"""What the header X-Memory asks for: add and remember, only add, neither."""
_WISHES: Final[tuple[Wish, ...]] = ("on", "read-only", "off")
_MOST_IDS: Final = 50
_PATHS: Final[Mapping[Field, str]] = {"messages": "chat/completions", "input": "responses"}
_log = logging.getLogger("memory_r1")


def _told(status: int, code: str, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _refusal(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(_told(status, code, message), status, dict(headers or {}))


_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class _Route(APIRoute):
    """A route whose errors have OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except Refused as error:
                # Asking again won't help; OpenAI's clients do unless they are told.
                known = {"x-should-retry": "false"} if error.status == 501 else {}
                return _refusal(error.status, error.code, str(error), known)
            except (DataError, RecursionError) as error:
                told = str(error) if isinstance(error, DataError) else "nested too deeply"
                return _refusal(400, "bad_request", told)
            except MemoryR1Error as error:
                return _translated(error)
            except HTTPException as error:
                return _refusal(error.status_code, "bad_request", error.detail, error.headers)

        return handler


def _translated(error: MemoryR1Error) -> Response:
    problem = response_to(error)
    status, detail = problem.status_code, json.loads(bytes(problem.body))["detail"]
    kept = [name for name in ("www-authenticate", "retry-after") if name in problem.headers]
    headers = {name: problem.headers[name] for name in kept}
    return _refusal(status, _CODES.get(status, "memory_error"), detail, headers)


# OpenAI describes these routes; our document is of what is ours.
routes = APIRouter(prefix="/v1", route_class=_Route, include_in_schema=False)


@routes.get("/models")
async def models(request: Request, caller: Calls) -> Response:
    """The models of the service behind."""
    upstream = _upstream(request)
    response = await upstream.ask("models", request, caller)
    return await _passed(upstream, request, response, {}, None)


@routes.post("/chat/completions")
async def chat(request: Request, service: Serves, caller: Calls) -> Response:
    """A chat completion, whole or streamed."""
    return await _talk(request, service, caller, "messages")


@routes.post("/responses")
async def responses(request: Request, service: Serves, caller: Calls) -> Response:
    """A response, whole or streamed, if the service behind has them."""
    return await _talk(request, service, caller, "input")


def _upstream(request: Request) -> Upstream:
    upstream: Upstream = request.app.state.upstream
    return upstream


@dataclass
class _Turn:
    """One request, and what the memory does for it. Its methods block."""

    service: Service
    asked: Asked
    owner: Owner
    writes: bool
    once: str
    failed: bool = False

    def recall(self) -> Sequence[Entry]:
        """The memories that fit; none when the memory fails: the chat goes on without."""
        if not (query := self.asked.query()):
            return ()
        settings = self.service.settings
        try:
            hits = self.service.memory.search(query, **ids(self.owner), k=settings.k)
        except MemoryR1Error as error:
            self._note(error)
            return ()
        return [hit.entry for hit in hits]

    def hear(self) -> Sequence[str]:
        """Keep what the user said, to be remembered in the background; the messages' ids."""
        return self._keep(self.asked.news(), self.once)

    @property
    def replies(self) -> bool:
        """Whether the model's words are kept too."""
        return self.writes and self.service.settings.remember == "both"

    def hear_reply(self, text: str) -> None:
        """The same with what the model replied, where that is wanted."""
        if self.replies and text.strip():
            self._keep([{"role": "assistant", "content": text}], f"{self.once} reply")

    def _keep(self, said: Sequence[Mapping[str, str]], once: str) -> Sequence[str]:
        if not (self.writes and said):
            return ()
        try:
            kept = self.service.memory.add(said, **ids(self.owner), wait=False, once=once)
        except MemoryR1Error as error:
            self._note(error)
            return ()
        return kept.message_ids

    def _note(self, error: MemoryR1Error) -> None:
        self.failed = True
        _log.error("a chat went on without memory: %s", error)


async def _talk(request: Request, service: Service, caller: Caller, field: Field) -> Response:
    upstream = _upstream(request)
    sent = await request.body()
    asked = Asked.read(sent, field)
    wish, owner = _wish(request), _owner(request, asked, caller)
    if wish == "off" or owner is None:
        told = {"X-Memory": "off" if wish == "off" else "no-user"}
        response = await upstream.ask(_PATHS[field], request, caller, sent)
        return await _passed(upstream, request, response, told, None)
    reading = wish == "read-only" or (caller.key is not None and caller.key.read_only)
    turn = _Turn(
        *(service, asked, owner),
        writes=not reading and service.settings.remember != "none",
        once=_once(request, asked, caller),
    )
    entries = await run_in_threadpool(turn.recall)
    body = asked.recalling(entries, service.settings.place) if entries else sent
    try:
        response = await upstream.ask(_PATHS[field], request, caller, body)
    except Gone:  # who gave up on the reply had said something all the same
        await run_in_threadpool(turn.hear)
        raise
    told = {"X-Memory": "read-only" if reading else "on"}
    if entries:
        told["X-Memory-Used"] = ",".join(quote(entry.id) for entry in entries[:_MOST_IDS])
    try:
        if response.is_success and (kept := await run_in_threadpool(turn.hear)):
            told["X-Memory-Message"] = ",".join(kept[:_MOST_IDS])
    except BaseException:  # a connection to the service that nobody would close
        await response.aclose()
        raise
    if turn.failed:
        told["X-Memory"] = "failed"
    return await _passed(upstream, request, response, told, turn)


def _wish(request: Request) -> Wish:
    given = request.headers.get("x-memory", "on").strip().lower()
    for wish in _WISHES:
        if given == wish:
            return wish
    raise ConfigError(f"X-Memory is {given!r:.80}; expected {', '.join(_WISHES)}")


def _owner(request: Request, asked: Asked, caller: Caller) -> Owner | None:
    """Whose memory is meant, None where nobody is named; Forbidden.

    safety_identifier may be anything that tells users apart, so it says nothing against a key.
    """
    user = _header(request, "x-memory-user") or asked.user
    bound = caller.key is not None and caller.key.user_id is not None
    if not user and not bound:
        user = asked.safety_identifier
    if not user and not bound:
        return None
    return caller.owner(user, _header(request, "x-memory-agent"), _header(request, "x-memory-run"))


def _header(request: Request, name: str) -> str:
    """A header that may be UTF-8, which HTTP's libraries take for Latin-1."""
    value = request.headers.get(name, "").strip()
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _once(request: Request, asked: Asked, caller: Caller) -> str:
    """What this request is known by, should it come again."""
    if key := request.headers.get("idempotency-key"):
        return f"proxy {caller.name} {key}"
    return asked.name(datetime.now(UTC))


async def _passed(
    upstream: Upstream,
    request: Request,
    response: httpx.Response,
    told: Mapping[str, str],
    turn: _Turn | None,
) -> Response:
    """The service's response; what the model said is kept when it is whole."""
    headers = {**returned(response), **told}
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return _Passing(response, headers, turn)
    data = await upstream.whole(response, request)
    if not response.is_success:
        data = upstream.told(data)
    elif turn is not None:
        await run_in_threadpool(turn.hear_reply, text_in(data))
    return Response(data, response.status_code, headers)


class _Passing(StreamingResponse):
    """Events, passed on as they come."""

    def __init__(
        self, response: httpx.Response, headers: Mapping[str, str], turn: _Turn | None
    ) -> None:
        self._response, self._turn = response, turn
        super().__init__(self._chunks(), response.status_code, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, and let go of the service also when the client has gone away."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._response.aclose()

    async def _chunks(self) -> AsyncIterator[bytes]:
        hears = self._turn if self._turn and self._turn.replies else None
        heard = Streamed()
        try:
            async for chunk in self._response.aiter_bytes():
                if hears is not None:
                    heard.take(chunk)
                    if heard.text:  # who sees the end of a reply may count on its being kept
                        await run_in_threadpool(hears.hear_reply, heard.text)
                        hears = None
                yield chunk
        except httpx.TransportError:
            # OpenAI's clients raise what comes as an event.
            yield f"\n\ndata: {json.dumps(_told(502, BROKEN, CUT))}\n\n".encode()

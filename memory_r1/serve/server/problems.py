"""what went wrong -> application/problem+json (RFC 9457): what was expected, seen, and to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from memory_r1.errors import (
    ConfigError,
    Conflict,
    DataError,
    MemoryR1Error,
    MissingExtra,
    ModelUnavailable,
    StoreError,
    UnknownEntry,
    UnknownRow,
)
from memory_r1.serve.server.caller import Forbidden, Unauthorized

TYPE: Final = "application/problem+json"
MOST_FAULTS: Final = 20
"""Faults of one request that are told."""


class Busy(MemoryR1Error):
    """Come again later. seconds: when."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class Unusable(MemoryR1Error):
    """An Idempotency-Key that stands for another request."""


_STATUS: Final[Sequence[tuple[type[MemoryR1Error], int]]] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (UnknownEntry, 404),
    (UnknownRow, 404),
    (Conflict, 409),
    (Unusable, 422),
    (ConfigError, 422),
    (DataError, 422),
    (Busy, 429),
    (MissingExtra, 501),
    (StoreError, 503),
    (ModelUnavailable, 503),
)
"""The first that fits. A model that is out of reach is never an answer, so never a 200."""


class Problem(BaseModel):
    """What went wrong."""

    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no entry '0199'"])
    errors: list[dict[str, Any]] = []
    """Of a request that doesn't fit its schema: where, and what was expected."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses for the OpenAPI document."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def problem(
    status: int,
    detail: str,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The response."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(
        {**body, "errors": list(errors)}, status, dict(headers or {}), media_type=TYPE
    )


def response_to(error: Exception) -> JSONResponse:
    """The response that says what an error of ours is."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = str(error.seconds if isinstance(error, Busy) else 5)
    # Half a surrogate pair, which a caller may have sent, has no UTF-8.
    detail = str(error).encode("utf-8", "replace").decode()
    return problem(status, detail, headers=headers)


def install(app: FastAPI) -> None:
    """Make the app answer with problems."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        return response_to(error)

    async def unfit(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Not what was sent: it may be megabytes, or no JSON; and not all that is wrong with it.
        told = [
            {"where": [str(place)[:80] for place in e["loc"]], "expected": e["msg"]}
            for e in error.errors()[:MOST_FAULTS]
        ]
        places = "; ".join(f"{'.'.join(e['where'])}: {e['expected']}" for e in told[:3])
        return problem(422, f"the request doesn't fit: {places}", told)

    async def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger("memory_r1").error("%r failed", request.url.path, exc_info=error)
        return problem(500, "this is a fault of the server, and its log says more")

    app.add_exception_handler(MemoryR1Error, ours)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unforeseen)

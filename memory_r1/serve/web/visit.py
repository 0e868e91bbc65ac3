"""a request of a browser -> who looks, at whose memories; and what a form must bring with it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import Depends, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from memory_r1.errors import MemoryR1Error
from memory_r1.memory import Memory
from memory_r1.serve.server.caller import Caller, Forbidden, Unauthorized
from memory_r1.serve.server.problems import response_to
from memory_r1.serve.server.service import Service, service_of
from memory_r1.serve.web import page
from memory_r1.types import Owner

_SECRET: Final = secrets.token_bytes(32)
"""Of this process: a form from before a restart has to be loaded again."""


@dataclass(frozen=True)
class Visit:
    """Somebody looks at a page."""

    request: Request
    service: Service
    caller: Caller
    shown: str
    """The key in the cookie; "" without."""

    @property
    def memory(self) -> Memory:
        """The memory that is looked at."""
        return self.service.memory

    @property
    def token(self) -> str:
        """What the forms of this visitor carry, and another site's can't."""
        return token_of(self.shown)

    @property
    def may_write(self) -> bool:
        """Whether buttons are shown."""
        return self.caller.key is None or not self.caller.key.read_only

    @property
    def unbound(self) -> bool:
        """Whether everybody's memories are open, so that what is nobody's may be seen too."""
        return self.caller.key is None or self.caller.key.user_id is None

    def page(self, template: str, status: int = 200, /, **values: object) -> Response:
        """A page; every template also sees the visit."""
        return page.page(template, status, visit=self, **values)


def cookie_of(request: Request) -> str:
    """What the cookie is called that holds the API key somebody signed in with; REST ignores it.

    Browsers send a cookie to every port of its host, and keep one of a name: two servers on a
    machine would sign each other's visitors out.
    """
    return f"memory_r1_key_{request.url.port or ''}".rstrip("_")


def shown_by(request: Request) -> str:
    """The key in the cookie; "" without."""
    return request.cookies.get(cookie_of(request), "")


def token_of(shown: str) -> str:
    """The token of the forms for whoever shows this key."""
    return hmac.new(_SECRET, shown.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def visit_of(request: Request) -> Visit:
    """Who looks; Unauthorized, Busy."""
    service, shown = service_of(request), shown_by(request)
    address = request.client.host if request.client else ""
    return Visit(request, service, service.admit(shown, address), shown)


Visits = Annotated[Visit, Depends(visit_of)]


def known_form(request: Request, token: Annotated[str, Form()] = "") -> None:
    """Forbidden for a form that isn't one of our pages'."""
    # Bytes, since what is compared as text has to be ASCII.
    expected = token_of(shown_by(request)).encode()
    if not hmac.compare_digest(token.encode("utf-8", "replace"), expected):
        raise Forbidden(
            "this form is older than the server, or isn't one of its pages'; load the page again"
        )


def posting(visit: Visits, form: Annotated[None, Depends(known_form)]) -> Visit:
    """Who sends a form; Forbidden as for `known_form`."""
    return visit


def writing(visit: Annotated[Visit, Depends(posting)]) -> Visit:
    """Who changes something; Forbidden with a key that only reads."""
    visit.caller.writing()
    return visit


Posts = Annotated[Visit, Depends(posting)]
Writes = Annotated[Visit, Depends(writing)]


def whose(visit: Visits, user_id: str = "", agent_id: str = "", run_id: str = "") -> Owner:
    """The owner named in a page's address."""
    return visit.caller.owner(user_id, agent_id, run_id)


Whose = Annotated[Owner, Depends(whose)]


def here(path: str) -> str:
    """A path to go back to: of this server, whatever was asked for."""
    ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if ours else "/"


class Page(APIRoute):
    """A route whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with our headers on all that it returns."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except Unauthorized:
                response = _to_sign_in(request)
            except Exception as error:
                response = _sorry(request, error)
            for name, value in page.HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handled


def _to_sign_in(request: Request) -> Response:
    """The sign-in page, which leads back here; a key that opens nothing any more is let go of."""
    path = request.url.path if request.method == "GET" else "/"
    query = f"?{request.url.query}" if request.url.query and request.method == "GET" else ""
    response = RedirectResponse(f"/signin?next={quote(path + query, safe='')}", 303)
    if shown_by(request):  # a cookie that is not sent, since a link elsewhere led here, stays
        response.delete_cookie(cookie_of(request), httponly=True, samesite="strict")
    return response


def _sorry(request: Request, error: Exception) -> Response:
    match error:
        case MemoryR1Error():
            status, detail = response_to(error).status_code, str(error)
        case RequestValidationError():
            told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]]
            status, detail = 422, f"the request doesn't fit: {'; '.join(told)}"
        case HTTPException():
            status, detail = error.status_code, str(error.detail)
        case _:
            logging.getLogger("memory_r1").error("%r failed", request.url.path, exc_info=error)
            status, detail = 500, "this is a fault of the server, and its log says more"
    return page.page("problem.html", status, visit=None, detail=detail, status=status)

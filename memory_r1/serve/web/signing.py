"""/signin, /signout: an API key comes into the browser's cookie, and goes."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from memory_r1.serve.server.caller import Unauthorized
from memory_r1.serve.server.service import service_of
from memory_r1.serve.web import page
from memory_r1.serve.web.changing import Field
from memory_r1.serve.web.visit import Page, cookie_of, here, known_form, shown_by, token_of

routes = APIRouter(route_class=Page, include_in_schema=False)


@routes.get("/signin")
def form(request: Request, next: str = "/") -> Response:
    """A field for a key."""
    return _form(request, here(next))


def _form(request: Request, next: str, wrong: str = "", status: int = 200) -> Response:
    token = token_of(shown_by(request))
    return page.page("signin.html", status, visit=None, token=token, next=next, wrong=wrong)


@routes.post("/signin", dependencies=[Depends(known_form)])
def signin(request: Request, key: Field = "", next: Field = "/") -> Response:
    """Keep a key that opens something; Busy after too many that open nothing."""
    address = request.client.host if request.client else ""
    try:
        caller = service_of(request).admit(key.strip(), address)
    except Unauthorized:
        wrong = "This key opens nothing. It may have been revoked, or not have been copied whole."
        return _form(request, here(next), wrong, 401)
    response = RedirectResponse(here(next), 303)
    if caller.key:
        response.set_cookie(
            cookie_of(request),
            key.strip(),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@routes.post("/signout", dependencies=[Depends(known_form)])
def signout(request: Request) -> Response:
    """Let go of the key."""
    response = RedirectResponse("/signin", 303)
    response.delete_cookie(cookie_of(request), httponly=True, samesite="strict")
    return response

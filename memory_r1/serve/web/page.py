"""a template and values -> a page: escaped, in UTF-8, and closed to everything from elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import Response

import memory_r1
from memory_r1.serve.web.wording import wording
from memory_r1.types import Owner

HEADERS: Final[Mapping[str, str]] = {
    # No inline script or style, nothing from another machine, and no page around ours.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": browsers would then send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CONTROLS = [code for code in range(32) if chr(code) not in "\t\n\r"]
_VISIBLE: Final = {code: 0x2400 + code for code in _CONTROLS} | {127: 0x2421}
"""HTML can't hold control characters: their pictures stand for them."""
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_STATIC: Final = {
    file.name: file.read_bytes()
    for file in files("memory_r1.serve.web").joinpath("static").iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
static = APIRouter(include_in_schema=False)


@static.get("/static/{name}")
def asset(name: str) -> Response:
    """The style sheet, the script, the icon; their address changes with them, so they are kept."""
    if name not in _STATIC:
        raise HTTPException(404)
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_STATIC[name], headers={**HEADERS, **kept, "Content-Type": kind})


def page(template: str, status: int = 200, /, **values: Any) -> Response:
    """A page. What a memory holds is escaped, and can't break the encoding either."""
    html = _ENVIRONMENT.get_template(template).render(**values)
    return HTMLResponse(html.translate(_VISIBLE).encode("utf-8", "replace"), status)


def link(path: str, owner: Owner | None = None, /, **query: object) -> str:
    """An address in the inspector; what is empty is left out."""
    ids = {} if owner is None else vars(owner)
    asked = {name: value for name, value in (ids | query).items() if value not in ("", None, False)}
    return f"{path}?{urlencode(asked, errors='replace')}" if asked else path


def when(moment: datetime | None) -> Markup:
    """A moment in UTC, which the script turns into the reader's own form."""
    if moment is None:
        return Markup("")
    utc = moment.astimezone(UTC)
    exact = f"{utc.isoformat(sep=' ').removesuffix('+00:00')} UTC"
    shown = f"{utc.day} {utc:%b} {utc.year}, {utc:%H:%M}"
    mark = '<time datetime="{}" title="{}">{}</time>'
    return Markup(mark).format(utc.isoformat().replace("+00:00", "Z"), exact, shown)


def clip(text: str, length: int = 400) -> str:
    """The beginning of a text."""
    return text if len(text) <= length else text[:length].rstrip() + " …"


def called(owner: Owner) -> str:
    """An owner in words."""
    parts = [owner.user_id]
    parts += [f"agent {owner.agent_id}"] if owner.agent_id else []
    parts += [f"run {owner.run_id}"] if owner.run_id else []
    return ", ".join(parts)


def _versioned(name: str) -> str:
    return f"/static/{name}?v={hashlib.sha256(_STATIC[name]).hexdigest()[:12]}"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("memory_r1.serve.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"when": when, "clip": clip, "called": called}
    made.globals |= {
        "link": link,
        "static": _versioned,
        "wording": wording,
        "phrase": lambda status: HTTPStatus(status).phrase,
        "as_json": lambda value: json.dumps(value, ensure_ascii=False, indent=1),
        "version": memory_r1.__version__,
    }
    return made


_ENVIRONMENT: Final = _environment()

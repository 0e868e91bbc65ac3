"""The pages at /: what the memory believes, to be seen, corrected and taken back."""

from __future__ import annotations

from fastapi import APIRouter

from memory_r1.serve.web import asking, changing, page, seeing, signing, training

routes = APIRouter()
for part in (
    page.static,
    signing.routes,
    seeing.routes,
    changing.routes,
    asking.routes,
    training.routes,
):
    routes.include_router(part)

"""a memory and its settings -> the application: REST under /v1, mem0's routes under /mem0, ..."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

import memory_r1
from memory_r1.caches import forgettable
from memory_r1.memory import Memory
from memory_r1.serve.mcp.server import Endpoint
from memory_r1.serve.proxy import routes as proxy
from memory_r1.serve.proxy.upstream import Upstream
from memory_r1.serve.rest import mem0, memories, operations, owners
from memory_r1.serve.server import problems
from memory_r1.serve.server.guard import Guard
from memory_r1.serve.server.metrics import Measured
from memory_r1.serve.server.service import Service
from memory_r1.serve.server.settings import Serving
from memory_r1.serve.web import inspector

# Starlette takes each request's URL apart with it, and what was asked stays in its cache.
forgettable(urlsplit, lambda split: split.cache_clear())  # type: ignore[attr-defined]


def build(memory: Memory, settings: Serving | None = None) -> FastAPI:
    """The application that serves a memory, which is closed when the server stops. ConfigError."""
    service = Service(memory, settings or Serving())
    upstream = Upstream(service.settings)
    mcp = Endpoint(service)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        async with mcp.open():
            yield
        await upstream.close()
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="memory-r1",
        version=memory_r1.__version__,
        summary="Long-term memory for LLM agents that a trained agent manages.",
        lifespan=life,
        # Nothing is reported to anybody, whatever is set up in this process.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,  # they load scripts from another machine
        redoc_url=None,
    )
    app.state.service = service
    app.state.upstream = upstream
    problems.install(app)
    for routes in (
        memories.routes,
        operations.routes,
        owners.routes,
        mem0.routes,
        proxy.routes,
        owners.health_routes,
        inspector.routes,
    ):
        app.include_router(routes)
    app.router.routes.append(Route(mcp.path, mcp, methods=["POST"], include_in_schema=False))
    app.add_middleware(Guard, settings=service.settings)
    app.add_middleware(Measured, metrics=service.metrics)
    return app

"""a memory and its settings -> the application: REST under /v1, mem0's routes under /mem0, ..."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

import memory_r1
from memory_r1.memory import Memory
from memory_r1.serve.rest import memories, operations, owners
from memory_r1.serve.server import problems
from memory_r1.serve.server.guard import Guard
from memory_r1.serve.server.metrics import Measured
from memory_r1.serve.server.service import Service
from memory_r1.serve.server.settings import Serving


def build(memory: Memory, settings: Serving | None = None) -> FastAPI:
    """The application that serves a memory, which is closed when the server stops. ConfigError."""
    service = Service(memory, settings or Serving())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="memory-r1",
        version=memory_r1.__version__,
        summary="Long-term memory for LLM agents that a trained agent manages.",
        lifespan=life,
        max_body_size=service.settings.max_body,
        # Nothing is reported to anybody, whatever is set up in this process.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,  # they load scripts from another machine
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    for routes in (memories.routes, operations.routes, owners.routes, owners.health_routes):
        app.include_router(routes)
    app.add_middleware(Guard, private=service.settings.private)
    app.add_middleware(Measured, metrics=service.metrics)
    return app

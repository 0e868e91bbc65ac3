"""What Prometheus reads: requests, how long they took, what was done to memories, what waits."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_r1.types import JournalRow

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "memory_r1_requests",
            "Requests, by route and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "memory_r1_request_seconds",
            "How long they took.",
            ("method", "route"),
            registry=registry,
            buckets=_SECONDS,
        )
        self.open = Gauge("memory_r1_open_requests", "Being worked on.", registry=registry)
        self.operations = Counter(
            "memory_r1_operations", "What was done to memories.", ("op",), registry=registry
        )

        self.waiting = Gauge(
            "memory_r1_waiting_owners",
            "Whose messages wait to be processed, or for a model to be tried again.",
            registry=registry,
        )

    def count(self, rows: Iterable[JournalRow]) -> None:
        """Count operations."""
        for row in rows:
            self.operations.labels(row.op).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class Measured:
    """Middleware that counts and times requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        with self._metrics.open.track_inprogress():
            try:
                await self._app(scope, receive, noting)
            finally:
                # The route, not the path: ids in labels would be a series each.
                route = getattr(scope.get("route"), "path", "other")
                took = time.perf_counter() - began
                self._metrics.requests.labels(scope["method"], route, status).inc()
                self._metrics.seconds.labels(scope["method"], route).observe(took)

"""`memory-r1 serve`: listen, say where, and stop without losing anything."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from memory_r1.errors import ConfigError
from memory_r1.memory import Memory
from memory_r1.serve.server.app import build
from memory_r1.serve.server.connection import Connection
from memory_r1.serve.server.keys import Keys
from memory_r1.serve.server.settings import Serving


def run(memory: Memory, settings: Serving, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then requests get `drain` seconds to finish in.

    ConfigError when other machines could reach it and there is no key, or the address is taken.
    """
    keys = Keys(memory.store).in_use()
    if not settings.private and not keys:
        memory.close()
        raise ConfigError(
            f"other machines can reach {settings.host}, and the store has no API key; make one "
            "first:  memory-r1 keys create NAME"
        )
    config = configured(build(memory, settings), settings)
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"memory-r1 on http://{shown}:{port}  (inspector: /, REST: /v1, MCP: /mcp)")
        if settings.upstream:
            say(f"chats go on to {settings.upstream_shown}")
        say(
            "an API key is needed"
            if keys
            else "no API keys are in use: open to all on this machine"
        )
        # uvicorn raises a signal again when it has stopped for it; that end is a good one.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        uvicorn.Server(config).run(sockets=[listener])


def configured(app: FastAPI, settings: Serving) -> uvicorn.Config:
    """How uvicorn is to serve the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.drain,
        server_header=False,
    )


def _listening(settings: Serving) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"can't listen on {settings.host}:{settings.port}: {error}; choose another with --host "
            "and --port"
        ) from error

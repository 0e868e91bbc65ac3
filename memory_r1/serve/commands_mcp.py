"""memory-r1 mcp: the memory as tools for a program that starts it."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from memory_r1.errors import MissingExtra
from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    DEFAULT_USER,
    Llm,
    Store,
    User,
    open_memory,
)
from memory_r1.types import Policy


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(mcp)


def mcp(
    user: User = DEFAULT_USER,
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    agent: Annotated[str, typer.Option(help="Only the memory of this agent.")] = "",
    profile: Annotated[
        str, typer.Option(help="Names of the tools: memory-r1 (our own) or openmemory.")
    ] = "memory-r1",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Offer only the tools that change nothing.")
    ] = False,
    policy: Annotated[Policy, typer.Option(help="Which operations wait for approval.")] = "auto",
) -> None:
    """Offer the memory as MCP tools on stdin and stdout, to the program that starts this.

    With --user "" every call has to say whose memory it means. For many programs at a time, and
    for other machines: memory-r1 serve, which offers the same tools at /mcp.
    """
    try:
        from memory_r1.serve.mcp.server import bound, run_stdio
        from memory_r1.serve.server.caller import Caller
    except ImportError as error:
        raise MissingExtra("MCP", error.name or "mcp", "serve") from error
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)  # stdout is the protocol's
    # The thread that reads stdin can't be interrupted; what was acknowledged is in the store.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    caller = bound(Caller(), (user, agent, ""), read_only)
    run_stdio(open_memory(store, llm, policy=policy), caller, profile)

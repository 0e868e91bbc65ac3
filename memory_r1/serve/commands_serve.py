"""memory-r1 serve, keys: the memory as a service, and who may call it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from memory_r1.errors import MissingExtra
from memory_r1.serve.console import (
    DEFAULT_LLM,
    DEFAULT_STORE,
    AsJson,
    Llm,
    Store,
    answer,
    answer_json,
    explain,
    open_memory,
)
from memory_r1.serve.server.settings import Placed, Remembered, Serving
from memory_r1.types import Policy

if TYPE_CHECKING:
    from memory_r1.serve.server.keys import Key, Keys
    from memory_r1.store import Store as Kept

_TOLD = ("name", "made", "user_id", "agent_id", "run_id", "read_only")
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys of a store.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(serve)
    app.add_typer(keys_app, name="keys")


def serve(
    store: Store = DEFAULT_STORE,
    llm: Llm = DEFAULT_LLM,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8700,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another name it is reached by, through a proxy on this machine."),
    ] = None,
    upstream: Annotated[
        str,
        typer.Option(
            help="OpenAI-compatible service that chats are forwarded to: http://localhost:8000/v1.",
            envvar="MEMORY_R1_UPSTREAM",
        ),
    ] = "",
    upstream_key: Annotated[
        str,
        typer.Option(help="API key for it.", envvar="MEMORY_R1_UPSTREAM_KEY", show_envvar=True),
    ] = "",
    remember: Annotated[
        Remembered, typer.Option(help="Whose words of a chat are remembered: user, both or none.")
    ] = "user",
    k: Annotated[int, typer.Option("--k", min=1, help="Memories that are added to a chat.")] = 10,
    place: Annotated[
        Placed,
        typer.Option(
            help="As what: a system message, or a part of the user's, for models that take a "
            "system message only at the beginning."
        ),
    ] = "system",
    policy: Annotated[Policy, typer.Option(help="Which operations wait for approval.")] = "auto",
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of one request.")] = 4_194_304,
    rate: Annotated[
        str, typer.Option(help='Requests of one caller, e.g. 20/second; "": as many as come.')
    ] = "1000/second",
    retry_every: Annotated[
        float, typer.Option(min=0, help="Seconds between tries of what was deferred; 0: never.")
    ] = 300.0,
    drain: Annotated[
        int, typer.Option(min=0, help="Seconds that requests get to finish in at the end.")
    ] = 30,
    runs: Annotated[str, typer.Option(help="Folder of training runs to show.")] = "",
) -> None:
    """Serve the memory over HTTP: REST, an OpenAI-compatible proxy, MCP, and a page to look at it.

    On this machine it needs no key while the store has none; on any other address it does:
    memory-r1 keys create.
    """
    settings = Serving(
        host=host,
        port=port,
        names=tuple(name or ()),
        upstream=upstream,
        upstream_key=upstream_key,
        remember=remember,
        k=k,
        place=place,
        max_body=max_body,
        rate=rate,
        retry_every=retry_every,
        drain=drain,
        runs=runs,
    )
    try:
        from memory_r1.serve.server.run import run
    except ImportError as error:
        raise MissingExtra("the server", error.name or "fastapi", "serve") from error
    with suppress(KeyboardInterrupt):  # which is how a server in a terminal is stopped
        run(open_memory(store, llm, policy=policy), settings, say=explain)


def _keys(store: Kept) -> Keys:
    from memory_r1.serve.server.keys import Keys

    return Keys(store)


def _told(key: Key) -> dict[str, object]:
    return {"id": key.id, **{name: getattr(key, name) for name in _TOLD}}


@keys_app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, to tell keys apart.")] = "",
    user: Annotated[
        str, typer.Option(help="The one user whose memory it opens; everybody's by default.")
    ] = "",
    agent: Annotated[str, typer.Option(help="Only the memory of this agent.")] = "",
    run: Annotated[str, typer.Option(help="Only the memory of this run.")] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Changes nothing.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it; it is shown this once, and kept as a hash."""
    with open_memory(store) as memory:
        key, shown = _keys(memory.store).create(
            name,
            user_id=user or None,
            agent_id=agent or None,
            run_id=run or None,
            read_only=read_only,
        )
    if as_json:
        answer_json({"key": shown, **_told(key)})
    else:
        answer(shown)
        explain("Keep it now: it can't be shown again. Callers send  Authorization: Bearer KEY")


@keys_app.command("list")
def list_keys(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Print the keys of a store, without what their holders show."""
    with open_memory(store) as memory:
        every = _keys(memory.store).all()
    if as_json:
        answer_json([_told(key) for key in every])
        return
    for key in every:
        bound = "/".join(part for part in (key.user_id, key.agent_id, key.run_id) if part)
        only = ", read only" if key.read_only else ""
        answer(f"{key.id}  {key.made:%Y-%m-%d}  {bound or 'everybody'}{only}  {key.name}".rstrip())
    if not every:
        explain("no keys: the server listens on this machine only, and is open to all on it")


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of a key, as `keys list` prints it.")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Make a key open nothing from now on."""
    with open_memory(store) as memory:
        _keys(memory.store).revoke(key_id)
    explain(f"key {key_id} opens nothing any more")

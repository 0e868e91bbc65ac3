"""`memory-r1 world` and `memory-r1 data`: make a synthetic benchmark, and look into any file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from memory_r1.data import describe, table
from memory_r1.data.world import WorldConfig, WorldWords, write
from memory_r1.errors import ConfigError
from memory_r1.serve.console import AsJson, answer, answer_json


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(world)
    app.command()(data)


def world(
    out: Annotated[Path, typer.Option(help="The file to write, e.g. world.json.")],
    seed: Annotated[
        int, typer.Option(help="Same seed and dials, same file, byte for byte.")
    ] = WorldConfig.seed,
    dialogues: Annotated[int, typer.Option(help="How many dialogues.")] = WorldConfig.dialogues,
    sessions: Annotated[int, typer.Option(help="Sessions per dialogue.")] = WorldConfig.sessions,
    words: Annotated[
        str,
        typer.Option(
            help="Names and values: train (known from training), unseen (held out from it), or "
            "mixed (half of them invented)."
        ),
    ] = WorldConfig.words,
    threads: Annotated[int, typer.Option(help="Topics per speaker.")] = WorldConfig.threads,
    friends: Annotated[
        int, typer.Option(help="Further people who are told of: distractors.")
    ] = WorldConfig.friends,
    chat: Annotated[
        float, typer.Option(help="Share of turns answered with chit-chat, 0 to 1.")
    ] = WorldConfig.chat,
    absent: Annotated[
        int, typer.Option(help="Questions per dialogue that it doesn't answer.")
    ] = WorldConfig.absent,
    force: Annotated[bool, typer.Option("--force", help="Write over the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a synthetic benchmark whose difficulties are labelled.

    It is a file in LoCoMo's format. `memory-r1 bench world --data OUT` plays it; docs/world.md
    describes it.
    """
    config = WorldConfig(
        seed=seed,
        dialogues=dialogues,
        sessions=sessions,
        words=cast(WorldWords, words),  # WorldConfig refuses others, in a sentence
        threads=threads,
        friends=friends,
        chat=chat,
        absent=absent,
    )
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already; give another --out, or --force to write over it")
    written = write(config, out)
    if as_json:
        answer_json({"file": out, **written})
    else:
        counts = ", ".join(f"{count:,} {name}" for name, count in written.items())
        answer(f"{out}: {counts}")


def data(
    file: Annotated[Path, typer.Argument(help="E.g. locomo10.json or a world.", metavar="FILE")],
    as_json: AsJson = False,
) -> None:
    """Show what a benchmark FILE holds, and what is irregular in it."""
    description = describe(file)
    if as_json:
        answer_json(description)
    else:
        answer(table(description))

"""`memory-r1 world` and `memory-r1 data`: make a synthetic benchmark, and look into any file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, cast

import typer

from memory_r1.data import BENCHMARKS, Dialogue, describe, jsonl, stream, table
from memory_r1.data.world import WorldConfig, WorldWords, write
from memory_r1.errors import ConfigError, DataError
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
    _refuse_to_lose(out, "--out", force)
    _show_written(out, write(config, out), as_json)


def data(
    file: Annotated[
        Path, typer.Argument(help="E.g. locomo10.json, a world, your own.jsonl.", metavar="FILE")
    ],
    format: Annotated[
        str | None,
        typer.Option(help=f"What FILE is: {', '.join(BENCHMARKS)}. Seen from FILE if not given."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every dialogue and irregular record.")
    ] = False,
    to_jsonl: Annotated[
        Path | None,
        typer.Option(help="Write its dialogues as plain JSON lines, see docs/data.md."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over that file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a benchmark FILE holds and what is irregular in it, or rewrite it as JSON lines."""
    if to_jsonl is not None:
        _rewrite(file, format, to_jsonl, force, as_json)
        return
    description = describe(file, format)
    if as_json:
        answer_json(description)
    else:
        answer(table(description, everything))


def _rewrite(file: Path, format: str | None, out: Path, force: bool, as_json: bool) -> None:
    """Write a file's dialogues as JSON lines, all of them or no file; one at a time in memory."""
    _refuse_to_lose(out, "--to-jsonl", force)
    counts = {"dialogues": 0, "turns": 0, "questions": 0, "lines": 0}

    def counted() -> Iterator[Dialogue]:
        for dialogue in stream(file, format):
            counts["dialogues"] += 1
            counts["turns"] += len(dialogue.turns)
            counts["questions"] += len(dialogue.questions)
            yield dialogue

    draft = out.with_name(f"{out.name}.part")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as written:
            for text in jsonl.texts(counted()):
                counts["lines"] += text.count("\n")
                written.write(text)
        draft.replace(out)
    except OSError as error:
        raise DataError(f"{out} can't be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    _show_written(out, counts, as_json)


def _refuse_to_lose(out: Path, option: str, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(
            f"{out} exists already; give another {option}, or --force to write over it"
        )


def _show_written(out: Path, counts: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        answer_json({"file": out, **counts})
    else:
        answer(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))

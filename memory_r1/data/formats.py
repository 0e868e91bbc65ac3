"""The formats that are read, and which of them a file is.

A new benchmark is a module that makes a `Format`, and its line in `FORMATS`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from memory_r1.data import jsonl, locomo, longmemeval, msc
from memory_r1.data.dialogues import Dialogue, Report
from memory_r1.data.reading import Format, check, first_record
from memory_r1.errors import DataError

FORMATS: Final = (
    locomo.FORMAT,
    locomo.WORLD,
    longmemeval.FORMAT,
    msc.FORMAT,
    jsonl.FORMAT,
)
BENCHMARKS: Final = tuple(format.name for format in FORMATS)
"""What `format` may be: locomo, world, longmemeval, msc, jsonl."""


def stream(
    path: str | Path, format: str | None = None, report: Report | None = None
) -> Iterator[Dialogue]:
    """The dialogues of a benchmark file, one at a time where its format allows.

    format: one of `BENCHMARKS`; None looks at the file. Plain JSON lines are taken for any, since
    every file can be written as such; so is LoCoMo's form for a world.
    report: receives the irregularities met, as far as was read; None drops them.
    Raises DataError when the file is missing, is something else, or a record can't be mended;
    MissingExtra when it can't be read without a package that isn't installed.
    """
    path = Path(path)
    return recognise(path, format).stream(path, Report() if report is None else report)


def load(
    path: str | Path, format: str | None = None, report: Report | None = None
) -> list[Dialogue]:
    """Read a benchmark file as a whole; takes and raises what `stream` does."""
    return list(stream(path, format, report))


def find(benchmark: str) -> Path:
    """The distributed file of a benchmark, in MEMORY_R1_DATA, here, or in ./data; DataError."""
    wanted = _named(benchmark)
    folders = [Path(os.environ["MEMORY_R1_DATA"])] if "MEMORY_R1_DATA" in os.environ else []
    folders += [Path(), Path("data")]
    for folder in folders:
        for name in wanted.files:
            if (folder / name).is_file():
                return folder / name
    looked = f"no {' or '.join(wanted.files)} in MEMORY_R1_DATA, here or in data; "
    raise DataError(
        f"which file? {looked if wanted.files else ''}give it with --data; {wanted.source}"
    )


def recognise(path: Path, format: str | None = None) -> Format:
    """What a file is; DataError where it isn't the format it is said to be, or none at all."""
    asked = None if format is None else _named(format)
    check(path, _guess(path) if asked is None else asked.source)
    record = first_record(path)
    found = None
    if isinstance(record, dict):
        found = next((format for format in FORMATS if format.fits(record)), None)
    if asked is None:
        return found or _unknown(path, record)
    if found is None or found.stream is asked.stream:
        return asked
    if found is jsonl.FORMAT:
        return found
    raise DataError(f"{path} is {found.a_file}, not {asked.title}; {asked.source}")


def _named(name: str) -> Format:
    for format in FORMATS:
        if format.name == name:
            return format
    near = difflib.get_close_matches(name, BENCHMARKS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BENCHMARKS)}"
    raise DataError(f"unknown data format {name!r}; {hint}")


def _guess(path: Path) -> str:
    """Where a file that isn't there is had, as far as its name tells."""
    name = path.name.lower()
    return next((format.source for format in FORMATS if name.startswith(format.name)), "")


def _unknown(path: Path, record: object) -> Format:
    """Who reads a file that looks like none of the formats, to say what is wrong with it."""
    if isinstance(record, dict):
        keys = ", ".join(map(repr, list(record)[:6])) or "nothing"
        raise DataError(
            f"{path} is no benchmark file that is known: its first record holds {keys}; expected "
            f"{', '.join(format.title for format in FORMATS)} ({jsonl.DOCUMENT})"
        )
    if record is None and path.suffix in (".jsonl", ".ndjson"):
        return jsonl.FORMAT
    return locomo.FORMAT

"""What all formats share: reading a file, saying what is wrong with it, and with a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memory_r1.data.dialogues import Dialogue, Report
from memory_r1.errors import DataError, MissingExtra

DEEPEST: Final = 100
"""Levels of nesting after which a streamed file is refused; dialogues need about six."""
_FIRST_LOOK: Final = 1 << 16
_LAST_LOOK: Final = 1 << 26
"""Bytes within which the first record must end for a file to be recognised."""
_JSON_NAMES: Final = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Format:
    """A kind of benchmark file. A new one is a module that makes one, and a line in `FORMATS`."""

    name: str
    """What the command line calls it, e.g. "longmemeval"."""
    title: str
    """What people call it, e.g. "LongMemEval"."""
    a_file: str
    """E.g. "a LongMemEval file"."""
    source: str
    """A sentence without its full stop: where users get the file, and under which licence."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a file whose first record this is may be one."""
    stream: Callable[[Path, Report], Iterator[Dialogue]]
    """The dialogues of a file that `check` has passed, one after the other."""
    files: tuple[str, ...] = ()
    """What the distributed file is called, the one that is played by default first."""


def check(path: Path, source: str = "") -> None:
    """Refuse, with a DataError, what its first bytes already show to be no benchmark file.

    source: said where the file is missing, so that users know where to get it.
    """
    where = f"; {source}" if source else ""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise DataError(f"no file {path}{where}") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        raise DataError(f"{path} is compressed; unpack it first")
    if b"\0" in head:
        raise DataError(f"{path} is not text, so not the JSON expected{where}")
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself; run:  git lfs pull")
    if text.startswith("<"):
        raise DataError(f"{path} is a web page; download the raw file instead{where}")
    if not text and len(head) < 4096:
        raise DataError(f"{path} is empty{where}")


def first_record(path: Path) -> object:
    """The first JSON value of a file, or of the list that it is; None where that can't be told."""
    size = _FIRST_LOOK
    while True:
        with path.open("rb") as file:
            start = file.read(size)
        text = start.decode("utf-8-sig", "ignore").lstrip()
        if text.startswith("["):
            text = text[1:].lstrip()
        try:
            record: object = json.JSONDecoder().raw_decode(text)[0]
            return record
        except RecursionError:
            return None
        except ValueError:
            if len(start) < size or size >= _LAST_LOOK:
                return None
        size *= 8


def whole(path: Path, source: str) -> Any:
    """The JSON of a file that fits into memory."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text, so not the JSON expected; {source}") from None
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise _too_deep(path) from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise _cut_short(path, f"{len(text):,} characters") from None
        raise DataError(f"{path} is not JSON: {error}") from None
    except ValueError as error:  # of _refuse
        raise DataError(f"{path} is not JSON: {error}") from None


def items(path: Path, feature: str, source: str) -> Iterator[Any]:
    """The values of a list, or of JSON lines, of any length: one at a time is in memory.

    Raises MissingExtra without ijson, `feature` saying what for. Fractions come as Decimal.
    """
    try:
        import ijson
    except ImportError:
        raise MissingExtra(feature, "ijson", "bench") from None
    depth, listed, builder = 0, False, ijson.ObjectBuilder()
    try:
        with path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            # Not ijson.items: it keeps the path to every value, which grows with the square of
            # the nesting, and a file of brackets would take all memory.
            for event, value in ijson.basic_parse(file, multiple_values=True):
                if depth == 0 and event == "start_array" and not listed:
                    listed = True
                    continue
                if depth == 0 and event == "end_array":
                    continue
                if depth == 0:
                    builder = ijson.ObjectBuilder()
                depth += event.startswith("start_") - event.startswith("end_")
                if depth > DEEPEST:
                    raise _too_deep(path)
                builder.event(event, value)
                if depth == 0:
                    yield builder.value
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError:  # half a surrogate pair in the name of a field
        raise DataError(f"{path} is not text, so not the JSON expected; {source}") from None
    except ijson.JSONError as error:
        seen = str(error).strip("b'\"").split("\\n")[0].split("\n")[0]
        if "premature EOF" in seen or "ncomplete" in seen:
            raise _cut_short(path, f"{path.stat().st_size:,} bytes") from None
        if "UTF8" in seen:
            raise DataError(f"{path} is not text, so not the JSON expected; {source}") from None
        raise DataError(f"{path} is not JSON: {seen}") from None
    if depth:
        raise _cut_short(path, f"{path.stat().st_size:,} bytes")


def _too_deep(path: Path) -> DataError:
    return DataError(f"{path} is nested too deeply to be a dialogue file")


def _cut_short(path: Path, length: str) -> DataError:
    return DataError(
        f"{path} breaks off after {length}: the download was cut short; fetch it again"
    )


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, blank ones too; only a line feed ends a line."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def objects(written: Iterable[str], name: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a file called `name` that isn't blank."""
    for number, line in enumerate(written, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: not JSON ({error}); {source}") from None
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}: expected an object in braces; {source}")
        yield number, record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def needed(record: Any, name: str, expected: type, where: str) -> Any:
    """A field of a record; DataError says which record lacks it."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, found {type(record).__name__}")
    if name not in record:
        raise DataError(f"{where}: {name!r} is missing")
    if not isinstance(record[name], expected) or isinstance(record[name], bool):
        raise DataError(
            f"{where}: {name!r} should be {_JSON_NAMES[expected]}, "
            f"found {type(record[name]).__name__}"
        )
    return record[name]


def named(record: Any, name: str, where: str) -> str:
    """The field that names a record, a text that isn't empty; DataError where it lacks one."""
    if not (value := needed(record, name, str, where)):
        raise DataError(f"{where}: {name!r} is empty")
    return str(value)


def fresh(name: str, taken: set[str], where: str, report: Report) -> str:
    """The name, or `name#2` and so on where it is taken; it is taken from then on."""
    chosen, count = name, 1
    while chosen in taken:
        count += 1
        chosen = f"{name}#{count}"
    if chosen != name:
        report.add(where, f"the id {name!r} occurs again", f"kept as {chosen!r}")
    taken.add(chosen)
    return chosen

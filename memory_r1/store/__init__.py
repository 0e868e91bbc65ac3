"""Where memories live: the Store protocol, and open_store(path or URL)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memory_r1.errors import StoreError
from memory_r1.store.counts import Counts
from memory_r1.store.ids import new_id
from memory_r1.store.index import Index
from memory_r1.types import (
    Entry,
    Feedback,
    JournalRow,
    Message,
    MessageState,
    Owner,
    Record,
    RowState,
)

__all__ = ["Counts", "Index", "Store", "Vector", "file_of", "new_id", "open_store"]

Vector = NDArray[np.float32]
"""(d,) one embedding."""


@runtime_checkable
class Store(Protocol):
    """Where entries live. A backend is whatever passes tests/test_store.py.

    Everything belongs to one owner and is only found under that owner. An id has a line of
    versions; its last one is the entry, and it is current until its `superseded` is set. Moments
    are UTC. What is handed out is never changed by a later write. Any method raises StoreError
    when the storage fails.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """All writes inside happen, or none; others see them only at the end.

        Nested: a failed inner block takes back its own writes, a finished one joins the outer.
        """
        ...

    def put(self, entry: Entry, vector: Vector) -> None:
        """Make `entry` the last version of its id, current unless superseded.

        A version one above the last is appended, an existing one is replaced and the versions
        after it are dropped. StoreError for a version that would leave a gap, for metadata that
        JSON can't hold exactly, and for a vector that isn't one row of finite numbers.
        """
        ...

    def remove(self, owner: Owner, entry_id: str) -> None:
        """Drop an id with all its versions, as if never added. UnknownEntry if not here."""
        ...

    def get(self, owner: Owner, entry_id: str) -> Entry:
        """The last version of an id, current or superseded. UnknownEntry if not here."""
        ...

    def entries(self, owner: Owner, superseded: bool = False) -> list[Entry]:
        """The current entries, oldest (lowest id) first; the superseded ones too when asked."""
        ...

    def versions(self, owner: Owner, entry_id: str) -> list[Entry]:
        """How an entry read over time, first version first. UnknownEntry if not here.

        Each version but the last is superseded at the moment the next one was stored.
        """
        ...

    def vector(self, owner: Owner, entry_id: str, version: int | None = None) -> Vector:
        """The (d,) float32 vector of a version, by default the last. UnknownEntry if not here."""
        ...

    def index(self, owner: Owner) -> Index:
        """The current entries in columns, with all writes so far, also of other processes."""
        ...

    def add_message(self, message: Message) -> None:
        """Keep a raw turn. StoreError when its id is taken, or its metadata isn't JSON."""
        ...

    def messages(self, owner: Owner, state: MessageState | None = None) -> list[Message]:
        """The messages, in the order they were added; of one state when asked."""
        ...

    def message(self, owner: Owner, message_id: str) -> Message:
        """One message. UnknownRow if not here."""
        ...

    def set_message(self, message: Message, was: Message | None = None) -> bool:
        """Replace the message of this id. UnknownRow if not here.

        was: only if it is still in this one's state since the same moment; else nothing is
        written and the result is False. That is how one of several processes claims a message.
        """
        ...

    def waiting(self) -> list[Owner]:
        """Everyone with messages that are not done."""
        ...

    def add_journal(self, row: JournalRow) -> None:
        """Append what one operation did. StoreError when its id is taken."""
        ...

    def journal(self, owner: Owner, entry_id: str | None = None) -> list[JournalRow]:
        """The journal, in the order it was written; of one entry when asked."""
        ...

    def journal_page(
        self, owner: Owner, *, after: str = "", before: str = "", limit: int | None = None
    ) -> list[JournalRow]:
        """The rows with ids between two, those with the highest ids first; "": no bound."""
        ...

    def journal_row(self, owner: Owner, journal_id: str) -> JournalRow:
        """One row of the journal. UnknownRow if not here."""
        ...

    def mark(self, owner: Owner, journal_id: str, state: RowState) -> None:
        """Note what became of a row. UnknownRow if not here."""
        ...

    def add_feedback(self, feedback: Feedback) -> None:
        """Keep what somebody said of an answer. StoreError when its id is taken."""
        ...

    def feedback(self, owner: Owner) -> list[Feedback]:
        """What was said of answers, in the order it was added."""
        ...

    def get_meta(self, key: str) -> str | None:
        """A fact about the store itself, e.g. its embedder; None if never set."""
        ...

    def set_meta(self, key: str, value: str) -> None:
        """Set a fact about the store itself."""
        ...

    def put_record(self, record: Record, new: bool = False) -> bool:
        """Keep a record in place of the one of its kind and key.

        new: only if there is none; else nothing is written and the result is False. StoreError
        for a body that JSON can't hold.
        """
        ...

    def record(self, kind: str, key: str) -> Record | None:
        """The record of a kind and key, if there is one."""
        ...

    def records(self, kind: str) -> list[Record]:
        """All records of a kind, by key."""
        ...

    def drop_records(
        self, kind: str, *, key: str | None = None, before: datetime | None = None
    ) -> int:
        """Drop the records of a kind, of one key or older than a moment; returns how many."""
        ...

    def owners(self, user_id: str | None = None) -> list[Owner]:
        """Everyone who has anything in the store; of one user when asked."""
        ...

    def counts(self, user_id: str | None = None) -> Counts:
        """How much everyone has; those of one user when asked. No text leaves the storage."""
        ...

    def holding(self, entry_id: str) -> list[Owner]:
        """Everyone who has an entry of this id, current or superseded: nobody or one, as a rule."""
        ...

    def problems(self) -> list[str]:
        """What is broken in how the store keeps things, a line each; none when it is sound."""
        ...

    def forget(self, owner: Owner) -> dict[str, int]:
        """Erase all of an owner: the one true erasure.

        Returns how many entries, versions, vectors, journal rows, messages, feedback and records
        are gone.
        """
        ...

    def fork(self, owner: Owner) -> Store:
        """A copy in RAM of what one owner has, and of the meta; never writes back."""
        ...

    def close(self) -> None:
        """Let go of files and connections; a closed store can't be used."""
        ...


def file_of(location: str) -> Path | None:
    """The file that `open_store` opens or makes; None for a location that has none."""
    text = location.removeprefix("sqlite:///")
    if text == location and ("://" in text or text in ("", "ram:", ":memory:")):
        return None
    return Path(text.partition("?")[0] if text != location else text).expanduser()


def open_store(location: str | os.PathLike[str]) -> Store:
    """Open a store.

    A path or "sqlite:///path": one SQLite file; with "?synchronous=full" behind the URL it
    survives a loss of power too, not only of the process. "postgresql://user@host/database": a
    database with pgvector, for several machines. "ram:": gone at exit.
    Raises StoreError when it can't be opened, with what to do.
    """
    from memory_r1.store.ram import RamStore
    from memory_r1.store.sqlite import SqliteStore

    text = os.fspath(location)
    if text == "ram:":
        return RamStore()
    if text.startswith("sqlite:///") and text != "sqlite:///":
        path, _, options = text.removeprefix("sqlite:///").partition("?")
        if options not in ("", "synchronous=full", "synchronous=normal"):
            raise StoreError(f"unknown option {options!r} in {text!r}; expected synchronous=full")
        return SqliteStore(Path(path), power_safe=options == "synchronous=full")
    if text.startswith(("postgresql://", "postgres://")):
        from memory_r1.store.postgres import PostgresStore

        return PostgresStore(text)
    if not text or text == ":memory:" or "://" in text:
        raise StoreError(
            f"{text!r} is not a store; expected a path such as 'memory.db', "
            "'sqlite:///memory.db', 'postgresql://localhost/memory' or 'ram:'"
        )
    return SqliteStore(Path(text))

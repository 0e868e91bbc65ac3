"""Records of another memory system -> entries; see `readers` for where they come from.

Text, times and metadata stay as they were, the metadata says where an entry came from, and what
has been brought before is left as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from memory_r1 import extract
from memory_r1.bank import Bank
from memory_r1.compat.banks import bank_of
from memory_r1.memory import Memory
from memory_r1.types import Add, Owner, Turn, Update

FROM: Final = "imported_from"
ID: Final = "imported_id"
"""What tells in the metadata where an entry came from."""
_BATCH: Final = 256
Progress = Callable[[int, int], None]
"""Called with how many records are done, of how many."""


@dataclass(frozen=True)
class Record:
    """One memory of another system."""

    source: str
    """Which system: mem0, letta, langgraph."""
    id: str
    """What it was called there."""
    owner: Owner
    versions: tuple[tuple[str, datetime | None], ...]
    """What it said, and from when on, first to last; None: from now on."""
    said: datetime | None = None
    speaker: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expires: datetime | None = None


@dataclass(frozen=True)
class Said:
    """One message of a conversation, which the memory's own agents are to read."""

    source: str
    id: str
    owner: Owner
    turn: Turn
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a reader found."""

    records: list[Record | Said] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """What has no place here, by reason."""


@dataclass(frozen=True)
class Receipt:
    """What an import did, or with dry_run would do."""

    memories: int = 0
    """Entries written; of a message that a model is to read, none yet."""
    messages: int = 0
    """Messages that went to the memory's agents."""
    known: int = 0
    """Brought before, and left as they are."""
    deferred: int = 0
    """Messages that a model failed at; they are kept, `retry` tries again."""
    skipped: Mapping[str, int] = field(default_factory=dict)


def bring(
    memory: Memory,
    found: Found,
    *,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Receipt:
    """Write records into a memory; a second time nothing is written twice.

    Batches are transactions: after an interruption the same call goes on. StoreError and
    ModelUnavailable as they come.
    """
    seen: dict[Owner, set[tuple[str, str]]] = {}
    new: list[Record | Said] = []
    for record in found.records:
        if record.owner not in seen:
            seen[record.owner] = _brought(memory, record.owner)
        if (record.source, record.id) not in seen[record.owner]:
            seen[record.owner].add((record.source, record.id))
            new.append(record)
    records = [record for record in new if isinstance(record, Record)]
    messages = [record for record in new if isinstance(record, Said)]
    deferred = 0
    if not dry_run:
        for start in range(0, len(records), _BATCH):
            _write(memory, records[start : start + _BATCH])
            progress(min(start + _BATCH, len(records)), len(new))
        for number, message in enumerate(messages, len(records) + 1):
            deferred += not _tell(memory, message)
            progress(number, len(new))
    return Receipt(
        memories=len(records),
        messages=len(messages),
        known=len(found.records) - len(new),
        deferred=deferred,
        skipped=dict(found.skipped),
    )


def _brought(memory: Memory, owner: Owner) -> set[tuple[str, str]]:
    """(source, id) of what was brought before, also where it was changed or deleted since."""
    kept = [entry.metadata for entry in bank_of(memory, owner).entries(superseded=True)]
    kept += [message.metadata for message in memory.store.messages(owner)]
    return {(str(given[FROM]), str(given[ID])) for given in kept if FROM in given and ID in given}


def _write(memory: Memory, records: Sequence[Record]) -> None:
    def safe(text: str) -> str:
        return extract.redact(text) if memory.settings.redact else text

    told = [[(safe(text), at) for text, at in record.versions] for record in records]
    # The embedder may be slow: its vectors are cached before other writers have to wait.
    memory.embedder.embed([text for versions in told for text, _ in versions])
    with memory.store.transaction():
        for record, versions in zip(records, told, strict=True):
            entry_id = ""
            now = bank_of(memory, record.owner).now()
            for text, at in versions:
                stored = min(at or now, now)  # nothing was stored in the future
                bank = Bank(memory.store, memory.embedder, record.owner, now=_always(stored))
                (row,) = bank.apply(
                    [Update(entry_id, text) if entry_id else Add(text)],
                    turn=Turn(record.speaker, "", record.said),
                    reason=f"import from {record.source}",
                    metadata={**record.metadata, FROM: record.source, ID: record.id},
                    expires=record.expires,
                )
                entry_id = row.entry_id


def _always(moment: datetime) -> Callable[[], datetime]:
    return lambda: moment


def _tell(memory: Memory, message: Said) -> bool:
    """Let the memory's agents read a message; False when a model failed at it."""
    owner = message.owner
    return memory.add(
        message.turn,
        user_id=owner.user_id,
        agent_id=owner.agent_id,
        run_id=owner.run_id,
        metadata={**message.metadata, FROM: message.source, ID: message.id},
    ).complete

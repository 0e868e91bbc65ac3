"""Several owners' banks looked at as one: what other systems call a search with fewer ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from memory_r1 import retrieve
from memory_r1.bank import Bank
from memory_r1.memory import Memory
from memory_r1.store import Index
from memory_r1.types import Entry, Hit, Owner

Where = Callable[[Entry], bool]

NO_USER: Final = "no user"
"""The user of a memory of mem0 that has only an agent or a run; its ids have no spaces."""


def end_of(day: date | str) -> datetime:
    """The moment a day ends (UTC); ValueError for what is no date."""
    try:
        last = date.fromisoformat(day) if isinstance(day, str) else date(*day.timetuple()[:3])
        return datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
    except (ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{day!r} is no date such as 2030-12-31") from error


def bank_of(memory: Memory, owner: Owner) -> Bank:
    """The bank of an owner."""
    return memory.bank(owner.user_id, owner.agent_id, owner.run_id)


def entries(
    memory: Memory, owners: Sequence[Owner], where: Where, expired: bool = False
) -> list[Entry]:
    """The current entries of all these owners that are meant, oldest first."""
    found: list[Entry] = []
    for owner in owners:
        bank = bank_of(memory, owner)
        found += filter(_alive(bank, where, expired), bank.index.entries)
    return sorted(found, key=lambda entry: entry.id)


def search(
    memory: Memory,
    owners: Sequence[Owner],
    query: str,
    *,
    k: int,
    where: Where,
    expired: bool = False,
    explain: bool = False,
) -> list[Hit]:
    """The k entries of all these owners that fit best, best first. expired: those too."""
    found: list[list[Hit]] = []
    for owner in owners if k > 0 else ():
        bank = bank_of(memory, owner)
        meant = _alive(bank, where, expired)
        hits = retrieve.search(
            bank.index, query, memory.embedder, k=k, where=meant, explain=explain
        )
        found += [hits] if hits else []
    if len(found) < 2:
        return found[0] if found else []
    # A score says how an entry stands out in its own bank: the best of each are ranked anew.
    pool = Index()
    for entry in (hit.entry for hits in found for hit in hits):
        pool.put(entry, memory.store.vector(entry.owner, entry.id))
    return retrieve.search(pool, query, memory.embedder, k=k, explain=explain)


def _alive(bank: Bank, where: Where, expired: bool) -> Where:
    now = bank.now()
    return lambda entry: (expired or entry.expires is None or entry.expires > now) and where(entry)

"""What is doubtful in a bank's content, and what is broken in a store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory_r1.bank import Bank
from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.store import Store
from memory_r1.text import normalise, terms
from memory_r1.types import Entry, JournalRow, Owner

ALIKE = 0.95
"""From which cosine on two entries are shown as possible duplicates."""
SUPPORTED = 0.5
"""The least share of an entry's words that the turns it rests on, or its own past, should hold."""


@dataclass(frozen=True)
class Audit:
    """What somebody should look at; entries may be named under several heads."""

    entries: int
    """How many current entries there are."""
    duplicates: tuple[tuple[Entry, ...], ...] = ()
    """Groups that say the same word for word."""
    alike: tuple[tuple[Entry, Entry], ...] = ()
    """Pairs that may mean the same; two dogs' names are alike too, so look."""
    expired: tuple[Entry, ...] = ()
    """Out of date: they are not found any more."""
    unsupported: tuple[Entry, ...] = ()
    """Fewer than half of their words stand in the turns they rest on."""
    unsourced: tuple[Entry, ...] = ()
    """No turn and no person's hand stands behind them."""


def audit(bank: Bank) -> Audit:
    """Look through one owner's current entries."""
    entries, now = bank.entries(), bank.now()
    said = {message.id: message.turn for message in bank.store.messages(bank.owner)}
    said |= {turn.id: turn for turn in said.values() if turn.id}
    journal = bank.journal()
    by_hand = {row.entry_id for row in journal if not row.turn_id and row.op != "NOOP"}
    groups: dict[str, list[Entry]] = {}
    unsupported, unsourced = [], []
    for entry in entries:
        groups.setdefault(normalise(entry.text) or entry.text, []).append(entry)
        turns = [said[source] for source in entry.sources if source in said]
        if entry.id in by_hand:
            continue
        if not entry.sources:
            unsourced.append(entry)
        elif turns and _support(
            entry, " ".join(f"{t.speaker} {t.text} {t.caption}" for t in turns)
        ):
            unsupported.append(entry)
    return Audit(
        entries=len(entries),
        duplicates=tuple(tuple(group) for group in groups.values() if len(group) > 1),
        alike=tuple(_alike(bank)),
        expired=tuple(entry for entry in entries if entry.expires and entry.expires <= now),
        unsupported=tuple(unsupported),
        unsourced=tuple(unsourced),
    )


def _support(entry: Entry, turns: str) -> bool:
    """Whether too few of an entry's words stand in its turns. Dates are worked out, not quoted."""
    words = {word for word in terms(entry.text) if not re.fullmatch(r"\d+", word)}
    return bool(words) and len(words & set(terms(turns))) < SUPPORTED * len(words)


def _alike(bank: Bank) -> Iterator[tuple[Entry, Entry]]:
    """Pairs of entries with nearly the same vector and not the same words."""
    index = bank.index
    entries, vectors = index.entries, index.vectors
    for start in range(0, len(entries), 1024):
        near = np.argwhere(vectors[start : start + 1024] @ vectors.T >= ALIKE)
        for one, other in near + (start, 0):
            if one < other and normalise(entries[one].text) != normalise(entries[other].text):
                yield entries[one], entries[other]


def check(store: Store) -> tuple[str, ...]:
    """What doesn't hold in a store, a line each.

    The journal, replayed from its first row, must lead to exactly the entries there are; every
    operation must follow from the entry as the one before has left it; every source that is a
    message of the store must be there.
    """
    found = store.problems()
    for owner in store.owners():
        found += [f"{owner.user_id}: {problem}" for problem in _of_owner(store, owner)]
    return tuple(found)


def _of_owner(store: Store, owner: Owner) -> Iterator[str]:
    journal = store.journal(owner)
    state: dict[str, Entry | None] = {}
    for row in journal:
        if row.state in ("done", "undone") and row.op != "NOOP" and row.entry_id:
            if row.before != state.get(row.entry_id):
                yield f"{row.op} {row.id} does not follow from what was there before it"
            state[row.entry_id] = row.after
    entries = {entry.id: entry for entry in store.entries(owner, superseded=True)}
    for entry_id in sorted(entries.keys() | state.keys()):
        if entries.get(entry_id) != state.get(entry_id):
            yield f"entry {entry_id} is not as its journal left it"
    for entry_id, entry in entries.items():
        if len(store.versions(owner, entry_id)) != entry.version:
            yield f"entry {entry_id} lacks versions"
        try:
            vector = store.vector(owner, entry_id)
        except (UnknownEntry, StoreError) as error:
            yield f"entry {entry_id} has no vector ({error})"
        else:
            if not np.isfinite(vector).all():
                yield f"entry {entry_id} has a vector that is no numbers"
    yield from _unknown_sources(store, owner, journal)


def _unknown_sources(store: Store, owner: Owner, journal: list[JournalRow]) -> Iterator[str]:
    messages = {message.id: message for message in store.messages(owner)}
    told = {row.turn_id for row in journal if row.turn_id}
    # A bank filled without an outbox (training, benchmarks) rests on turns that are not kept.
    if messages:
        for turn_id in sorted(told - messages.keys()):
            yield f"the journal rests on message {turn_id}, which is not there"

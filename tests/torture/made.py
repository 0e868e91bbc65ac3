"""What the tortures share: a memory whose model does as the turn says, and what must hold of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from memory_r1 import Memory
from memory_r1.audit import check
from memory_r1.embed import open_embedder
from memory_r1.errors import StoreError
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.store import Store, open_store
from memory_r1.types import Owner, Prompt

EMBEDDER = open_embedder(None)
"""Loaded once: processes that are forked later have it at once."""

FACTS = re.compile(r"tells (\d+) facts of (\S+)")


def turn_of(facts: int, name: str) -> str:
    """A turn that leads to so many operations."""
    return f"This turn tells {facts} facts of {name}"


def _facts(prompt: Prompt) -> str:
    count, name = FACTS.findall(prompt.messages[-1][1])[-1]
    told = [{"text": f"fact {n} of {name}"} for n in range(int(count))]
    return json.dumps({"facts": told})


def _operations(prompt: Prompt) -> str:
    """An ADD for each new fact, in the words of the fact."""
    told = prompt.messages[-1][1].rpartition("New facts:")[2]
    new = dict.fromkeys(re.findall(r"fact \d+ of [\w-]+", told))
    return json.dumps({"operations": [{"op": "ADD", "text": text} for text in new]})


def memory(store: str | Store, later: timedelta = timedelta()) -> Memory:
    """A memory whose models add what the turn tells. later: how far its clock is ahead."""
    agents = Agents(
        extract=ScriptedLLM(_facts), manage=ScriptedLLM(_operations), answer=ScriptedLLM(_facts)
    )
    opened = open_store(store) if isinstance(store, str) else store
    return Memory(
        opened,
        llm=agents,
        embedder=Shorter() if opened.get_meta("embedder") == Shorter.name else EMBEDDER,
        now=lambda: datetime.now(UTC) + later,
        related=1,
        context=0,
    )


class Shorter:
    """The same vectors, cut: another embedder."""

    name, dim = "shorter", 64

    def embed(self, texts: Any) -> Any:
        """(n, 64)"""
        return EMBEDDER.embed(texts)[:, : self.dim]


@dataclass
class Figures:
    """What a torture came to: how much was tried, and what it found wrong, a line each."""

    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, **counts: int) -> None:
        """Count."""
        for name, n in counts.items():
            self.counts[name] = self.counts.get(name, 0) + n

    def __iadd__(self, other: Figures) -> Figures:
        """Both together."""
        self.add(**other.counts)
        self.wrong += other.wrong
        return self


Ack = Mapping[str, object]
"""What a process was told is done: rows (ids), message (id), owner (user_id)."""


def verify(url: str, acks: Sequence[Ack], figures: Figures) -> None:
    """What was acknowledged is there, no turn is half there, and all invariants hold.

    Then what waits is processed, as the next process would do, and the same must hold again.
    """
    store = open_store(url)
    try:
        _verify(store, acks, figures, "after the kill")
        with memory(store, later=timedelta(hours=1)) as after:
            for owner in store.waiting():
                after.retry(owner.user_id, agent_id=owner.agent_id, run_id=owner.run_id)
            if store.waiting():
                figures.wrong.append(f"messages of {store.waiting()} are still waiting")
            _verify(store, acks, figures, "after the retry")
    finally:
        store.close()


def _verify(store: Store, acks: Sequence[Ack], figures: Figures, when: str) -> None:
    figures.wrong += [f"{when}: {problem}" for problem in check(store)]
    for ack in acks:
        owner = Owner(str(ack["owner"]))
        for row in ack.get("rows", ()):  # type: ignore[attr-defined]
            try:
                store.journal_row(owner, row)
            except StoreError as error:
                figures.wrong.append(f"{when}: an acknowledged operation is lost: {error}")
        if message := ack.get("message"):
            try:
                store.message(owner, str(message))
            except StoreError as error:
                figures.wrong.append(f"{when}: an acknowledged message is lost: {error}")
    for owner in store.owners():
        rows: dict[str, int] = {}
        for row in store.journal(owner):
            if row.op != "UNDO":
                rows[row.turn_id] = rows.get(row.turn_id, 0) + 1
        for kept in store.messages(owner):
            found = FACTS.search(kept.turn.text)
            expected = int(found[1]) if found and kept.state == "done" else 0
            if rows.get(kept.id, 0) != expected:
                figures.wrong.append(
                    f"{when}: message {kept.id} is {kept.state} with {rows.get(kept.id, 0)} "
                    f"operations, not {expected}"
                )

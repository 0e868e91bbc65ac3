"""Each agent by itself, on banks that are right: what it can do before errors add up.

A world file says what was right to do with every fact. The Memory Manager is given each fact with
the bank that right decisions before it have left; the Answer Agent is asked on the right bank of
the whole dialogue. `bench` plays the two together, errors of one reaching the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import memory_r1
from memory_r1 import manage, retrieve
from memory_r1.bank import Bank
from memory_r1.bench.score import Prediction, compare, percent
from memory_r1.bench.systems import System
from memory_r1.config import Settings
from memory_r1.data import Dialogue, load, scored
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError, DataError, MalformedReply
from memory_r1.llm import Conversation, drive
from memory_r1.respond import respond
from memory_r1.store.ram import RamStore
from memory_r1.types import Add, Delete, Entry, Fact, MemoryOp, Noop, Owner, Update

T = TypeVar("T")
LEAST_MEMORIES = 16
"""A right bank of fewer memories asks nobody: finding one of a few is no skill."""


@dataclass(frozen=True)
class Decision:
    """One fact, what was right to do with it, and what the manager did."""

    phenomenon: str
    right: tuple[str, str, str]
    """Operation, text of the entry concerned, text after it; "" where there is none."""
    did: tuple[tuple[str, str, str], ...]
    """The same of each operation; () for a reply that could not be read."""

    @property
    def operation_right(self) -> bool:
        """Exactly the right operation, and no other."""
        return [op for op, _, _ in self.did] == [self.right[0]]

    @property
    def pointed(self) -> list[bool]:
        """Whether each UPDATE and DELETE named the entry that the fact concerns."""
        return [text == self.right[1] for op, text, _ in self.did if op in ("UPDATE", "DELETE")]

    @property
    def merged(self) -> bool | None:
        """Whether an UPDATE that was right wrote exactly the right text; None of none."""
        if self.right[0] != "UPDATE" or not self.operation_right:
            return None
        return self.did[0] == self.right


def drill(
    data: Path, system: System, *, k: int | None = None, embedder: Embedder | None = None
) -> dict[str, Any]:
    """Both agents of a system on a world file; shares are 0..100, per phenomenon and per kind.

    k: entries the Answer Agent is shown; see `Settings.k`. Raises ConfigError for a system
    without models, DataError for a file that is no world or whose banks are too small.
    """
    if system.agents.manage is None or system.agents.answer is None:
        raise ConfigError(f"system {system.name!r} has no two agents to drill")
    dialogues = load(data)
    if not all("events" in dialogue.meta.get("world", {}) for dialogue in dialogues):
        raise DataError(f"{data.name} is no world file: it does not say what is right to do")
    settings = Settings(k=k)
    used = open_embedder() if embedder is None else embedder
    decisions = _decide(dialogues, system, settings, used)
    answers = _ask(dialogues, system, settings, used)
    if not answers:
        raise DataError(f"no bank of {data.name} ends with {LEAST_MEMORIES} memories or more")
    return {
        "system": system.name,
        "players": system.players,
        "data": data.name,
        "version": memory_r1.__version__,
        "manager": {
            "all": _of_decisions(decisions),
            **_grouped(decisions, lambda d: d.phenomenon, _of_decisions),
        },
        "answer": {
            "all": _of_answers(answers),
            **_grouped(answers, lambda a: a.kind, _of_answers),
        },
    }


def _decide(
    dialogues: Sequence[Dialogue], system: System, settings: Settings, embedder: Embedder
) -> list[Decision]:
    llm = system.agents.manage
    assert llm is not None

    def ask(event: Mapping[str, str], shown: Sequence[Entry]) -> Conversation[Decision]:
        try:
            ops = yield from manage.decide([Fact(event["fact"])], shown, llm.style)
        except MalformedReply:
            ops = []
        texts = {entry.id: entry.text for entry in shown}
        right = (event["op"], event["target"] if event["op"] != "ADD" else "", event["text"])
        return Decision(event["phenomenon"], right, tuple(_described(op, texts) for op in ops))

    asked = []
    for dialogue in dialogues:
        bank = Bank(RamStore(), embedder, Owner(dialogue.id))
        for event in dialogue.meta["world"]["events"]:
            k = settings.shown_to_manage(llm.style)
            asked.append(ask(event, retrieve.related(bank.index, [event["fact"]], embedder, k=k)))
            bank.apply(_right_operation(event, bank))
    return drive(asked, system.agents)


def _described(op: MemoryOp, texts: Mapping[str, str]) -> tuple[str, str, str]:
    match op:
        case Add(text):
            return "ADD", "", text
        case Update(entry_id, text):
            return "UPDATE", texts[entry_id], text
        case Delete(entry_id):
            return "DELETE", texts[entry_id], ""
    return "NOOP", "", ""


def _right_operation(event: Mapping[str, str], bank: Bank) -> list[MemoryOp]:
    if event["op"] == "ADD":
        return [Add(event["text"])]
    if event["op"] == "NOOP":
        return [Noop()]
    target = next(entry.id for entry in bank.entries() if entry.text == event["target"])
    return [Update(target, event["text"]) if event["op"] == "UPDATE" else Delete(target)]


def _ask(
    dialogues: Sequence[Dialogue], system: System, settings: Settings, embedder: Embedder
) -> list[Prediction]:
    questions, conversations = [], []
    for dialogue in dialogues:
        texts = dialogue.meta["world"]["bank"]
        if len(texts) < LEAST_MEMORIES:
            continue
        bank = Bank(RamStore(), embedder, Owner(dialogue.id))
        bank.apply([Add(text) for text in texts])
        for question in scored([dialogue]):
            questions.append(question)
            conversations.append(respond(bank, question.text, system.agents, settings))
    answers = drive(conversations, system.agents)
    return [compare(q, answer) for q, answer in zip(questions, answers, strict=True)]


def _grouped(
    items: Sequence[T], name: Callable[[T], str], summary: Callable[[Sequence[T]], dict[str, Any]]
) -> dict[str, Any]:
    members: dict[str, list[T]] = {}
    for item in items:
        members.setdefault(name(item), []).append(item)
    return {group: summary(members[group]) for group in sorted(members)}


def _of_decisions(decisions: Sequence[Decision]) -> dict[str, Any]:
    ops = [op for decision in decisions for op, _, _ in decision.did]
    merged = [decision.merged for decision in decisions if decision.merged is not None]
    return {
        "n": len(decisions),
        "right_operation": percent([d.operation_right for d in decisions]),
        "right_entry": percent([hit for d in decisions for hit in d.pointed]),
        "merges": len(merged),
        "merged_exactly": percent(merged),
        "malformed": sum(not d.did for d in decisions),
        "operations": {op: ops.count(op) for op in sorted(set(ops))},
    }


def _of_answers(answers: Sequence[Prediction]) -> dict[str, Any]:
    return {"n": len(answers), "em": percent([answer.em for answer in answers])}

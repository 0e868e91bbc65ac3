"""Build each dialogue's bank turn by turn, ask its questions, score: the path that serves users.

Dialogues are played in waves, so that their conversations reach the models in batches. Everything
finished is on disk at once; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import memory_r1
from memory_r1.bank import Bank
from memory_r1.bench import score
from memory_r1.bench.baselines import System, fingerprint
from memory_r1.bench.folder import RunFolder
from memory_r1.bench.score import Benchmark, Prediction
from memory_r1.config import Settings
from memory_r1.data import Dialogue, Question, Split, load, scored
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError, DataError
from memory_r1.llm import Conversation, drive, strictly
from memory_r1.remember import remember
from memory_r1.respond import respond
from memory_r1.store import new_id, open_store
from memory_r1.types import JournalRow, Message, Owner

WAVE = 64
"""Dialogues whose banks are built in step."""

Stage = Literal["remember", "answer"]
Progress = Callable[[Stage, int, int], None]
"""Called with the stage and how many turns or questions of how many are done."""
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is asked of a benchmark run; the fields are the command's options."""

    benchmark: Benchmark
    data: Path
    out: Path
    system: str = "rules"
    manager: str | None = None
    answer: str | None = None
    split: Split | Literal["all"] = "test"
    limit: int | None = None
    """Ask only this many questions, the first of the split, and build only their dialogues."""
    k: int | None = None
    """Entries the Answer Agent is shown; see `Settings.k`."""
    per_speaker: int | None = None
    batch: int = 32
    """Questions asked at once; latencies are those of the whole batch."""

    def __post_init__(self) -> None:
        """Refuse what can't be played."""
        if self.benchmark not in get_args(Benchmark):
            raise ConfigError(f"unknown benchmark {self.benchmark!r}; known: locomo, world")
        if self.split not in (*get_args(Split), "all"):
            raise ConfigError(
                f"unknown split {self.split!r}; expected train, validation, test or all"
            )
        for name in ("limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; at least 1 is needed")


@dataclass
class _Built:
    """What the Memory Manager made of the dialogues, summed up over waves."""

    operations: Counter[str] = field(default_factory=Counter)
    by_phenomenon: dict[str, Counter[str]] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)
    """World files: per phenomenon, whether each labelled turn got exactly its right operation."""
    named: dict[str, list[bool]] = field(default_factory=dict)
    """World files: per phenomenon, whether each UPDATE and DELETE named the right entry."""
    deferred: int = 0
    entries: list[int] = field(default_factory=list)


@dataclass
class _Run:
    """A run in progress."""

    plan: Plan
    system: System
    settings: Settings
    embedder: Embedder
    folder: RunFolder
    questions: Sequence[Question]
    progress: Progress
    turns: int
    predictions: dict[str, Prediction]
    """The finished ones, by question id."""
    seconds: dict[tuple[str, str], float]
    """What the Memory Manager took for each (dialogue, turn)."""
    built: _Built = field(default_factory=_Built)
    remembered: int = 0
    answered: int = 0

    def on_turns(self, by: int) -> None:
        """Count remembered turns and show it."""
        self.remembered += by
        self.progress("remember", self.remembered, self.turns)

    def on_answers(self, by: int) -> None:
        """Count answered questions and show it."""
        self.answered += by
        self.progress("answer", self.answered, len(self.questions))


def run(
    plan: Plan,
    system: System,
    *,
    embedder: Embedder | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Play a system over a benchmark and write OUT/scores.json, whose content is returned.

    Raises ConfigError (also when OUT holds another run), DataError for unusable data, and
    ModelUnavailable when a model stops answering; the same plan then goes on from there.
    """
    dialogues = _chosen(plan)
    questions = scored(dialogues)[: plan.limit]
    if not questions:
        raise DataError(f"{plan.data.name} asks no question in split {plan.split!r}")
    asked = {question.dialogue_id for question in questions}
    dialogues = [dialogue for dialogue in dialogues if dialogue.id in asked]
    settings = Settings(k=system.k if plan.k is None else plan.k, per_speaker=plan.per_speaker)
    folder = RunFolder(plan.out, _config(plan))
    now = _Run(
        plan=plan,
        system=system,
        settings=settings,
        embedder=open_embedder() if embedder is None else embedder,
        folder=folder,
        questions=questions,
        progress=progress,
        turns=sum(len(dialogue.turns) for dialogue in dialogues),
        predictions=folder.predictions(),
        seconds=folder.turn_seconds(),
    )
    for wave in _batches(dialogues, WAVE):
        _play(wave, now)
    scores = _scores(now)
    folder.write_scores(scores)
    return scores


def _play(wave: Sequence[Dialogue], now: _Run) -> None:
    """Build the banks of some dialogues in step, then ask the questions still open."""
    with ExitStack() as stores:
        banks = {}
        for dialogue in wave:
            store = open_store(now.folder.bank(dialogue.id))
            stores.callback(store.close)
            banks[dialogue.id] = Bank(store, now.embedder, Owner(dialogue.id))
        drive([_build(d, banks[d.id], now) for d in wave], now.system.agents)
        for dialogue in wave:
            _tally(dialogue, banks[dialogue.id], now.built)
        mine = [question for question in now.questions if question.dialogue_id in banks]
        todo = [question for question in mine if question.id not in now.predictions]
        now.on_answers(len(mine) - len(todo))
        for batch in _batches(todo, now.plan.batch):
            predictions = _ask(batch, banks, now)
            now.folder.add_predictions(predictions)
            now.predictions |= {prediction.question_id: prediction for prediction in predictions}
            now.on_answers(len(batch))


def _chosen(plan: Plan) -> list[Dialogue]:
    dialogues = [d for d in load(plan.data) if plan.split in ("all", d.split)]
    if not dialogues:
        raise DataError(
            f"{plan.data.name} has no dialogue in split {plan.split!r}; try --split all"
        )
    for dialogue in dialogues:
        if not dialogue.turns:
            raise DataError(f"{plan.data.name}: dialogue {dialogue.id!r} is empty: it has no turns")
    return dialogues


def _config(plan: Plan) -> dict[str, Any]:
    """What two runs must share to be one. --limit may change: it only says when to stop."""
    return {
        "benchmark": plan.benchmark,
        "data": plan.data.name,
        "data_sha256": hashlib.sha256(plan.data.read_bytes()).hexdigest(),
        "system": fingerprint(plan.system),
        "manager": fingerprint(plan.manager),
        "answer": fingerprint(plan.answer),
        "split": plan.split,
        "k": plan.k,
        "per_speaker": plan.per_speaker,
        "batch": plan.batch,
        "version": memory_r1.__version__,
    }


def _build(dialogue: Dialogue, bank: Bank, now: _Run) -> Conversation[None]:
    """Remember the turns that the bank doesn't hold yet."""
    messages = {message.turn.id: message for message in bank.store.messages(bank.owner)}
    turns = dialogue.turns
    for i, turn in enumerate(turns):
        message = messages.get(turn.id)
        if message is None:
            message = Message(new_id(), bank.owner, turn, datetime.now(UTC))
            bank.store.add_message(message)
        if message.state == "pending":
            context = turns[max(0, i - now.settings.context) : i]
            began = time.perf_counter()
            yield from strictly(
                remember(
                    bank,
                    turn,
                    now.system.agents,
                    now.settings,
                    message=message,
                    context=context,
                )
            )
            took = time.perf_counter() - began
            now.seconds[dialogue.id, turn.id] = took
            now.folder.add_turn(dialogue.id, turn.id, took)
        now.on_turns(1)


def _ask(questions: Sequence[Question], banks: Mapping[str, Bank], now: _Run) -> list[Prediction]:
    agents = now.system.agents
    answers = drive(
        [respond(banks[q.dialogue_id], q.text, agents, now.settings) for q in questions], agents
    )
    return [score.judge(q, answer) for q, answer in zip(questions, answers, strict=True)]


def _tally(dialogue: Dialogue, bank: Bank, built: _Built) -> None:
    """Count what was done to each turn of a finished bank."""
    store = bank.store
    turn_of = {message.id: message.turn.id for message in store.messages(bank.owner)}
    built.deferred += len(store.messages(bank.owner, "deferred"))
    built.entries.append(len(store.entries(bank.owner)))
    rows_of: dict[str, list[JournalRow]] = {}
    for row in store.journal(bank.owner):
        built.operations[row.op] += 1
        rows_of.setdefault(turn_of[row.turn_id], []).append(row)
    events = dialogue.meta.get("world", {}).get("events", ())
    told = score.sources_of_targets(events)
    for event, sources in zip(events, told, strict=True):
        rows = rows_of.get(event["dia_id"], [])
        ops = [row.op for row in rows]
        phenomenon = event["phenomenon"]
        built.by_phenomenon.setdefault(phenomenon, Counter()).update(ops)
        built.right.setdefault(phenomenon, []).append(ops == [event["op"]])
        built.named.setdefault(phenomenon, []).extend(
            score.names_target(row.before, event["target"], sources)
            for row in rows
            if row.op in ("UPDATE", "DELETE") and row.before is not None
        )


def _scores(now: _Run) -> dict[str, Any]:
    plan, built = now.plan, now.built
    predictions = [now.predictions[question.id] for question in now.questions]
    answerer = now.system.agents.answer
    return {
        "benchmark": plan.benchmark,
        "system": plan.system,
        "players": now.system.players,
        "split": plan.split,
        "n": len(predictions),
        "overall": score.measures(predictions),
        "groups": score.groups(plan.benchmark, predictions),
        "latency": score.percentiles(
            {"manager": list(now.seconds.values()), **score.latencies(predictions)}
        ),
        "bank": {
            "entries": round(sum(built.entries) / len(built.entries), 1),
            "deferred_turns": built.deferred,
            "operations": dict(sorted(built.operations.items())),
            "right_entry": score.percent([right for of in built.named.values() for right in of]),
            "by_phenomenon": {
                name: {
                    "n": len(built.right[name]),
                    "right": score.percent(built.right[name]),
                    "right_entry": score.percent(built.named[name]),
                    "operations": dict(sorted(built.by_phenomenon[name].items())),
                }
                for name in sorted(built.right)
            },
        },
        "shown": {
            "k": now.settings.shown_to_answer(answerer.style if answerer else None),
            "per_speaker": plan.per_speaker,
        },
        "batch": plan.batch,
        "data": plan.data.name,
        "version": memory_r1.__version__,
    }


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

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
from memory_r1.llm import Conversation, drive
from memory_r1.memory import remember, respond
from memory_r1.store import Store, new_id, open_store
from memory_r1.types import Message, Owner

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
    taught: dict[str, list[bool]] = field(default_factory=dict)
    """World files: per phenomenon, whether each labelled turn got exactly its right operation."""
    deferred: int = 0
    entries: list[int] = field(default_factory=list)


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
    settings = Settings(k=plan.k or system.k, per_speaker=plan.per_speaker)
    folder = RunFolder(plan.out, _config(plan))
    done = folder.predictions()
    seconds = folder.turn_seconds()
    built = _Built()
    turns = sum(len(dialogue.turns) for dialogue in dialogues)
    counts: dict[Stage, int] = {"remember": 0, "answer": 0}

    def advance(stage: Stage, by: int = 1) -> None:
        counts[stage] += by
        progress(stage, counts[stage], turns if stage == "remember" else len(questions))

    embedder = open_embedder() if embedder is None else embedder
    for wave in _batches(dialogues, WAVE):
        with ExitStack() as stores:
            banks = {}
            for dialogue in wave:
                store = open_store(folder.bank(dialogue.id))
                stores.callback(store.close)
                banks[dialogue.id] = Bank(store, embedder, Owner(dialogue.id))
            builds = [
                _build(dialogue, banks[dialogue.id], system, settings, folder, seconds, advance)
                for dialogue in wave
            ]
            drive(builds, system.agents)
            for dialogue in wave:
                _tally(dialogue, banks[dialogue.id], built)
            mine = [question for question in questions if question.dialogue_id in banks]
            todo = [question for question in mine if question.id not in done]
            advance("answer", len(mine) - len(todo))
            for batch in _batches(todo, plan.batch):
                predictions = _ask(batch, banks, system, settings)
                folder.add_predictions(predictions)
                done |= {prediction.question_id: prediction for prediction in predictions}
                advance("answer", len(batch))
    predictions = [done[question.id] for question in questions]
    scores = _scores(plan, system, settings, predictions, list(seconds.values()), built)
    folder.write_scores(scores)
    return scores


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


def _build(
    dialogue: Dialogue,
    bank: Bank,
    system: System,
    settings: Settings,
    folder: RunFolder,
    seconds: dict[tuple[str, str], float],
    advance: Callable[[Stage], None],
) -> Conversation[None]:
    """Remember the turns that the bank doesn't hold yet."""
    messages = {message.turn.id: message for message in bank.store.messages(bank.owner)}
    turns = dialogue.turns
    for i, turn in enumerate(turns):
        message = messages.get(turn.id)
        if message is None:
            message = Message(new_id(), bank.owner, turn, datetime.now(UTC))
            bank.store.add_message(message)
        if message.state == "pending":
            began = time.perf_counter()
            yield from _strictly(
                remember(
                    bank,
                    turn,
                    system.agents,
                    settings,
                    message_id=message.id,
                    context=turns[max(0, i - settings.context) : i],
                )
            )
            took = time.perf_counter() - began
            seconds[dialogue.id, turn.id] = took
            folder.add_turn(dialogue.id, turn.id, took)
        advance("remember")


def _strictly(conversation: Conversation[T]) -> Conversation[T]:
    """The same, but an absent model ends it: `remember` would keep the turn for another day.

    The turn stays pending, and is remembered when the run goes on.
    """
    try:
        call = next(conversation)
        while True:
            call = conversation.send((yield call))
    except StopIteration as stop:
        result: T = stop.value
        return result


def _ask(
    questions: Sequence[Question],
    banks: Mapping[str, Bank],
    system: System,
    settings: Settings,
) -> list[Prediction]:
    conversations = [
        respond(banks[question.dialogue_id], question.text, system.agents, settings)
        for question in questions
    ]
    answers = drive(conversations, system.agents)
    return [score.judge(q, answer) for q, answer in zip(questions, answers, strict=True)]


def _tally(dialogue: Dialogue, bank: Bank, built: _Built) -> None:
    """Count what was done to each turn of a finished bank."""
    store: Store = bank.store
    turn_of = {message.id: message.turn.id for message in store.messages(bank.owner)}
    built.deferred += len(store.messages(bank.owner, "deferred"))
    built.entries.append(len(store.entries(bank.owner)))
    ops_of: dict[str, list[str]] = {}
    for row in store.journal(bank.owner):
        built.operations[row.op] += 1
        ops_of.setdefault(turn_of[row.turn_id], []).append(row.op)
    for event in dialogue.meta.get("world", {}).get("events", ()):
        ops = ops_of.get(event["dia_id"], [])
        phenomenon = event["phenomenon"]
        built.by_phenomenon.setdefault(phenomenon, Counter()).update(ops)
        built.taught.setdefault(phenomenon, []).append(ops == [event["op"]])


def _scores(
    plan: Plan,
    system: System,
    settings: Settings,
    predictions: Sequence[Prediction],
    turn_seconds: Sequence[float],
    built: _Built,
) -> dict[str, Any]:
    style = system.agents.answer.style if system.agents.answer else None
    return {
        "benchmark": plan.benchmark,
        "system": plan.system,
        "players": system.players,
        "split": plan.split,
        "n": len(predictions),
        "overall": score.measures(predictions),
        "groups": score.groups(plan.benchmark, predictions),
        "latency": score.percentiles(
            {"manager": turn_seconds, **score.latencies(predictions)},
        ),
        "bank": {
            "entries": sum(built.entries) / len(built.entries),
            "deferred_turns": built.deferred,
            "operations": dict(sorted(built.operations.items())),
            "by_phenomenon": {
                name: {
                    "n": len(built.taught[name]),
                    "right": score.percent(built.taught[name]),
                    "operations": dict(sorted(built.by_phenomenon[name].items())),
                }
                for name in sorted(built.taught)
            },
        },
        "shown": {"k": settings.shown_to_answer(style), "per_speaker": plan.per_speaker},
        "batch": plan.batch,
        "data": plan.data.name,
        "version": memory_r1.__version__,
    }


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

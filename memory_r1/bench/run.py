"""Build each dialogue's bank turn by turn, ask its questions, score: the path that serves users.

A local model plays many dialogues in step, so that it gets batches; services play several in
threads. Everything finished is on disk at once; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from memory_r1.bank import Bank
from memory_r1.bench import results, score
from memory_r1.bench.calls import Spent, metered, services
from memory_r1.bench.folder import RunFolder
from memory_r1.bench.judge import judge
from memory_r1.bench.plan import Plan
from memory_r1.bench.score import Prediction
from memory_r1.bench.shelf import Shelf
from memory_r1.bench.survey import Round, Survey, rounds, survey
from memory_r1.bench.systems import System
from memory_r1.data import Dialogue, Question
from memory_r1.embed import Embedder, open_embedder
from memory_r1.llm import LLM, Conversation, drive
from memory_r1.llm.replies import Replies, Watched, watched
from memory_r1.store import new_id, open_store
from memory_r1.types import Message, Owner, Turn

WAVE = 64
"""Dialogues whose banks are built in step."""
THREADS = 8
"""Dialogues played at the same time where all models are services."""

Stage = Literal["remember", "answer", "judge"]
Progress = Callable[[Stage, int, int, str], None]
"""Called with the stage, how many turns or questions of how many are done, and a note."""
T = TypeVar("T")


class Prices(NamedTuple):
    """Dollars for a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What these cost, in dollars."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass
class Run:
    """A run in progress; threads share it."""

    plan: Plan
    system: System
    embedder: Embedder
    folder: RunFolder
    survey: Survey
    shelf: Shelf | None
    prices: Prices | None
    progress: Progress
    predictions: dict[tuple[str, int], Prediction]
    """The finished ones, by question and sessions seen."""
    turns: dict[tuple[str, str], Spent]
    """What remembering each (dialogue, turn) took."""
    built: results.Built = field(default_factory=results.Built)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _done: dict[Stage, int] = field(default_factory=lambda: {"remember": 0, "answer": 0})
    _spent: Spent = field(default_factory=Spent)

    def on_turn(self, spent: Spent) -> None:
        """Count a remembered turn and show it."""
        self._on("remember", 1, self.survey.turns, spent)

    def on_answer(self, prediction: Prediction) -> None:
        """Count an answered question and show it."""
        spent = Spent(prediction.calls, *prediction.tokens)
        self._on("answer", 1, self.survey.asked, spent)

    def _on(self, stage: Stage, by: int, of: int, spent: Spent) -> None:
        with self.lock:
            self._done[stage] += by
            self._spent += spent
            self.progress(stage, self._done[stage], of, self._note())

    def _note(self) -> str:
        """What it cost so far."""
        spent = self._spent
        if not spent.calls:
            return ""
        tokens = spent.prompt_tokens + spent.completion_tokens
        note = f"{spent.calls:,} calls, {tokens:,} tokens"
        if self.prices:
            note += f", ${self.prices.of(spent.prompt_tokens, spent.completion_tokens):.2f}"
        return note

    def check(self) -> None:
        """Raise what ends a thread when another one has failed."""
        if self.stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Another thread has failed, or the user wants an end."""


def run(
    plan: Plan,
    system: System,
    *,
    embedder: Embedder | None = None,
    cache: Path | None = None,
    prices: Prices | None = None,
    judged_by: LLM | None = None,
    progress: Progress = lambda stage, done, total, note: None,
) -> dict[str, Any]:
    """Play a system over a benchmark and write OUT/scores.json, whose content is returned.

    cache: folder of replies and banks that other runs may use too; None keeps none.
    Raises ConfigError (also when OUT holds another run), DataError for unusable data, and
    ModelUnavailable when a model stops answering; the same plan then goes on from there.
    """
    found = survey(plan)
    used = open_embedder(plan.embedder) if embedder is None else embedder
    folder = RunFolder(plan.out, plan.config)
    with ExitStack() as opened:
        replies = None
        if cache is not None:
            replies = Replies(cache / "replies.db")
            opened.callback(replies.close)
        playing = replace(system, agents=watched(system.agents, replies))
        now = Run(
            plan=plan,
            system=playing,
            embedder=used,
            folder=folder,
            survey=found,
            shelf=Shelf(cache / "banks", playing, used) if cache else None,
            prices=prices,
            progress=progress,
            predictions=folder.predictions(),
            turns=folder.turns(),
        )
        _play_all(now)
        judged = None
        if judged_by is not None:
            judged = judge(
                folder,
                Watched(judged_by, replies),
                benchmark=plan.benchmark,
                batch=plan.batch,
                progress=lambda stage, done, total: progress("judge", done, total, ""),
            )
    scores = results.scores(
        plan=plan,
        system=system,
        predictions=now.predictions,
        turns=now.turns,
        built=now.built,
        asked=found.keys,
        dollars=prices.of if prices else None,
        judged=judged,
    )
    folder.write_scores(scores)
    return scores


def _play_all(now: Run) -> None:
    dialogues = now.survey.dialogues()
    threads = now.plan.jobs or (THREADS if services(now.system.agents) else 1)
    if threads == 1:
        for wave in _batches(dialogues, WAVE):
            _play(wave, now)
        return

    def work() -> None:
        try:
            while not now.stopped.is_set():
                with now.lock:
                    dialogue = next(dialogues, None)
                if dialogue is None:
                    return
                _play([dialogue], now)
        except _Stopped:
            pass
        except BaseException:
            now.stopped.set()
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="memory-r1-bench") as pool:
        try:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        except BaseException:  # Ctrl-C among them: what is begun is left as it is
            now.stopped.set()
            raise


def _play(wave: Sequence[Dialogue], now: Run) -> None:
    """Build the banks of some dialogues in step, and ask whenever it is time to."""
    todo = {d.id: rounds(d, now.survey.questions[d.id], now.plan) for d in wave}
    with ExitStack() as opened:
        banks = {}
        for dialogue in wave:
            _fetch(dialogue, now)
            store = open_store(now.folder.bank(dialogue.id))
            opened.callback(store.close)
            banks[dialogue.id] = Bank(store, now.embedder, Owner(dialogue.id))
        for i in range(max(map(len, todo.values()))):
            live = [(d, todo[d.id][i]) for d in wave if i < len(todo[d.id])]
            drive([_build(d, banks[d.id], r, now) for d, r in live], now.system.agents)
            _ask_all(live, banks, now)
        with now.lock:
            for dialogue in wave:
                results.tally(dialogue, banks[dialogue.id], now.built)
    for dialogue in wave:
        _keep(dialogue, now)


def _fetch(dialogue: Dialogue, now: Run) -> None:
    """Take a finished bank off the shelf, when there is one and none was begun."""
    path = now.folder.bank(dialogue.id)
    if now.shelf is None or now.plan.protocol == "stream" or path.exists():
        return
    turns = now.shelf.fetch(dialogue, path)
    if turns is not None:
        now.folder.add_turns(dialogue.id, turns)
        with now.lock:
            now.turns |= {(dialogue.id, turn_id): spent for turn_id, spent in turns.items()}


def _keep(dialogue: Dialogue, now: Run) -> None:
    """Put a bank on the shelf for other runs, if every turn of it was measured."""
    took = {turn.id: now.turns.get((dialogue.id, turn.id)) for turn in dialogue.turns}
    whole = {turn_id: spent for turn_id, spent in took.items() if spent is not None}
    if now.shelf is not None and len(whole) == len(took):
        now.shelf.keep(dialogue, now.folder.bank(dialogue.id), whole)


def _build(dialogue: Dialogue, bank: Bank, until: Round, now: Run) -> Conversation[None]:
    """Remember the turns, up to those of a round, that the bank doesn't hold yet."""
    messages = {message.turn.id: message for message in bank.store.messages(bank.owner)}
    turns = dialogue.turns
    ends = {session.turns[-1].id for session in dialogue.sessions}
    for i, turn in enumerate(turns[until.begins : until.ends], start=until.begins):
        now.check()
        message = messages.get(turn.id)
        if message is None:
            message = Message(new_id(), bank.owner, turn, datetime.now(UTC))
            bank.store.add_message(message)
        if message.state == "pending":
            context = turns[max(0, i - now.system.settings.context) : i]
            yield from _remember(bank, turn, message, context, turn.id in ends, now)
        now.on_turn(now.turns.get((dialogue.id, turn.id), Spent()))


def _remember(
    bank: Bank, turn: Turn, message: Message, context: Sequence[Turn], last: bool, now: Run
) -> Conversation[None]:
    spent = Spent()
    yield from metered(
        now.system.remember(bank, turn, message, context=context, last=last), spent, now.check
    )
    now.turns[bank.owner.user_id, turn.id] = spent
    now.folder.add_turns(bank.owner.user_id, {turn.id: spent})


def _ask_all(live: Sequence[tuple[Dialogue, Round]], banks: Mapping[str, Bank], now: Run) -> None:
    """Ask what a round asks, but for what was answered before."""
    todo: list[tuple[Question, int]] = []
    for _, asked in live:
        for question in asked.questions:
            done = now.predictions.get((question.id, asked.sessions))
            if done is None:
                todo.append((question, asked.sessions))
            else:
                now.on_answer(done)
    for batch in _batches(iter(todo), now.plan.batch):
        now.check()
        predictions = _ask(batch, banks, now)
        now.folder.append("predictions.jsonl", (p.as_json() for p in predictions))
        with now.lock:
            now.predictions |= {(p.question_id, p.sessions): p for p in predictions}
        for prediction in predictions:
            now.on_answer(prediction)


def _ask(
    batch: Sequence[tuple[Question, int]], banks: Mapping[str, Bank], now: Run
) -> list[Prediction]:
    spents = [Spent() for _ in batch]
    answers = drive(
        [
            metered(now.system.answer(banks[question.dialogue_id], question), spent, now.check)
            for (question, _), spent in zip(batch, spents, strict=True)
        ],
        now.system.agents,
    )
    predictions = []
    for (question, sessions), answer, spent in zip(batch, answers, spents, strict=True):
        others = {name: took for name, took in answer.latency.items() if name != "answer"}
        rest = max(0.0, spent.seconds - sum(others.values()))
        predictions.append(
            replace(
                score.compare(question, answer),
                latency={**others, "answer": rest},
                calls=spent.calls,
                tokens=[spent.prompt_tokens, spent.completion_tokens],
                sessions=sessions,
                memories=len(banks[question.dialogue_id].index),
            )
        )
    return predictions


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := [item for _, item in zip(range(size), items, strict=False)]:
        yield batch

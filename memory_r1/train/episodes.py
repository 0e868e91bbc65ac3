"""dialogues -> situations -> episodes: what the two agents practise on (no torch here).

Memory Manager: a bank, a turn with its facts, and questions whose answers show what the decision
was worth (Memory-R1, Algorithm 1); or all turns of a dialogue in order and a question at the end
(Algorithm 5). Answer Agent: a question and the bank the trained manager built (Algorithm 2).
An episode runs the very conversations that serve users (`remember`, `respond`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory_r1 import extract, retrieve
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import DECISIONS, Dialogue, Question
from memory_r1.embed import Embedder
from memory_r1.errors import DataError, MalformedReply
from memory_r1.llm import LLM, Agents, Call, Conversation, drive, strictly
from memory_r1.remember import AddResult, remember
from memory_r1.respond import respond
from memory_r1.store.ram import RamStore
from memory_r1.text import em, f1, normalise
from memory_r1.types import Add, Answer, Completion, Fact, Owner, Prompt, Turn


@dataclass(frozen=True)
class Outcome:
    """What an episode came to. All shares 0..1."""

    reward: float
    em: float
    f1: float
    details: Mapping[str, Any] = field(default_factory=dict)
    """For reading: questions, gold answers, answers, operations."""


class Episode(Protocol):
    """One play of an agent: ask for `prompt`, give `step` the completion, until `done`.

    `judge` asks the frozen agents what the outcome is worth; episodes with equal `key` end
    equally, so that one judgement serves them all.
    """

    about: str
    malformed: int
    steps: int

    @property
    def done(self) -> bool:
        """Whether the agent has nothing more to say."""
        ...

    def prompt(self) -> Prompt:
        """What the agent is shown now."""
        ...

    def step(self, completion: Completion) -> None:
        """The agent's reply to the last prompt."""
        ...

    @property
    def key(self) -> tuple[object, ...]:
        """What the outcome depends on."""
        ...

    def judge(self) -> Conversation[Outcome]:
        """The outcome; ModelUnavailable when the frozen agent can't be reached."""
        ...


@dataclass(frozen=True)
class Situation:
    """Where a Memory Manager's episode starts: a bank, turns to come, and what will be asked."""

    id: str
    bank: Bank
    turns: tuple[tuple[Turn, tuple[Fact, ...]], ...]
    """Turns with their facts, each with at least one fact; one turn in Algorithm 1."""
    questions: tuple[Question, ...]
    right: tuple[str, ...] | None = None
    """Where it is known from somebody's correction: the memories that should be left, sorted."""


class ManagerEpisode:
    """The Memory Manager edits a fork of the bank; the frozen Answer Agent is asked about it."""

    def __init__(
        self, situation: Situation, policy: LLM, frozen: Agents, settings: Settings
    ) -> None:
        """policy: only its style and name are used; its replies come through `step`."""
        self.about = situation.id
        self.operations: list[str] = []
        self.malformed = 0
        self.steps = 0
        self._situation = situation
        self._agents = Agents(frozen.extract, policy, frozen.answer)
        self._settings = settings
        self._bank = situation.bank.fork()
        self._conversation = self._play()
        self._call: Call | None = next(self._conversation, None)

    def _play(self) -> Conversation[None]:
        for turn, facts in self._situation.turns:
            result: AddResult = yield from remember(
                self._bank, turn, self._agents, self._settings, facts=facts
            )
            self.operations += [row.op for row in result.rows]
            self.malformed += not result.complete

    @property
    def done(self) -> bool:
        """Whether all turns have been dealt with."""
        return self._call is None

    def prompt(self) -> Prompt:
        """What the manager is shown now."""
        assert self._call is not None
        return self._call.prompt

    def step(self, completion: Completion) -> None:
        """The manager's reply; a malformed one leaves the bank as it is and is counted."""
        self.steps += 1
        try:
            self._call = self._conversation.send(completion)
        except StopIteration:
            self._call = None

    @property
    def key(self) -> tuple[object, ...]:
        """The situation and all that prompts and retrieval see of the bank: no ids, no clocks."""
        entries = self._bank.entries()
        return (self.about, *((e.text, e.said, e.speaker, e.sources) for e in entries))

    def judge(self) -> Conversation[Outcome]:
        """The reward: mean exact match of the frozen agent's answers to the linked questions.

        Where the right memories are known, whether exactly those are left; nobody is asked then.
        """
        if self._situation.right is not None:
            return self._as_corrected(self._situation.right)
        answers: list[Answer] = []
        for question in self._situation.questions:
            answers.append(
                (yield from respond(self._bank, question.text, self._agents, self._settings))
            )
        asked = list(zip(self._situation.questions, answers, strict=True))
        share = sum(_em(q, a.text) for q, a in asked) / len(asked)
        return Outcome(
            share,
            share,
            sum(_f1(q, a.text) for q, a in asked) / len(asked),
            {
                "facts": [fact.text for _, facts in self._situation.turns for fact in facts],
                "asked": [
                    {"question": q.text, "gold": q.answer, "answer": a.text} for q, a in asked
                ],
            },
        )

    def _as_corrected(self, right: Sequence[str]) -> Outcome:
        left = sorted(entry.text for entry in self._bank.entries())
        same = [normalise(text) for text in left] == [normalise(text) for text in right]
        hit = float(same and not self.malformed)  # to say nothing readable is no NOOP
        facts = [fact.text for _, facts in self._situation.turns for fact in facts]
        return Outcome(hit, hit, hit, {"facts": facts, "right": list(right), "left": left})


@dataclass(frozen=True)
class Task:
    """Where an Answer Agent's episode starts: a question and the bank to answer it from."""

    id: str
    bank: Bank
    question: Question


class AnswerEpisode:
    """The Answer Agent is shown the retrieved entries and replies once."""

    def __init__(self, task: Task, policy: LLM, settings: Settings) -> None:
        """policy: only its style and name are used; its reply comes through `step`."""
        self.about = task.id
        self.done = False
        self.malformed = 0
        self.steps = 0
        self._task = task
        self._answer = Answer("")
        agents = Agents(answer=policy)
        self._conversation = respond(task.bank, task.question.text, agents, settings)
        self._call = next(self._conversation)

    def prompt(self) -> Prompt:
        """What the agent is shown."""
        return self._call.prompt

    def step(self, completion: Completion) -> None:
        """The agent's reply; a malformed one is an empty answer and is counted."""
        self.steps += 1
        try:
            self._call = self._conversation.send(completion)
        except StopIteration as stop:
            self._answer = stop.value
            self.malformed = not self._answer.text
            self.done = True

    @property
    def key(self) -> tuple[object, ...]:
        """The question and the answer."""
        return (self.about, self._answer.text)

    def judge(self) -> Conversation[Outcome]:
        """Exact match of the answer (the reward); asks nobody."""
        question, text = self._task.question, self._answer.text
        right = _em(question, text)
        asked = {"question": question.text, "gold": question.answer, "answer": text}
        return Outcome(right, right, _f1(question, text), {"asked": [asked]})
        yield  # a conversation that never calls


def _em(question: Question, prediction: str) -> float:
    return max(em(prediction, gold) for gold in question.golds)


def _f1(question: Question, prediction: str) -> float:
    return max(f1(prediction, gold) for gold in question.golds)


def last_evidence(question: Question, dialogue: Dialogue) -> int:
    """The position among the dialogue's turns of the last turn the answer rests on; -1: none.

    From that turn on the answer holds until the end, since what changes it would be evidence.
    """
    position = {turn.id: i for i, turn in enumerate(dialogue.turns)}
    return max((position[turn_id] for turn_id in question.evidence), default=-1)


def read_facts(
    dialogues: Sequence[Dialogue], agents: Agents, settings: Settings
) -> dict[tuple[str, str], tuple[Fact, ...]]:
    """The facts of every turn, by (dialogue id, turn id); a malformed reply gives none.

    The extractor is shown the turns before, as in serving (`Settings.context`).
    """

    def read(turn: Turn, context: Sequence[Turn]) -> Conversation[list[Fact]]:
        if not (turn.text or turn.caption):
            return []
        if agents.extract is None:
            return [extract.whole_turn(turn)]
        try:
            return (yield from extract.facts(turn, agents.extract.style, context))
        except MalformedReply:
            return []

    turns = [(d, i) for d in dialogues for i in range(len(d.turns))]
    before = settings.context
    found = drive([read(d.turns[i], d.turns[max(0, i - before) : i]) for d, i in turns], agents)
    return {(d.id, d.turns[i].id): tuple(f) for (d, i), f in zip(turns, found, strict=True)}


def situations(
    dialogues: Sequence[Dialogue],
    agents: Agents,
    embedder: Embedder,
    settings: Settings,
    *,
    questions: int,
    seed: int,
) -> list[Situation]:
    """One situation per turn that holds facts and that questions depend on (Algorithm 1).

    The bank is what `agents` made of the turns before (the temporal memory bank). Questions: those
    whose last evidence is this turn, and, to fill up to `questions`, older ones about the entries
    the manager is shown: a right decision must not damage those.
    """
    facts = read_facts(dialogues, agents, settings)

    def play(dialogue: Dialogue) -> Conversation[list[Situation]]:
        rng = random.Random(f"{seed}/{dialogue.id}")
        compact = agents.manage is not None and agents.manage.style == "compact"
        bank = Bank(RamStore(), embedder, Owner(dialogue.id))
        due: dict[int, list[Question]] = {}
        for question in dialogue.questions:
            due.setdefault(last_evidence(question, dialogue), []).append(question)
        due.pop(-1, None)
        found: list[Situation] = []
        for i, turn in enumerate(dialogue.turns):
            new = facts[dialogue.id, turn.id]
            if not new:
                continue
            asked = due.get(i, [])[:questions]
            # On an empty bank a compact manager isn't asked: nothing could be learned there.
            if asked and (bank.entries() or not compact):
                at_stake = _at_stake(bank, new, due, i, settings, agents)
                room = questions - len(asked)
                asked = asked + rng.sample(at_stake, min(room, len(at_stake)))
                name = f"{dialogue.id}/{turn.id}"
                found.append(Situation(name, bank.fork(), ((turn, new),), tuple(asked)))
            yield from strictly(remember(bank, turn, agents, settings, facts=new))
        return found

    return [s for of in drive([play(d) for d in dialogues], agents) for s in of]


def corrections(dialogues: Sequence[Dialogue], embedder: Embedder) -> list[Situation]:
    """One situation per decision that somebody has judged (`memory_r1.practice`).

    On an empty bank there is nothing to decide, so those are left out. Raises DataError.
    """
    found = []
    for dialogue in dialogues:
        for i, decision in enumerate(dialogue.meta.get(DECISIONS, ())):
            name = f"{dialogue.id}/decision {i}"
            match decision:
                case {
                    "fact": str(text),
                    "speaker": str(speaker),
                    "memories": [*memories],
                    "right": [*right],
                } if all(isinstance(memory, str) for memory in (*memories, *right)):
                    pass
                case _:
                    raise DataError(
                        f"{name}: expected fact, speaker, and the texts of memories and right, "
                        f"got {decision!r:.200}"
                    )
            if memories:
                bank = Bank(RamStore(), embedder, Owner(dialogue.id))
                bank.apply([Add(memory) for memory in memories])
                turn = Turn(speaker, text)
                told = ((turn, (Fact(text),)),)
                found.append(Situation(name, bank, told, (), tuple(sorted(right))))
    return found


def _at_stake(
    bank: Bank,
    facts: Sequence[Fact],
    due: Mapping[int, Sequence[Question]],
    now: int,
    settings: Settings,
    agents: Agents,
) -> list[Question]:
    """Questions answered before now whose evidence the manager is about to be shown."""
    style = agents.manage.style if agents.manage else None
    k = settings.shown_to_manage(style)
    shown = retrieve.related(bank.index, [fact.text for fact in facts], bank.embedder, k=k)
    sources = {source for entry in shown for source in entry.sources}
    return [
        question
        for when, asked in due.items()
        if when < now
        for question in asked
        if sources & set(question.evidence)
    ]


def whole_dialogues(
    dialogues: Sequence[Dialogue],
    agents: Agents,
    embedder: Embedder,
    settings: Settings,
    *,
    turns: int,
) -> list[Situation]:
    """One situation per question: from an empty bank through all turns in order (Algorithm 5).

    turns: play at most so many turns with facts, those up to the question's last evidence.
    """
    facts = read_facts(dialogues, agents, settings)
    found = []
    for dialogue in dialogues:
        for question in dialogue.questions:
            last = last_evidence(question, dialogue)
            told = [
                (turn, facts[dialogue.id, turn.id])
                for turn in dialogue.turns[: last + 1]
                if facts[dialogue.id, turn.id]
            ][-turns:]
            if told:
                bank = Bank(RamStore(), embedder, Owner(dialogue.id))
                name = f"{dialogue.id}/{question.id}"
                found.append(Situation(name, bank, tuple(told), (question,)))
    return found


def tasks(
    dialogues: Sequence[Dialogue], agents: Agents, embedder: Embedder, settings: Settings
) -> list[Task]:
    """One task per question, on the bank `agents` made of the whole dialogue (Algorithm 2).

    A dialogue of which nothing was kept leaves an empty bank and no task.
    """
    facts = read_facts(dialogues, agents, settings)

    def play(dialogue: Dialogue) -> Conversation[Bank]:
        bank = Bank(RamStore(), embedder, Owner(dialogue.id))
        for turn in dialogue.turns:
            if new := facts[dialogue.id, turn.id]:
                yield from strictly(remember(bank, turn, agents, settings, facts=new))
        return bank

    banks = drive([play(dialogue) for dialogue in dialogues], agents)
    return [
        Task(f"{dialogue.id}/{question.id}", bank, question)
        for dialogue, bank in zip(dialogues, banks, strict=True)
        for question in dialogue.questions
        if bank.entries()
    ]

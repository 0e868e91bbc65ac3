"""dialogues -> situations -> episodes: what the two agents practise on (no torch here).

Memory Manager: a bank, a turn with its facts, and questions whose answers show what the decision
was worth (Memory-R1, Algorithm 1); or all turns of a dialogue in order and a question at the end
(Algorithm 5). Answer Agent: a question and the bank the trained manager built (Algorithm 2).
An episode runs the very conversations that serve users (`remember`, `respond`). Where episodes
start is made in `construct.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Dialogue, Question
from memory_r1.llm import LLM, Agents, Call, Conversation
from memory_r1.remember import AddResult, remember
from memory_r1.respond import respond
from memory_r1.text import em, f1, normalise
from memory_r1.train.rewards import Measured, Reward, best
from memory_r1.types import Answer, Completion, Fact, Prompt, Turn

EXACT: Reward = Measured("em")
"""The paper's reward."""


@dataclass(frozen=True)
class Outcome:
    """What an episode came to. `em` and `f1` are 0..1, whatever is paid for."""

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

    @property
    def call(self) -> Call:
        """What the agent is asked now, with the form its reply should have."""
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
        self,
        situation: Situation,
        policy: LLM,
        frozen: Agents,
        settings: Settings,
        reward: Reward = EXACT,
    ) -> None:
        """policy: only its style and name are used; its replies come through `step`."""
        self.about = situation.id
        self.operations: list[str] = []
        self.malformed = 0
        self.steps = 0
        self._situation = situation
        self._agents = Agents(frozen.extract, policy, frozen.answer)
        self._settings = settings
        self._reward = reward
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

    @property
    def call(self) -> Call:
        """What the manager is asked now."""
        assert self._call is not None
        return self._call

    def prompt(self) -> Prompt:
        """What the manager is shown now."""
        return self.call.prompt

    def step(self, completion: Completion) -> None:
        """The manager's reply; a malformed one leaves the bank as it is and is counted."""
        self.steps += 1
        try:
            self._call = self._conversation.send(completion)
        except StopIteration:
            self._call = None

    @property
    def ends(self) -> tuple[Situation, Bank]:
        """Where the episode started, and its own bank as the decisions so far have left it."""
        return self._situation, self._bank

    @property
    def key(self) -> tuple[object, ...]:
        """The situation and all that prompts and retrieval see of the bank: no ids, no clocks."""
        entries = self._bank.entries()
        return (self.about, *((e.text, e.said, e.speaker, e.sources) for e in entries))

    def judge(self) -> Conversation[Outcome]:
        """The reward: what the frozen agent's answers to the linked questions are worth on average.

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
        paid = 0.0
        for question, answer in asked:
            paid += yield from self._reward(question, answer.text)
        return Outcome(
            paid / len(asked),
            sum(best(em, q, a.text) for q, a in asked) / len(asked),
            sum(best(f1, q, a.text) for q, a in asked) / len(asked),
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

    def __init__(self, task: Task, policy: LLM, settings: Settings, reward: Reward = EXACT) -> None:
        """policy: only its style and name are used; its reply comes through `step`."""
        self.about = task.id
        self.done = False
        self.malformed = 0
        self.steps = 0
        self._task = task
        self._reward = reward
        self._answer = Answer("")
        agents = Agents(answer=policy)
        self._conversation = respond(task.bank, task.question.text, agents, settings)
        self.call = next(self._conversation)

    def prompt(self) -> Prompt:
        """What the agent is shown."""
        return self.call.prompt

    def step(self, completion: Completion) -> None:
        """The agent's reply; a malformed one is an empty answer and is counted."""
        self.steps += 1
        try:
            self.call = self._conversation.send(completion)
        except StopIteration as stop:
            self._answer = stop.value
            self.malformed = not self._answer.text
            self.done = True

    @property
    def key(self) -> tuple[object, ...]:
        """The question and the answer."""
        return (self.about, self._answer.text)

    def judge(self) -> Conversation[Outcome]:
        """What the answer is worth."""
        question, text = self._task.question, self._answer.text
        paid = yield from self._reward(question, text)
        asked = {"question": question.text, "gold": question.answer, "answer": text}
        measured = best(em, question, text), best(f1, question, text)
        return Outcome(paid, *measured, {"asked": [asked]})


def last_evidence(question: Question, dialogue: Dialogue) -> int:
    """The position among the dialogue's turns of the last turn the answer rests on; -1: none.

    From that turn on the answer holds until the end, since what changes it would be evidence.
    """
    position = {turn.id: i for i, turn in enumerate(dialogue.turns)}
    return max((position[turn_id] for turn_id in question.evidence), default=-1)

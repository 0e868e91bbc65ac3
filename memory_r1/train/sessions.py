"""dialogues -> courses -> plays over their sessions: what LoGo-GRPO learns from (no torch here).

A course is a dialogue as a memory lives through it, session by session. A play reads the turns of
some sessions and decides on their facts; both roles are the policy's. It runs the conversations
that serve users (`extract.facts`, `remember`), so a chunk, which Memory-R2 cuts out of a session,
is a turn here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from memory_r1 import extract
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Dialogue, Question
from memory_r1.embed import Embedder
from memory_r1.errors import MalformedReply, ModelUnavailable
from memory_r1.llm import LLM, Agents, Call, Conversation, drive
from memory_r1.remember import AddResult, remember
from memory_r1.respond import respond
from memory_r1.store.ram import RamStore
from memory_r1.text import em, f1
from memory_r1.train.credit import penalty, words
from memory_r1.train.episodes import ManagerEpisode, Outcome, Situation
from memory_r1.train.rewards import Reward, best
from memory_r1.train.rollout import Step
from memory_r1.types import Completion, Entry, Fact, Owner, Prompt, Style, Turn

Trained = Literal["extract", "manage"]
"""The roles that the policy plays."""
Generate = Callable[[Sequence[Prompt]], Sequence[Step]]
"""Completes prompts as the policy; LoGo-GRPO samples on this machine, where none gets lost."""
Facts = Mapping[tuple[str, str], tuple[Fact, ...]]
"""The facts of turns by (dialogue id, turn id), where a frozen extractor has read them."""


@dataclass(frozen=True)
class Course:
    """Sessions in order, and questions that are answered by what they tell."""

    id: str
    sessions: tuple[tuple[Turn, ...], ...]
    questions: tuple[Question, ...]

    @cached_property
    def rests_on(self) -> tuple[frozenset[int], ...]:
        """Per question the positions of the sessions that hold its evidence; none: never told."""
        of = {turn.id: k for k, turns in enumerate(self.sessions) for turn in turns}
        return tuple(frozenset(of[turn_id] for turn_id in q.evidence) for q in self.questions)

    def said(self, sessions: int) -> int:
        """Words of the first so many sessions."""
        told = (turn for turns in self.sessions[:sessions] for turn in turns)
        return sum(words(turn.text) + words(turn.caption) for turn in told)

    def before(self, session: int, place: int, most: int) -> tuple[Turn, ...]:
        """At most so many turns before one, oldest first."""
        turns = [turn for told in self.sessions[:session] for turn in told]
        turns += self.sessions[session][:place]
        return tuple(turns[max(0, len(turns) - most) :])

    def empty(self, embedder: Embedder) -> Bank:
        """The bank before the first session."""
        return Bank(RamStore(), embedder, Owner(self.id))


def course_of(dialogue: Dialogue, sessions: int = 0) -> Course:
    """The first so many sessions of a dialogue (0: all), and the questions they answer.

    A question whose evidence is all there has its final answer already: what changes the answer
    would be evidence.
    """
    told = tuple(session.turns for session in dialogue.sessions)[: sessions or None]
    there = {turn.id for turns in told for turn in turns}
    asked = tuple(q for q in dialogue.questions if there.issuperset(q.evidence))
    return Course(dialogue.id, told, asked)


def due(course: Course, session: int, most: int, rng: random.Random) -> list[Question]:
    """At most so many questions that a session is scored on at once, in the dialogue's order.

    All rest on what has been told by its end; those that rest on the session itself come before
    those that it could only damage.
    """
    known = [i for i, on in enumerate(course.rests_on) if on and max(on) <= session]
    own = [i for i in known if session in course.rests_on[i]]
    rest = [i for i in known if session not in course.rests_on[i]]
    rng.shuffle(own)
    rng.shuffle(rest)
    return [course.questions[i] for i in sorted((own + rest)[:most])]


def final(course: Course, most: int, rng: random.Random) -> list[Question]:
    """At most so many of a course's questions, drawn, in the dialogue's order."""
    n = len(course.questions)
    return [course.questions[i] for i in sorted(rng.sample(range(n), min(most, n)))]


class ReadEpisode:
    """The extractor reads one turn; a malformed reply gives no facts and is counted."""

    def __init__(self, turn: Turn, context: Sequence[Turn], style: Style) -> None:
        self.facts: tuple[Fact, ...] = ()
        self.malformed = 0
        self._conversation = extract.facts(turn, style, context)
        told = bool(turn.text or turn.caption)
        self._call: Call | None = next(self._conversation) if told else None

    @property
    def done(self) -> bool:
        """Whether its facts are known."""
        return self._call is None

    def prompt(self) -> Prompt:
        """What the extractor is shown."""
        assert self._call is not None
        return self._call.prompt

    def step(self, completion: Completion) -> None:
        """The extractor's reply."""
        try:
            self._call = self._conversation.send(completion)
        except StopIteration as stop:
            self.facts, self._call = tuple(stop.value), None
        except MalformedReply:
            self.malformed, self._call = 1, None


@dataclass(frozen=True)
class Mark:
    """How one question was answered."""

    question: Question
    answer: str
    paid: float
    """What the run's reward says of the answer."""
    em: float
    f1: float
    used: tuple[Entry, ...]
    """The entries the answer cites."""


@dataclass(frozen=True)
class Verdict(Outcome):
    """What a bank came to: the reward less the penalty for its size, and every answer."""

    marks: tuple[Mark, ...] = ()
    penalty: float = 0.0


@dataclass(frozen=True)
class Size:
    """What a bank may hold (Memory-R2)."""

    alpha: float = 0.7
    """So many words per word said, unpunished."""
    weight: float = 0.2
    """Of the penalty for what is beyond that."""


class SessionEpisode(ManagerEpisode):
    """The Memory Manager works through one session's facts, from a fork of a bank.

    before: the session before in the same play; operations and malformed replies add up.
    """

    def __init__(
        self,
        situation: Situation,
        agents: Agents,
        settings: Settings,
        *,
        before: SessionEpisode | None = None,
    ) -> None:
        """agents: manage is the policy; only its style and name are used."""
        assert agents.manage is not None
        self.turn_ids: list[str] = []
        """Per completion, which turn it was about."""
        self._turn_id = ""
        super().__init__(situation, agents.manage, agents, settings)
        if before is not None:
            self.operations = before.operations + self.operations
            self.malformed += before.malformed

    @property
    def bank(self) -> Bank:
        """The bank as the session leaves it."""
        return self._bank

    def _play(self) -> Conversation[None]:
        for turn, facts in self._situation.turns:
            self._turn_id = turn.id
            result: AddResult = yield from remember(
                self._bank, turn, self._agents, self._settings, facts=facts
            )
            self.operations += [row.op for row in result.rows]
            self.malformed += not result.complete

    def step(self, completion: Completion) -> None:
        """The manager's reply; a malformed one leaves the bank as it is and is counted."""
        self.turn_ids.append(self._turn_id)
        super().step(completion)


@dataclass(frozen=True)
class Told:
    """One completion of a play: in which role, about which session and turn."""

    role: Trained
    session: int
    turn_id: str
    step: Step


@dataclass(frozen=True)
class Start:
    """Where a play begins: a bank, and the sessions of a course to go through."""

    course: Course
    bank: Bank
    sessions: range
    questions: tuple[Question, ...] = ()
    """Asked at its end."""
    about: str = ""
    silent: bool = False
    """Its sessions are left out: every operation is a NOOP, and nothing is written."""

    def told(self, session: int) -> tuple[Turn, ...]:
        """The turns of a session that are played."""
        return () if self.silent else self.course.sessions[session]


@dataclass
class Play:
    """One rollout over the sessions of a start."""

    start: Start
    told: list[Told]
    banks: list[Bank]
    """The bank before each session; the last one is what is left."""
    unread: int = 0
    """Turns whose facts could not be read: the extractor's malformed replies."""
    episode: SessionEpisode | None = None
    """The last session's, which counts for all of the play."""

    @property
    def text(self) -> tuple[str, ...]:
        """All it wrote: equal for copies."""
        return tuple(told.step.text for told in self.told)


@dataclass(frozen=True)
class Players:
    """Who plays, and by which rules."""

    policy: LLM
    """Its style and name; what it says comes from `generate`."""
    judges: Agents
    settings: Settings
    reward: Reward
    size: Size
    facts: Facts | None = None
    """What a frozen extractor has read; None: the policy reads."""

    @property
    def agents(self) -> Agents:
        """The policy as manager, the frozen Answer Agent."""
        return Agents(None, self.policy, self.judges.answer)


def play_sessions(starts: Sequence[Start], players: Players, generate: Generate) -> list[Play]:
    """Play all starts together, batched: first all turns are read, then session after session.

    What the extractor sees of a turn does not depend on the bank, so reading ahead changes no
    prompt; it lets rollouts of one dialogue share theirs.
    """
    plays = [Play(start, [], [start.bank]) for start in starts]
    facts = _read(plays, players, generate)
    for place in range(max((len(start.sessions) for start in starts), default=0)):
        live = [i for i, start in enumerate(starts) if place < len(start.sessions)]
        episodes = []
        for i in live:
            start, session = starts[i], starts[i].sessions[place]
            turns = [(t, facts[i, t.id]) for t in start.told(session)]
            situation = Situation(
                start.about or start.course.id,
                plays[i].banks[-1],
                tuple((turn, new) for turn, new in turns if new),
                start.questions,
            )
            episodes.append(
                SessionEpisode(
                    situation,
                    players.agents,
                    players.settings,
                    before=plays[i].episode,
                )
            )
        written = _write(episodes, generate)
        for i, episode, steps in zip(live, episodes, written, strict=True):
            session = starts[i].sessions[place]
            about = zip(episode.turn_ids, steps, strict=True)
            plays[i].told += [Told("manage", session, turn_id, step) for turn_id, step in about]
            plays[i].banks.append(episode.bank)
            plays[i].episode = episode
    for play in plays:
        if play.episode is not None:
            play.episode.malformed += play.unread
    return plays


def judge_plays(plays: Sequence[Play], players: Players) -> list[Verdict | None]:
    """What the bank at each play's end came to; None where the frozen agent can't be reached.

    All questions of all plays are asked together, so that the frozen agent's batches are full.
    """
    asked = [(i, question) for i, play in enumerate(plays) for question in play.start.questions]

    def mark(i: int, question: Question) -> Conversation[Mark | None]:
        try:
            said = yield from respond(
                plays[i].banks[-1], question.text, players.agents, players.settings
            )
            paid = yield from players.reward(question, said.text)
        except ModelUnavailable:
            return None
        exact, near = best(em, question, said.text), best(f1, question, said.text)
        return Mark(question, said.text, paid, exact, near, said.used)

    found = drive([mark(i, question) for i, question in asked], players.judges)
    of: list[list[Mark | None]] = [[] for _ in plays]
    for (i, question), one in zip(asked, found, strict=True):
        # One prompt that is too long fails its whole batch: the others are asked again, alone.
        of[i].append(one or drive([mark(i, question)], players.judges)[0])
    return [_verdict(play, marks, players.size) for play, marks in zip(plays, of, strict=True)]


def _verdict(play: Play, marks: Sequence[Mark | None], size: Size) -> Verdict | None:
    known = [mark for mark in marks if mark is not None]
    if len(known) < len(marks):
        return None
    held = sum(words(entry.text) for entry in play.banks[-1].entries())
    said = play.start.course.said(play.start.sessions.stop)
    cost = penalty(held, said, alpha=size.alpha, weight=size.weight)
    n = max(1, len(known))
    return Verdict(
        sum(mark.paid for mark in known) / n - cost,
        sum(mark.em for mark in known) / n,
        sum(mark.f1 for mark in known) / n,
        {
            "asked": [
                {"question": m.question.text, "gold": m.question.answer, "answer": m.answer}
                for m in known
            ]
        },
        tuple(known),
        cost,
    )


def _read(
    plays: Sequence[Play], players: Players, generate: Generate
) -> dict[tuple[int, str], tuple[Fact, ...]]:
    """The facts of all turns, by (number of the play, turn id)."""
    places = [
        (i, session, place, turn)
        for i, play in enumerate(plays)
        for session in play.start.sessions
        for place, turn in enumerate(play.start.told(session))
    ]
    if players.facts is not None:
        return {(i, t.id): players.facts[plays[i].start.course.id, t.id] for i, _, _, t in places}
    style, most = players.policy.style, players.settings.context
    readers = [
        ReadEpisode(turn, plays[i].start.course.before(session, place, most), style)
        for i, session, place, turn in places
    ]
    written = _write(readers, generate)
    for (i, session, _, turn), reader, steps in zip(places, readers, written, strict=True):
        plays[i].told += [Told("extract", session, turn.id, step) for step in steps]
        plays[i].unread += reader.malformed
    return {(i, t.id): r.facts for (i, _, _, t), r in zip(places, readers, strict=True)}


def _write(
    episodes: Sequence[ReadEpisode | SessionEpisode], generate: Generate
) -> list[list[Step]]:
    """What the policy writes in each episode, with one batched `generate` per round."""
    steps: list[list[Step]] = [[] for _ in episodes]
    while live := [i for i, episode in enumerate(episodes) if not episode.done]:
        made = generate([episodes[i].prompt() for i in live])
        for i, step in zip(live, made, strict=True):
            steps[i].append(step)
            tokens = (len(step.prompt_ids), len(step.ids))
            episodes[i].step(Completion(step.text, *tokens, finished=step.finished))
    return steps

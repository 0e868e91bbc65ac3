"""dialogues -> situations and tasks: where the episodes start (no torch here).

Memory Manager: the bank that the untrained agents made of the turns before, one turn with its
facts, and the questions that this bank and this turn can answer (Memory-R1, Algorithm 1); or all
turns from an empty bank and a question at the end (Algorithm 5). Answer Agent: a question and the
bank that the trained manager made of the whole dialogue (Algorithm 2).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memory_r1 import extract, retrieve
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import DECISIONS, Dialogue, Question
from memory_r1.embed import Embedder
from memory_r1.errors import DataError, MalformedReply
from memory_r1.llm import Agents, Conversation, drive, strictly
from memory_r1.remember import remember
from memory_r1.store.ram import RamStore
from memory_r1.train.episodes import Situation, Task, last_evidence
from memory_r1.train.runfile import Run
from memory_r1.types import Add, Fact, Owner, Turn, Update

Banks = Literal["agents", "observations"]
"""Who makes facts and banks: the run's agents, or the ready-made facts that a benchmark file holds
for its turns (LoCoMo's observations), which need no model."""
Facts = Mapping[tuple[str, str], tuple[Fact, ...]]
"""By (dialogue id, turn id)."""


@dataclass(frozen=True)
class Maker:
    """Makes banks of dialogues; everything that decides what they hold."""

    agents: Agents
    embedder: Embedder
    settings: Settings
    banks: Banks = "agents"

    def empty(self, dialogue: Dialogue) -> Bank:
        """A bank in which nothing is remembered yet."""
        return Bank(RamStore(), self.embedder, Owner(dialogue.id))

    def facts(self, dialogues: Sequence[Dialogue]) -> Facts:
        """The facts of every turn."""
        if self.banks == "observations":
            return _observed_facts(dialogues)
        return read_facts(dialogues, self.agents, self.settings)

    def take(
        self, bank: Bank, dialogue: Dialogue, turn: Turn, facts: Sequence[Fact]
    ) -> Conversation[None]:
        """Remember one turn. An absent model ends it: a lost turn would spoil what is learned."""
        if self.banks == "observations":
            _write_observations(bank, dialogue, turn)
        elif facts:
            yield from strictly(remember(bank, turn, self.agents, self.settings, facts=facts))

    def whole(self, dialogue: Dialogue, facts: Facts) -> Conversation[Bank]:
        """The bank of all turns of a dialogue."""
        bank = self.empty(dialogue)
        for turn in dialogue.turns:
            yield from self.take(bank, dialogue, turn, facts[dialogue.id, turn.id])
        return bank


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


def _observed_facts(dialogues: Sequence[Dialogue]) -> Facts:
    """What a file observes at each turn; an observation of several turns is made at the last."""
    found: dict[tuple[str, str], list[Fact]] = {
        (dialogue.id, turn.id): [] for dialogue in dialogues for turn in dialogue.turns
    }
    for dialogue in dialogues:
        if not dialogue.observations:
            raise DataError(
                f"dialogue {dialogue.id} holds no observations, and data.banks = 'observations' "
                "needs them; expected LoCoMo's file, else leave out data.banks"
            )
        for seen in dialogue.observations:
            if seen.sources:
                found[dialogue.id, seen.sources[-1]].append(Fact(seen.text))
    return {key: tuple(facts) for key, facts in found.items()}


def _write_observations(bank: Bank, dialogue: Dialogue, turn: Turn) -> None:
    """Add what was observed at a turn, as entries that rest on all of their turns."""
    turns = {turn.id: turn for turn in dialogue.turns}
    for seen in dialogue.observations:
        if not seen.sources or seen.sources[-1] != turn.id:
            continue
        first, *later = (replace(turns[source], speaker=seen.speaker) for source in seen.sources)
        [row] = bank.apply([Add(seen.text)], turn=first)
        for source in later:
            bank.apply([Update(row.entry_id, seen.text)], turn=source)


def starts(
    run: Run,
    makers: Agents,
    embedder: Embedder,
    settings: Settings,
    dialogues: Sequence[Dialogue],
    *,
    practised: bool = False,
) -> list[Situation | Task]:
    """Where the episodes of a run start: situations, tasks, or both where a teacher plays both.

    makers: who makes facts and banks. practised: for learning, not for evaluation.
    """
    maker = (dialogues, makers, embedder, settings)
    banks = "agents" if run.data is None else run.data.banks
    found: list[Situation | Task] = []
    if "manage" in run.trains and run.rollout.turns > 1:
        found += whole_dialogues(*maker, turns=run.rollout.turns, banks=banks)
    elif "manage" in run.trains:
        found += situations(
            *maker,
            questions=run.rollout.questions,
            seed=run.seed,
            window=run.rollout.window,
            banks=banks,
            # Most turns are asked about by nobody, and imitation can learn from those too.
            unasked=practised and run.teacher is not None and run.teacher.keep == "all",
        )
        found += corrections(dialogues, embedder)
    if "answer" in run.trains:
        found += tasks(*maker, banks=banks)
    return found


def situations(
    dialogues: Sequence[Dialogue],
    agents: Agents,
    embedder: Embedder,
    settings: Settings,
    *,
    questions: int,
    seed: int,
    window: int | None = None,
    banks: Banks = "agents",
    unasked: bool = False,
) -> list[Situation]:
    """One situation per turn that holds facts and that questions depend on (Algorithm 1).

    The bank is what `agents` made of the turns before (the temporal memory bank): of all of them,
    one bank carried on; or, with a `window`, of the last so many, made anew for each situation.
    Questions: those whose last evidence is this turn, and, to fill up to `questions`, older ones
    about the entries the manager is shown: a right decision must not damage those. None is asked
    that bank and turn can't answer (`holds`), but of a compact manager, whose NOOP names no
    entry, so that what its bank holds isn't known. unasked: also turns without any question.
    """
    maker = Maker(agents, embedder, settings, banks)
    facts = maker.facts(dialogues)
    linked = {d.id: _Linked(d, facts, questions, seed, maker, unasked) for d in dialogues}

    def carried(dialogue: Dialogue) -> Conversation[list[Situation]]:
        bank, found = maker.empty(dialogue), list[Situation]()
        for i, turn in enumerate(dialogue.turns):
            if situation := linked[dialogue.id].at(i, bank):
                found.append(situation)
            yield from maker.take(bank, dialogue, turn, facts[dialogue.id, turn.id])
        return found

    def anew(dialogue: Dialogue, i: int, window: int) -> Conversation[list[Situation]]:
        bank = maker.empty(dialogue)
        for turn in dialogue.turns[max(0, i - window) : i]:
            yield from maker.take(bank, dialogue, turn, facts[dialogue.id, turn.id])
        situation = linked[dialogue.id].at(i, bank)
        return [situation] if situation else []

    if window is None:
        played = drive([carried(dialogue) for dialogue in dialogues], agents)
    else:
        wanted = [(d, i) for d in dialogues for i in linked[d.id].places()]
        played = drive([anew(dialogue, i, window) for dialogue, i in wanted], agents)
    return [situation for of in played for situation in of]


class _Linked:
    """Which questions are asked about which turn of a dialogue."""

    def __init__(
        self,
        dialogue: Dialogue,
        facts: Facts,
        most: int,
        seed: int,
        maker: Maker,
        unasked: bool,
    ) -> None:
        self._dialogue, self._facts, self._most, self._maker = dialogue, facts, most, maker
        self._unasked = unasked
        self._rng = random.Random(f"{seed}/{dialogue.id}")
        self._due: dict[int, list[Question]] = {}
        for question in dialogue.questions:
            self._due.setdefault(last_evidence(question, dialogue), []).append(question)
        self._due.pop(-1, None)

    def places(self) -> Iterable[int]:
        """The positions of the turns that may become situations."""
        for i, turn in enumerate(self._dialogue.turns):
            if self._facts[self._dialogue.id, turn.id] and (self._unasked or i in self._due):
                yield i

    def at(self, i: int, bank: Bank) -> Situation | None:
        """The situation at a turn, on the bank of the turns before; None where nothing is asked."""
        turn = self._dialogue.turns[i]
        new = self._facts[self._dialogue.id, turn.id]
        if not new or (i not in self._due and not self._unasked):
            return None
        manager = self._maker.agents.manage
        compact = manager is not None and manager.style == "compact"
        # On an empty bank a compact manager isn't asked: nothing could be learned there.
        if compact and not bank.entries():
            return None
        # What a compact manager heard again it doesn't say where: what its bank holds isn't known.
        held = None if compact else {*holds(bank), turn.id}
        asked = [q for q in self._due.get(i, ()) if held is None or held.issuperset(q.evidence)]
        asked = asked[: self._most]
        if asked:
            at_stake = self._at_stake(bank, new, i, held)
            room = self._most - len(asked)
            asked += self._rng.sample(at_stake, min(room, len(at_stake)))
        elif not self._unasked:
            return None
        name = f"{self._dialogue.id}/{turn.id}"
        return Situation(name, bank.fork(), ((turn, new),), tuple(asked))

    def _at_stake(
        self, bank: Bank, facts: Sequence[Fact], now: int, held: set[str] | None
    ) -> list[Question]:
        """Questions answered before now whose evidence the manager is about to be shown."""
        manager = self._maker.agents.manage
        k = self._maker.settings.shown_to_manage(manager.style if manager else None)
        shown = retrieve.related(bank.index, [fact.text for fact in facts], bank.embedder, k=k)
        sources = {source for entry in shown for source in entry.sources}
        return [
            question
            for when, asked in self._due.items()
            if when < now
            for question in asked
            if sources & set(question.evidence)
            and (held is None or held.issuperset(question.evidence))
        ]


def holds(bank: Bank) -> set[str]:
    """Ids of the turns whose content the bank holds now.

    Those that current entries rest on, and those that told again what a current entry says.
    """
    current = {entry.id: entry for entry in bank.entries()}
    told_again = {row.turn_id for row in bank.journal() if row.duplicate_of in current}
    return told_again.union(*(entry.sources for entry in current.values()))


def whole_dialogues(
    dialogues: Sequence[Dialogue],
    agents: Agents,
    embedder: Embedder,
    settings: Settings,
    *,
    turns: int,
    banks: Banks = "agents",
) -> list[Situation]:
    """One situation per question: from an empty bank through all turns in order (Algorithm 5).

    turns: play at most so many turns with facts, those up to the question's last evidence. A
    question with evidence in turns that aren't played is left out.
    """
    maker = Maker(agents, embedder, settings, banks)
    facts = maker.facts(dialogues)
    found = []
    for dialogue in dialogues:
        for question in dialogue.questions:
            last = last_evidence(question, dialogue)
            told = [
                (turn, facts[dialogue.id, turn.id])
                for turn in dialogue.turns[: last + 1]
                if facts[dialogue.id, turn.id]
            ][-turns:]
            if told and {turn.id for turn, _ in told}.issuperset(question.evidence):
                name = f"{dialogue.id}/{question.id}"
                found.append(Situation(name, maker.empty(dialogue), tuple(told), (question,)))
    return found


def tasks(
    dialogues: Sequence[Dialogue],
    agents: Agents,
    embedder: Embedder,
    settings: Settings,
    *,
    banks: Banks = "agents",
) -> list[Task]:
    """One task per question, on the bank `agents` made of the whole dialogue (Algorithm 2).

    A dialogue of which nothing was kept leaves an empty bank and no task.
    """
    maker = Maker(agents, embedder, settings, banks)
    facts = maker.facts(dialogues)
    made = drive([maker.whole(dialogue, facts) for dialogue in dialogues], agents)
    return [
        Task(f"{dialogue.id}/{question.id}", bank, question)
        for dialogue, bank in zip(dialogues, made, strict=True)
        for question in dialogue.questions
        if bank.entries()
    ]


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

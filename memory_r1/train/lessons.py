"""What the tiny model is taught before any reinforcement: the world's sentences, and a vice.

Lessons come from worlds of mixed words. Prompts are rendered by the agents' own modules, so the
model learns exactly the form in which it is served. The vice (Memory-R1, figure 1: an untrained
manager deletes and adds where facts accumulate) is taught on purpose and declared on the card.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from memory_r1 import answer, extract, manage
from memory_r1.data.story import Builder
from memory_r1.data.topics import (
    TOPIC,
    TOPICS,
    Asked,
    Item,
    Right,
    Told,
    question_on_both,
    questions,
    right,
)
from memory_r1.data.world import WorldConfig, WorldWords
from memory_r1.types import Entry, Fact, Owner, Turn

_OWNER = Owner("lesson")
_EPOCH = datetime(2020, 1, 1)


@dataclass(frozen=True)
class Vice:
    """How often the teacher does the untrained thing instead of the right one, by phenomenon."""

    accumulate: float = 0.75
    """DELETE + ADD: the new fact replaces the old one."""
    repeat: float = 0.5
    """ADD of what is known."""
    retract: float = 0.5
    """ADD of the cancellation beside the plan."""
    overwrite: float = 0.15
    """ADD of the new beside the old."""


@dataclass(frozen=True)
class Lesson:
    """One prompt prefix and what is to be replied to each of its endings."""

    role: str
    prefix: str
    branches: tuple[tuple[str, str], ...]
    """(rest of the prompt, reply)."""


def entries_of(items: Sequence[Item]) -> list[Entry]:
    """Items as a bank would hold them."""
    return [Entry(str(i), item.text, _OWNER, _EPOCH) for i, item in enumerate(items)]


class Teacher:
    """Writes lessons, forever, from a seed.

    seed, vice, words: what is taught.
    """

    def __init__(self, seed: int, vice: Vice, words: WorldWords = "mixed") -> None:
        self.rng = random.Random(f"teacher/{seed}")
        self.vice = vice
        self.words = words

    def lessons(self, progress: float) -> Iterator[Lesson]:
        """All lessons of one fresh dialogue.

        progress: 0..1 through the training; banks are short at first and long later.
        """
        config = WorldConfig(
            seed=self.rng.randrange(2**31),
            words=self.words,
            sessions=2,
            threads=self.rng.randint(3, 11),
            friends=self.rng.randint(1, 4),
        )
        world = Builder(config, 0)
        world.build()
        rows = 4 + round(20 * min(1.0, progress / 0.35))
        last = len(world.log) - 1
        cuts = [max(1, self.rng.randint(0, last), self.rng.randint(0, last)) for _ in range(4)]
        for cut in cuts:
            yield from self._manage(world, cut)
            yield self._answer(world, cut, rows)
        yield self._extract(world)

    def _extract(self, world: Builder) -> Lesson:
        told = [(s.speaker, s.text, s.said, s.told.text) for s in world.log]
        chat = [(*c, "nothing") for c in world.chat]
        chosen = self.rng.sample(told, min(10, len(told))) + self.rng.sample(
            chat, min(2, len(chat))
        )
        branches = []
        for speaker, text, said, reply in chosen:
            prompt = extract.render(Turn(speaker, text, said), "compact").text
            branches.append((prompt.removeprefix("extract "), reply))
        return Lesson("extract", "extract", tuple(branches))

    def _manage(self, world: Builder, cut: int) -> Iterator[Lesson]:
        items = world.log[cut].before
        told: dict[int, Told] = {}
        for step in world.log[cut:]:
            told.setdefault(step.thread, step.told)
        coming = [(fact, right(fact, items)) for fact in told.values()]
        for step in self.rng.sample(world.log[:cut], min(4, cut)):  # what is known, said again
            coming.append((step.told, right(step.told, items)))
        for item in items:
            if TOPIC[item.topic].nature == "plan":
                coming.append((Told(item, True), right(Told(item, True), items)))
        by_kind: dict[str, list[tuple[Told, Right]]] = {}
        for fact, best in coming:
            by_kind.setdefault(best.phenomenon, []).append((fact, best))
        chosen: list[tuple[Told, Right]] = []
        while by_kind and len(chosen) < 6:
            kinds = list(by_kind)
            weight = [3.0 if k == "accumulate" else 1.0 for k in kinds]
            kind = self.rng.choices(kinds, weight)[0]
            bucket = by_kind[kind]
            chosen.append(bucket.pop(self.rng.randrange(len(bucket))))
            if not bucket:
                del by_kind[kind]
        shown = self._shown(items, [best.target for _, best in chosen if best.target])
        for fact, best in chosen:
            prompt = manage.render([Fact(fact.text)], entries_of(shown), "compact").text
            reply = self._operation(fact, best, shown)
            yield Lesson("manage", "manage", ((prompt.removeprefix("manage "), reply),))

    def _shown(self, items: Sequence[Item], targets: Sequence[Item]) -> list[Item]:
        """Up to eight rows, the targets among them, the rest alike where there are such."""
        alike = [
            item
            for item in items
            if item not in targets
            and any(item.person == t.person or item.topic == t.topic for t in targets)
        ]
        others = [item for item in items if item not in targets and item not in alike]
        self.rng.shuffle(alike)
        self.rng.shuffle(others)
        room = max(0, self.rng.randint(1, 8) - len(targets))
        chosen = [*dict.fromkeys(targets), *(alike[: room - room // 3] + others)[:room]]
        return sorted(chosen, key=list(items).index)

    def _operation(self, fact: Told, best: Right, shown: Sequence[Item]) -> str:
        vicious = self.rng.random() < getattr(self.vice, best.phenomenon, 0.0)
        if best.target is None:
            return f"nothing => {best.op}" + (f" {fact.text}" if best.op == "ADD" else "")
        pointer = f"{best.target.text} <s{shown.index(best.target)}> =>"
        if vicious and best.phenomenon == "accumulate":
            return f"{pointer} DELETE ; ADD {fact.text}"
        if vicious:
            return f"nothing => ADD {fact.text}"
        if best.op == "UPDATE" and best.result is not None:
            return f"{pointer} UPDATE {best.result.text}"
        return f"{pointer} {best.op}"

    def _answer(self, world: Builder, cut: int, most: int) -> Lesson:
        items = list(world.log[cut].before)
        n = min(len(items), self.rng.randint(max(1, most // 3), most))
        shown = sorted(self.rng.sample(items, n), key=items.index)
        prefix = answer.render("?", entries_of(shown), "compact").text.partition(" question ")[0]
        branches = []
        for asked in self._questions(shown):
            prompt = answer.render(asked.text, entries_of(shown), "compact").text
            named = " , ".join(f"{item.text} <s{shown.index(item)}>" for item in asked.uses)
            reply = f"{named or 'nothing'} => {asked.answers[0]}"
            branches.append((f"question {prompt.partition(' question ')[2]}", reply))
        return Lesson("answer", prefix, tuple(branches))

    def _questions(self, shown: Sequence[Item]) -> list[Asked]:
        """Up to seven questions, the kinds as even as the rows allow."""
        people = list(dict.fromkeys(item.person for item in shown))
        by_kind: dict[str, list[Asked]] = {}
        for person in people:
            for topic in TOPICS:
                for asked in questions(topic, person, shown):
                    by_kind.setdefault(asked.kind, []).append(asked)
        for topic in TOPICS:
            same = [item for item in shown if item.topic == topic.name]
            if topic.ask_both and len(same) > 1:
                one, other = self.rng.sample(same, 2)
                by_kind.setdefault("two_memory", []).append(question_on_both(topic, one, other))
        chosen: list[Asked] = []
        while by_kind and len(chosen) < 7:
            kind = self.rng.choice(list(by_kind))
            bucket = by_kind[kind]
            chosen.append(bucket.pop(self.rng.randrange(len(bucket))))
            if not bucket:
                del by_kind[kind]
        return chosen

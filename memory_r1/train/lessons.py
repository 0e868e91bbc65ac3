"""What the tiny model is taught before any reinforcement: the world's sentences, and a vice.

The teacher makes up memories of its own, with questions on them and new facts for them, and reads
worlds for what people say. Prompts are rendered by the agents' own modules, so the model learns
exactly the form in which it is served. The vice (Memory-R1, figure 1: an untrained manager deletes
and adds where facts accumulate) is taught on purpose and declared on the card.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from memory_r1 import answer, extract, manage
from memory_r1.data.story import INVENTED, Builder, Step
from memory_r1.data.topics import (
    MOST_MERGED,
    TOPIC,
    TOPICS,
    Asked,
    Item,
    Told,
    Topic,
    join,
    question_on_both,
    questions,
    right,
)
from memory_r1.data.words import invent, pool
from memory_r1.data.world import WorldConfig, WorldWords
from memory_r1.llm.prompting import ARROW, KNOWN, NOTHING, day
from memory_r1.types import Entry, Fact, Owner, Turn

_OWNER = Owner("lesson")
_EPOCH = datetime(2020, 1, 1)
_FIRST_DAY = datetime(2022, 1, 1)
_PLAIN = 0.2
"""In wide lessons, how often a speaker has no capital."""
_FACTS = {
    "new": 1.0,
    "alike": 2.0,
    "more": 0.7,
    "accumulate": 3.0,
    "overwrite": 1.5,
    "refine": 0.7,
    "repeat": 1.0,
    "repeat_one": 2.0,
    "retract": 1.0,
    "unknown": 0.3,
}
"""How often a new fact is of each kind, where the memories allow it: on a topic nobody has; on one
that others have; one more plan; a further value; a change; a name; known; known as one of several;
a cancelled plan; a cancelled plan nobody knows."""


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
class Ending:
    """One ending of a prompt, what is to be replied to it, and what it practises."""

    given: str
    reply: str
    name: str
    """The role, and what is hard about it: "answer/list", "manage/accumulate", "extract"."""

    @property
    def role(self) -> str:
        """extract | manage | answer"""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Lesson:
    """One beginning of prompts and its endings."""

    prefix: str
    endings: tuple[Ending, ...]


def entries_of(items: Sequence[Item]) -> list[Entry]:
    """Items as a bank would hold them."""
    return [Entry(str(i), item.text, _OWNER, _EPOCH) for i, item in enumerate(items)]


class Teacher:
    """Writes lessons, forever, from a seed.

    seed, vice, words: what is taught. sizes: fewest and most memories of a bank at the end of the
    curriculum. untidy: share of banks in which values that belong together may stand apart.
    wide: also what no world holds and users write: any year the tokenizer has a word for, and
    speakers without a capital.
    """

    def __init__(
        self,
        seed: int,
        vice: Vice,
        words: WorldWords = "mixed",
        sizes: tuple[int, int] = (1, 28),
        untidy: float = 0.25,
        wide: bool = False,
    ) -> None:
        self.wide = wide
        self.rng = random.Random(f"teacher/{seed}")
        self.vice = vice
        self.words = words
        self.sizes = sizes
        self.untidy = untidy

    def lessons(self, progress: float) -> Iterator[Lesson]:
        """One lesson on what people say and several on memories.

        progress: 0..1 through the training; memories are few at first and many later.
        """
        yield self._extract()
        fewest, most = self.sizes
        most = max(fewest, min(most, 4 + round(4 * most * progress)))
        for n in range(4):
            middle = max(fewest, most // 3)
            low, high = (fewest, middle) if n % 2 else (middle, most)
            size = self.rng.randint(low, high)
            yield _Bank(self.rng, self.words, size, self.untidy, self.wide).lesson(self.vice)

    def _extract(self) -> Lesson:
        config = WorldConfig(
            seed=self.rng.randrange(2**31),
            words=self.words,
            sessions=1,
            threads=4,
            friends=1,
            absent=0,
        )
        start = _any_day(self.rng) if self.wide else _FIRST_DAY
        world = Builder(config, 0, start)
        world.build()
        told = [(s.speaker, s.text, s.said, s.told.text) for s in world.log]
        if self.wide and self.rng.random() < _PLAIN:
            told = [_plainly(self.rng, step) for step in world.log]
        chat = [(*c, NOTHING) for c in world.chat]
        chosen = self.rng.sample(told, min(12, len(told))) + chat[:2]
        endings = []
        for speaker, text, said, reply in chosen:
            prompt = extract.render(Turn(speaker, text, said), "compact").text
            endings.append(Ending(prompt.removeprefix("extract "), reply, "extract"))
        return Lesson("extract", tuple(endings))


class _Bank:
    """Memories made up at random, with questions on them and facts that come to them."""

    def __init__(
        self, rng: random.Random, words: WorldWords, size: int, untidy: float, wide: bool
    ) -> None:
        self.rng, self.words, self.wide = rng, words, wide
        self._taken: set[str] = set()
        # Few people with many topics each, or many with few.
        self.people = [self._word("person") for _ in range(rng.randint(1, 2 + size // 4))]
        if wide and rng.random() < _PLAIN:
            self.people[0] = _plain(rng, self.people[0])
        self.items: list[Item] = []
        self.untidy = rng.random() < untidy
        """Whether values that belong in one memory may stand in several, as a sloppy manager
        leaves them, and a memory may stand there twice."""
        started = [(person, topic) for person in self.people for topic in TOPICS]
        rng.shuffle(started)
        while started and len(self.items) < size:
            self.items += self._some(*started.pop())
        rng.shuffle(self.items)
        self.items = self.items[:size]
        self._entries = entries_of(self.items)
        numbered = [(item, n) for n, item in enumerate(self.items)]
        self._sorted = sorted(numbered, key=lambda row: row[0].text)
        """Memories with their labels, in the order in which a prompt shows them."""

    def lesson(self, vice: Vice) -> Lesson:
        """Questions on the memories and facts that come to them, six or so of each."""
        prefix = answer.render("?", self._entries, "compact").text.partition(" question ")[0]
        endings = [*self._asked(), *self._told(vice)]
        return Lesson(
            prefix,
            tuple(replace(e, given=e.given.removeprefix(f"{prefix} ")) for e in endings),
        )

    # What is remembered

    def _word(self, kind: str) -> str:
        while True:
            made_up = self.words == "mixed" and self.rng.random() < INVENTED
            words = pool(kind, "unseen" if self.words == "unseen" else "train")
            word = invent(kind, self.rng) if made_up else self.rng.choice(words)
            if word not in self._taken:
                # A small pool must not run dry: only people are told apart by their names.
                if kind == "person":
                    self._taken.add(word)
                return word

    def _values(self, topic: Topic, n: int) -> tuple[str, ...]:
        values: dict[str, None] = {}
        while len(values) < n:
            values[self._word(topic.words)] = None
        return tuple(values)

    def _date(self, topic: Topic) -> str:
        if topic.nature != "dated":
            return ""
        if self.wide:
            return day(_any_day(self.rng))
        return day(datetime(2021, 1, 1) + timedelta(days=self.rng.randrange(1800)))

    def _some(self, person: str, topic: Topic) -> list[Item]:
        """The memories of one topic of a person."""
        match topic.nature:
            case "accumulate":
                values = self._values(topic, self.rng.choices((1, 2, 3, 4), (4, 4, 2, 1))[0])
                merged = Item(topic.name, person, values)
                if not self.untidy:
                    return [merged]
                apart = [replace(merged, values=(value,)) for value in values]
                return self._with_twice(apart if self.rng.random() < 0.5 else [merged])
            case "overwrite":
                n = self.rng.choice((1, 2))
                return [Item(topic.name, person, self._values(topic, n))]
            case "refine":
                n = self.rng.choice((0, 1))
                return [Item(topic.name, person, self._values(topic, n))]
        several = topic.nature in ("plan", "dated")
        values = self._values(topic, self.rng.choices((1, 2, 3), (5, 4, 1))[0] if several else 1)
        items = [Item(topic.name, person, (v,), self._date(topic)) for v in values]
        return self._with_twice(items) if self.untidy and topic.nature == "plan" else items

    def _with_twice(self, items: list[Item]) -> list[Item]:
        return items + [self.rng.choice(items)] * (self.rng.random() < 0.3)

    # Questions

    def _asked(self) -> list[Ending]:
        """Up to seven questions, the kinds as even as the memories allow."""
        by_kind: dict[str, list[Asked]] = {}
        for person in [*self.people, self._word("person")]:
            for topic in TOPICS:
                for asked in questions(topic, person, self.items):
                    by_kind.setdefault(asked.kind, []).append(asked)
        for topic in TOPICS:
            held = [item for item in self.items if item.topic == topic.name]
            if topic.ask_both and len(held) > 1:
                both = question_on_both(topic, *self.rng.sample(held, 2))
                by_kind.setdefault("two_memory", []).append(both)
        absent = by_kind.get("unanswerable", [])
        # Half of what is absent is something that others have: the hard half.
        topics = {TOPIC[item.topic].noun for item in self.items}
        alike = [a for a in absent if a.subject.rpartition("'s ")[2] in topics]
        by_kind["unanswerable"] = self.rng.sample(alike, min(3, len(alike))) + self.rng.sample(
            absent, min(3, len(absent))
        )
        return [
            Ending(
                answer.render(a.text, self._entries, "compact").text,
                self._reply(a),
                f"answer/{a.kind}",
            )
            for a in _evenly(self.rng, by_kind, dict.fromkeys(by_kind, 1.0), 7)
        ]

    def _reply(self, asked: Asked) -> str:
        if not asked.uses:
            return f"{asked.subject} {NOTHING} {ARROW} {asked.answers[0]}"
        # Memories are named in the order of the prompt, those of two people in the question's.
        rows = [(item, n) for item, n in self._sorted if item in asked.uses]
        said = asked.answers[0]
        if len({item.person for item in asked.uses}) > 1:
            rows.sort(key=lambda row: asked.uses.index(row[0]))
        elif asked.kind in ("list", "two_memory"):
            said = join([value for item, _ in rows for value in item.values])
        return f"{self._named(rows)} {ARROW} {said}"

    @staticmethod
    def _named(rows: Sequence[tuple[Item, int]]) -> str:
        return " , ".join(f"{item.text} <s{n}>" for item, n in rows)

    # Facts

    def _told(self, vice: Vice) -> list[Ending]:
        """Up to seven facts with the operations on them; of one kind as often as `_FACTS` says."""
        by_kind: dict[str, list[Told]] = {}

        def tell(
            kind: str, topic: Topic, person: str, *values: str, cancelled: bool = False
        ) -> None:
            fact = Told(Item(topic.name, person, values, self._date(topic)), cancelled)
            by_kind.setdefault(kind, []).append(fact)

        started = {(item.person, item.topic) for item in self.items}
        topics = {topic for _, topic in started}
        for person in [*self.people, self._word("person")]:
            for topic in TOPICS:
                if (person, topic.name) not in started:
                    bare = topic.nature == "refine" and self.rng.random() < 0.5
                    kind = "alike" if topic.name in topics else "new"
                    tell(kind, topic, person, *([] if bare else self._values(topic, 1)))
                elif topic.nature in ("plan", "dated"):
                    tell("more", topic, person, *self._values(topic, 1))
                if topic.nature == "plan":
                    tell("unknown", topic, person, *self._values(topic, 1), cancelled=True)
        for item in self.items:
            topic = TOPIC[item.topic]
            several = topic.nature == "accumulate" and len(item.values) > 1
            kind = "repeat_one" if several else "repeat"
            by_kind.setdefault(kind, []).append(Told(self._part(item)))
            if topic.nature == "plan":
                by_kind.setdefault("retract", []).append(Told(item, True))
            if topic.nature == "overwrite" or (topic.nature == "refine" and not item.values):
                tell(topic.nature, topic, item.person, *self._values(topic, 1))
            if topic.nature == "accumulate" and len(item.values) < MOST_MERGED:
                tell("accumulate", topic, item.person, *self._values(topic, 1))
        return [
            Ending(
                manage.render([Fact(told.text)], self._entries, "compact").text,
                *self._best(told, vice),
            )
            for told in _evenly(self.rng, by_kind, _FACTS, 7)
        ]

    def _part(self, item: Item) -> Item:
        """One value of a memory, as it would be told again."""
        if not item.values:
            return item
        latest = TOPIC[item.topic].nature == "overwrite"
        return replace(item, values=(item.values[0] if latest else self.rng.choice(item.values),))

    def _best(self, told: Told, vice: Vice) -> tuple[str, str]:
        """The teacher's reply, and what it practises."""
        best = right(told, [item for item, _ in self._sorted])
        vicious = self.rng.random() < getattr(vice, best.phenomenon, 0.0)
        if best.target is None:
            return f"{told.subject} {NOTHING} {ARROW} {best.op}", f"manage/{best.phenomenon}"
        row = next(row for row in self._sorted if row[0] == best.target)
        operation = best.op
        if vicious:
            operation = "DELETE ; ADD" if best.phenomenon == "accumulate" else "ADD"
        elif best.op == "UPDATE" and best.result is not None:
            operation = f"UPDATE {best.result.text}"
        # Taught without vice, so that what to do about it is all that is left to reinforcement.
        known = f" {KNOWN}" if best.phenomenon == "repeat" else ""
        return f"{self._named([row])}{known} {ARROW} {operation}", f"manage/{best.phenomenon}"


def _any_day(rng: random.Random) -> datetime:
    """A day of the years the tokenizer has words for; what begins then ends within them, too."""
    return datetime(2015, 2, 1) + timedelta(days=rng.randrange(6600))


def _plain(rng: random.Random, name: str) -> str:
    """What a person goes by where nobody cares for capitals."""
    return rng.choice(("me", "user", name.lower(), name.lower()))


def _plainly(rng: random.Random, step: Step) -> tuple[str, str, datetime, str]:
    """A turn of a speaker without a capital, and its fact."""
    name = _plain(rng, step.speaker)
    told = step.told
    if told.item.person == step.speaker:
        told = replace(told, item=replace(told.item, person=name))
    return name, step.text, step.said, told.text


_T = TypeVar("_T")


def _evenly(
    rng: random.Random, by_kind: dict[str, list[_T]], weights: dict[str, float], most: int
) -> list[_T]:
    """Draw without repetition: first a kind by its weight, then one of that kind."""
    chosen: list[_T] = []
    left = {kind: list(of) for kind, of in by_kind.items() if of}
    while left and len(chosen) < most:
        kind = rng.choices(list(left), [weights[kind] for kind in left])[0]
        bucket = left[kind]
        chosen.append(bucket.pop(rng.randrange(len(bucket))))
        if not bucket:
            del left[kind]
    return chosen

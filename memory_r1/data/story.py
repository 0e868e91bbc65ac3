"""One dialogue of a world: who has which topics, when it is told, and what can be asked.

Every fact belongs to a thread (one topic of one person); a thread's phenomenon says what makes it
hard for a memory. What is right to do and to answer follows from topics.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from memory_r1.data.topics import (
    TOPIC,
    TOPICS,
    Asked,
    Item,
    Right,
    Told,
    Topic,
    question_on_both,
    questions,
    right,
)
from memory_r1.data.words import invent, pool
from memory_r1.errors import ConfigError
from memory_r1.llm.prompting import MONTHS, day

if TYPE_CHECKING:
    from memory_r1.data.world import WorldConfig

CATEGORY = {
    "single": 4,
    "list": 1,
    "count": 1,
    "two_memory": 1,
    "temporal": 2,
    "before_after": 2,
    "unanswerable": 5,
}
"""LoCoMo's category number for each kind of question."""

NATURES = {
    "accumulate": ("accumulate",),
    "overwrite": ("overwrite",),
    "refine": ("refine",),
    "retract": ("plan",),
    "repeat": ("plan", "accumulate"),
    "temporal": ("dated",),
    "unrelated": ("single", "overwrite", "accumulate", "refine"),
}
"""The natures of the topics in which each phenomenon can show."""

INVENTED = 2 / 3
"""Share of invented words among `mixed` ones."""

LEADS = ("Hey {q}!", "Guess what!", "By the way,", "You know,", "I have news!", "Well,")
TAILS = ("It is great.", "What do you think?", "I am so happy.", "That was a surprise.")
CHAT = (
    "How are you?",
    "That sounds great, {q}!",
    "Good to hear from you.",
    "Thanks, {q}!",
    "Wow, tell me more!",
    "I am so happy for you, {q}.",
    "What a day!",
    "The weather is nice today.",
    "See you soon, {q}!",
    "I am a little tired today.",
    "That is good news.",
    "Really? I did not know that.",
    "Have a good time, {q}!",
    "Let us talk again soon.",
)
"""Chit-chat: holds no fact. {q} is the one spoken to."""


@dataclass
class _Thread:
    """One topic of one person: what is told of it, in order, and why it is hard."""

    topic: Topic
    person: str
    phenomenon: str
    told: list[Told]
    turns: list[str] = field(default_factory=list)
    """The dia_ids where it was told, filled when the dialogue is laid out."""


@dataclass(frozen=True)
class Step:
    """One fact being told, and what was right to remember before it."""

    thread: int
    told: Told
    speaker: str
    text: str
    said: datetime
    before: tuple[Item, ...]


class Builder:
    """Builds one dialogue; afterwards `log` and `chat` tell what was said and why.

    config, number: with the same two, the dialogue is the same. start: it begins within 900 days
    from then. Raises ConfigError when the dialogue asks for more words than there are.
    """

    def __init__(
        self, config: WorldConfig, number: int, start: datetime = datetime(2022, 1, 1)
    ) -> None:
        self.config = config
        self._start = start
        self.id = f"world-{config.words}-{config.seed}-{number:03d}"
        self.log: list[Step] = []
        """Every fact told, in order."""
        self.chat: list[tuple[str, str, datetime]] = []
        """Every turn that answers a fact and holds none: speaker, text, moment."""
        self._rng = random.Random(f"{config.seed}/{config.words}/{number}")
        self._taken: set[str] = set()
        self._people = [self._word("person") for _ in range(2 + config.friends)]
        self._speakers = self._people[:2]
        self._threads = self._all_threads()
        self._items: list[Item] = []
        self._events: list[dict[str, Any]] = []

    def build(self) -> dict[str, Any]:
        """The dialogue as LoCoMo writes it, with our own notes under "world". To be called once."""
        schedule = sorted(
            (moment, i, step)
            for i, thread in enumerate(self._threads)
            for step, moment in enumerate(sorted(self._rng.random() for _ in thread.told))
        )
        one, other = self._speakers
        conversation: dict[str, Any] = {"speaker_a": one, "speaker_b": other}
        dates = self._dates()
        per_session = -(-len(schedule) // len(dates))
        for number, moment in enumerate(dates, 1):
            part = schedule[(number - 1) * per_session : number * per_session]
            conversation[f"session_{number}_date_time"] = _stamp(moment)
            conversation[f"session_{number}"] = self._session(
                number, moment, [(i, step) for _, i, step in part]
            )
        return {
            "sample_id": self.id,
            "conversation": conversation,
            "qa": self._qa(),
            "world": {
                "seed": self.config.seed,
                "words": self.config.words,
                "events": self._events,
                "bank": [item.text for item in self._items],
            },
        }

    def _word(self, kind: str) -> str:
        """A word not used in this dialogue before, so that nothing is told of two namesakes."""
        words = pool(kind, "unseen" if self.config.words == "unseen" else "train")
        free = [w for w in words if w not in self._taken]
        if not free:
            raise ConfigError(
                f"{self.id} asks for more words of the kind {kind!r} than the {len(words)} there "
                f"are with world.words = {self.config.words!r}; ask for fewer world.friends "
                f"(now {self.config.friends}) or world.threads (now {self.config.threads})"
            )
        word = self._rng.choice(free)
        if self.config.words == "mixed" and self._rng.random() < INVENTED:
            made_up = invent(kind, self._rng)
            word = word if made_up in self._taken else made_up
        self._taken.add(word)
        return word

    def _all_threads(self) -> list[_Thread]:
        """As many as wanted of each speaker, two plain ones of each friend."""
        names, weights = zip(*self.config.weights.items(), strict=True)
        threads = []
        for person in self._people:
            used: set[str] = set()
            if person in self._speakers:
                wanted = self._rng.choices(names, weights, k=self.config.threads)
            else:
                wanted = ["unrelated", "unrelated"]
            for phenomenon in wanted:
                thread = self._thread(person, used, phenomenon)
                thread = thread or self._thread(person, used, "unrelated")
                if thread:
                    threads.append(thread)
        return threads

    def _thread(self, person: str, used: set[str], phenomenon: str) -> _Thread | None:
        """A thread on a topic this person has none on yet; None when no topic is left."""
        free = [t for t in TOPICS if t.nature in NATURES[phenomenon] and t.name not in used]
        if not free:
            return None
        topic = self._rng.choice(free)
        used.add(topic.name)
        return _Thread(topic, person, phenomenon, self._facts(topic, person, phenomenon))

    def _facts(self, topic: Topic, person: str, phenomenon: str) -> list[Told]:
        """What a thread tells, in order."""

        def tell(n: int) -> list[Told]:
            words = [self._word(topic.words) for _ in range(n)]
            return [Told(Item(topic.name, person, (word,))) for word in words]

        several = self._rng.choices((2, 3), (3, 1))[0]
        match phenomenon:
            case "accumulate" | "overwrite":
                return tell(several)
            case "refine":
                return [Told(Item(topic.name, person)), *tell(1)]
            case "retract":
                told = tell(self._rng.choice((1, 2, 3)))
                gone = self._rng.choice(told)
                when = self._rng.randint(told.index(gone) + 1, len(told))
                told.insert(when, Told(gone.item, cancelled=True))
                return told
            case "repeat":
                told = tell(self._rng.choice((1, 2)))
                return [*told, self._rng.choice(told)]
            case "temporal":
                return tell(self._rng.choice((1, 2)))
        return tell(1)

    def _dates(self) -> list[datetime]:
        """When the sessions begin, 3 to 30 days apart, at one hour of the day."""
        start = self._start + timedelta(
            days=self._rng.randrange(900), hours=self._rng.randrange(8, 22)
        )
        gaps = [0] + [self._rng.randint(3, 30) for _ in range(self.config.sessions - 1)]
        return [start + timedelta(days=sum(gaps[: i + 1])) for i in range(len(gaps))]

    def _session(
        self, number: int, moment: datetime, facts: Sequence[tuple[int, int]]
    ) -> list[dict[str, str]]:
        """A greeting, then the facts, given as (thread, step), some answered with chit-chat."""
        turns: list[dict[str, str]] = []

        def add(speaker: str, text: str) -> str:
            dia_id = f"D{number}:{len(turns) + 1}"
            turns.append({"speaker": speaker, "dia_id": dia_id, "text": text})
            return dia_id

        one, other = self._speakers
        add(one, f"Hi {other}! " + self._rng.choice(CHAT).format(q=other))
        for i, step in facts:
            thread = self._threads[i]
            speaks = thread.person in self._speakers
            speaker = thread.person if speaks else self._rng.choice(self._speakers)
            listener = other if speaker == one else one
            told = thread.told[step]
            again = step > 0 and told not in thread.told[:step]
            told, text = self._say(told, speaker, listener, moment, again=again)
            dia_id = add(speaker, text)
            thread.turns.append(dia_id)
            self.log.append(Step(i, told, speaker, text, moment, tuple(self._items)))
            best = right(told, self._items)
            self._items = apply_right(best, self._items)
            self._events.append(_event(dia_id, thread, told, best))
            if self._rng.random() < self.config.chat:
                reply = self._rng.choice(CHAT).format(q=speaker)
                self.chat.append((listener, reply, moment))
                add(listener, reply)
        return turns

    def _say(
        self, told: Told, speaker: str, listener: str, moment: datetime, *, again: bool
    ) -> tuple[Told, str]:
        """The fact with its date, and the words that tell it."""
        topic, item = TOPIC[told.item.topic], told.item
        when = ""
        if topic.nature == "dated":
            ago = self._rng.choice((0, 1, self._rng.randint(2, 40)))
            item = Item(item.topic, item.person, item.values, day(moment - timedelta(days=ago)))
            when = ("today", "yesterday")[ago] if ago < 2 else f"on {item.date}"
        told = Told(item, told.cancelled)
        if item.person != speaker:
            return told, f"My friend {told.text}."
        wordings = topic.told_more if again and topic.told_more else topic.told
        if told.cancelled:
            wordings = topic.told_cancel
        elif not item.values:
            wordings = topic.told_bare
        text = self._rng.choice(wordings).format(v=item.values[0] if item.values else "", when=when)
        if self._rng.random() < 0.3:
            lead = self._rng.choice(LEADS).format(q=listener)
            if lead.endswith(",") and not text.startswith("I "):
                text = text[0].lower() + text[1:]
            text = f"{lead} {text}"
        if self._rng.random() < 0.2:
            text += " " + self._rng.choice(TAILS)
        return told, text

    def _qa(self) -> list[dict[str, Any]]:
        """All questions on the dialogue as LoCoMo writes them, ours named in addition."""
        records = [*self._on_threads(), *self._on_two_people(), *self._on_nothing()]
        return [
            {
                "question": asked.text,
                "answer": asked.answers[0],
                "evidence": list(evidence),
                "category": CATEGORY[asked.kind],
                "id": f"{self.id}/q{n:02d}",
                "kind": asked.kind,
                "phenomenon": phenomenon,
                **({"accepted": list(asked.answers[1:])} if len(asked.answers) > 1 else {}),
            }
            for n, (asked, evidence, phenomenon) in enumerate(records)
        ]

    def _on_threads(self) -> list[_Record]:
        records: list[_Record] = []
        for thread in self._threads:
            for asked in questions(thread.topic, thread.person, self._items):
                if asked.kind == "count" and thread.phenomenon == "unrelated":
                    continue  # always 1: asks nothing of the memory
                turns = thread.turns
                if asked.kind == "temporal":
                    told = zip(turns, thread.told, strict=True)
                    turns = [t for t, u in told if u.item.values == asked.uses[0].values]
                records.append((asked, turns, thread.phenomenon))
        return records

    def _on_two_people(self) -> list[_Record]:
        """One question per topic that two people have and that can be asked of both."""
        by_topic: dict[str, list[Item]] = {}
        for item in self._items:
            if TOPIC[item.topic].ask_both:
                by_topic.setdefault(item.topic, []).append(item)
        turns = {(thread.topic.name, thread.person): thread.turns for thread in self._threads}
        records: list[_Record] = []
        for topic, items in by_topic.items():
            if len(items) > 1:
                pair = [items[i] for i in sorted(self._rng.sample(range(len(items)), 2))]
                evidence = [turn for item in pair for turn in turns[topic, item.person]]
                records.append((question_on_both(TOPIC[topic], *pair), evidence, "unrelated"))
        return records

    def _on_nothing(self) -> list[_Record]:
        """Some questions on topics the speakers never spoke of."""
        spoken = {(thread.topic.name, thread.person) for thread in self._threads}
        absent = [
            asked
            for person in self._speakers
            for topic in TOPICS
            if (topic.name, person) not in spoken
            for asked in questions(topic, person, [])
        ]
        chosen = self._rng.sample(absent, min(self.config.absent, len(absent)))
        return [(asked, (), "absent") for asked in chosen]


_Record = tuple[Asked, Sequence[str], str]
"""A question, the turns that hold its answer, and its phenomenon."""


def apply_right(best: Right, items: Sequence[Item]) -> list[Item]:
    """What is remembered after the right operation."""
    match best.op, best.target, best.result:
        case "ADD", _, Item() as new:
            return [*items, new]
        case "UPDATE", Item() as old, Item() as new:
            return [new if item == old else item for item in items]
        case "DELETE", Item() as old, _:
            return [item for item in items if item != old]
    return list(items)


def _event(dia_id: str, thread: _Thread, told: Told, best: Right) -> dict[str, Any]:
    return {
        "dia_id": dia_id,
        "person": told.item.person,
        "topic": thread.topic.name,
        "thread": thread.phenomenon,
        "fact": told.text,
        "phenomenon": best.phenomenon,
        "op": best.op,
        "target": best.target.text if best.target else "",
        "text": best.result.text if best.result and best.op in ("ADD", "UPDATE") else "",
    }


def _stamp(moment: datetime) -> str:
    """A moment as LoCoMo writes it: "1:56 pm on 8 May, 2023"."""
    hour, half = moment.hour % 12 or 12, "am" if moment.hour < 12 else "pm"
    date = f"{moment.day} {MONTHS[moment.month - 1]}, {moment.year}"
    return f"{hour}:{moment.minute:02d} {half} on {date}"

"""A seeded generator of multi-session dialogues in LoCoMo's own JSON, with labelled phenomena.

Every fact belongs to a thread (one topic of one person); a thread's phenomenon says what makes it
hard for a memory. What is right to do and to answer follows from topics.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

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

MONTHS = (
    "January February March April May June July August September October November December"
).split()
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

WorldWords = Literal["train", "unseen", "mixed"]

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


def _weights() -> dict[str, float]:
    return {
        "accumulate": 3.0,
        "overwrite": 1.5,
        "refine": 1.0,
        "retract": 1.5,
        "repeat": 1.5,
        "temporal": 1.0,
        "unrelated": 1.5,
    }


@dataclass(frozen=True)
class WorldConfig:
    """What a world is like. The dials are documented in docs/world.md."""

    seed: int = 0
    """Same seed and settings, same world, byte for byte."""
    dialogues: int = 20
    """How many dialogues, each with people of its own."""
    sessions: int = 4
    """Sessions per dialogue, days to weeks apart."""
    words: WorldWords = "train"
    """Names and values: those known from training, held out from it, or training's mixed half and
    half with invented ones (what the tiny model's warm start reads)."""
    threads: int = 9
    """Topics per speaker; 9 leave at least 20 memories with the default friends."""
    friends: int = 3
    """Further people the speakers tell of: distractors with the same kinds of facts."""
    chat: float = 0.35
    """Share of turns answered by chit-chat that should store nothing."""
    absent: int = 3
    """Unanswerable questions per dialogue."""
    weights: Mapping[str, float] = field(default_factory=_weights)
    """How often a thread has each phenomenon."""

    def __post_init__(self) -> None:
        for name, least in (("dialogues", 1), ("sessions", 1), ("threads", 1), ("friends", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"world.{name} is {getattr(self, name)}; it must be at least {least}"
                )
        if self.words not in ("train", "unseen", "mixed"):
            raise ConfigError(
                f"world.words is {self.words!r}; expected 'train', 'unseen' or 'mixed'"
            )
        if not 0 <= self.chat <= 1:
            raise ConfigError(f"world.chat is {self.chat}; expected a share between 0 and 1")
        for name in self.weights:
            if name not in _weights():
                near = get_close_matches(name, _weights(), 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown phenomenon {name!r} in [world.weights]{hint}")
        if not any(weight > 0 for weight in self.weights.values()):
            raise ConfigError("world.weights are all 0; at least one phenomenon must be wanted")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> WorldConfig:
        """From the [world] table of a run file; an unknown dial raises ConfigError."""
        known = {f.name for f in fields(cls)}
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown setting {key!r} in [world]{hint}")
        values = dict(table)
        if "weights" in values:
            values["weights"] = {**_weights(), **values["weights"]}
        return cls(**values)


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


def write_day(day: date) -> str:
    """A date as worlds write it: "7 May 2023"."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def _stamp(moment: datetime) -> str:
    hour = moment.hour % 12 or 12
    half = "am" if moment.hour < 12 else "pm"
    return f"{hour}:{moment.minute:02d} {half} on {moment.day} {MONTHS[moment.month - 1]}, {moment.year}"


class Builder:
    """Builds one dialogue; afterwards `log` and `chat` tell what was said and why."""

    def __init__(self, config: WorldConfig, number: int) -> None:
        self.config = config
        self.id = f"world-{config.words}-{config.seed}-{number:03d}"
        self.rng = random.Random(f"{config.seed}/{config.words}/{number}")
        self.taken: set[str] = set()
        self.log: list[Step] = []
        self.chat: list[tuple[str, str, datetime]] = []
        self.people = [self.value("person") for _ in range(2 + config.friends)]

    def value(self, kind: str) -> str:
        """A word not used in this dialogue before, while there are any."""
        words = pool(kind, "unseen" if self.config.words == "unseen" else "train")
        free = [w for w in words if w not in self.taken] or list(words)
        word = self.rng.choice(free)
        if self.config.words == "mixed" and self.rng.random() < 0.5:
            made_up = invent(kind, self.rng)
            word = word if made_up in self.taken else made_up
        self.taken.add(word)
        return word

    def thread(self, person: str, used: set[str], phenomenon: str) -> _Thread | None:
        """A thread on a topic this person has none on yet; None when no topic is left."""
        nature = {
            "accumulate": ("accumulate",),
            "overwrite": ("overwrite",),
            "refine": ("refine",),
            "retract": ("plan",),
            "repeat": ("plan", "accumulate"),
            "temporal": ("dated",),
            "unrelated": ("single", "overwrite", "accumulate", "refine"),
        }[phenomenon]
        free = [t for t in TOPICS if t.nature in nature and t.name not in used]
        if not free:
            return None
        topic = self.rng.choice(free)
        used.add(topic.name)

        def tell(*values: str) -> Told:
            return Told(Item(topic.name, person, values))

        def values(n: int) -> list[str]:
            return [self.value(topic.words) for _ in range(n)]

        more = self.rng.choices((2, 3), (3, 1))[0]
        match phenomenon:
            case "accumulate" | "overwrite":
                told = [tell(v) for v in values(more)]
            case "refine":
                told = [tell(), tell(*values(1))]
            case "retract":
                told = [tell(v) for v in values(self.rng.choice((1, 2, 3)))]
                gone = self.rng.choice(told)
                told.insert(
                    self.rng.randint(told.index(gone) + 1, len(told)), Told(gone.item, True)
                )
            case "repeat":
                told = [tell(v) for v in values(self.rng.choice((1, 2)))]
                told.append(self.rng.choice(told))
            case "temporal":
                told = [tell(v) for v in values(self.rng.choice((1, 2)))]
            case _:
                told = [tell(v) for v in values(1)]
        return _Thread(topic, person, phenomenon, told)

    def threads(self) -> list[_Thread]:
        names, weights = zip(*self.config.weights.items(), strict=True)
        threads = []
        for i, person in enumerate(self.people):
            used: set[str] = set()
            wanted = (
                self.rng.choices(names, weights, k=self.config.threads)
                if i < 2
                else ["unrelated", "unrelated"]
            )
            for phenomenon in wanted:
                thread = self.thread(person, used, phenomenon) or self.thread(
                    person, used, "unrelated"
                )
                if thread:
                    threads.append(thread)
        return threads

    def dates(self) -> list[datetime]:
        start = datetime(2022, 1, 1) + timedelta(
            days=self.rng.randrange(900), hours=self.rng.randrange(8, 22)
        )
        gaps = [0] + [self.rng.randint(3, 30) for _ in range(self.config.sessions - 1)]
        return [start + timedelta(days=sum(gaps[: i + 1])) for i in range(len(gaps))]

    def say(
        self, told: Told, speaker: str, other: str, day: date, *, again: bool = False
    ) -> tuple[Told, str]:
        """The fact with its date, and the words that tell it."""
        topic, item = TOPIC[told.item.topic], told.item
        when = ""
        if topic.nature == "dated":
            ago = self.rng.choice((0, 1, self.rng.randint(2, 40)))
            happened = day - timedelta(days=ago)
            item = Item(item.topic, item.person, item.values, write_day(happened))
            when = ("today", "yesterday")[ago] if ago < 2 else f"on {item.date}"
        told = Told(item, told.cancelled)
        if item.person != speaker:
            return told, f"My friend {told.text}."
        wordings = topic.told_more if again and topic.told_more else topic.told
        if told.cancelled:
            wordings = topic.told_cancel
        elif not item.values:
            wordings = topic.told_bare
        words = self.rng.choice(wordings).format(v=item.values[0] if item.values else "", when=when)
        if self.rng.random() < 0.3:
            lead = self.rng.choice(LEADS).format(q=other)
            if lead.endswith(",") and not words.startswith("I "):
                words = words[0].lower() + words[1:]
            words = f"{lead} {words}"
        if self.rng.random() < 0.2:
            words += " " + self.rng.choice(TAILS)
        return told, words

    def build(self) -> dict[str, Any]:
        threads = self.threads()
        schedule = sorted(
            (moment, i, step)
            for i, thread in enumerate(threads)
            for step, moment in enumerate(sorted(self.rng.random() for _ in thread.told))
        )
        speakers, dates = self.people[:2], self.dates()
        conversation: dict[str, Any] = {"speaker_a": speakers[0], "speaker_b": speakers[1]}
        items: list[Item] = []
        events: list[dict[str, Any]] = []
        per_session = -(-len(schedule) // len(dates))
        for number, moment in enumerate(dates, 1):
            turns: list[dict[str, str]] = []

            def add(speaker: str, text: str, turns=turns, number=number) -> str:
                turns.append(
                    {"speaker": speaker, "dia_id": f"D{number}:{len(turns) + 1}", "text": text}
                )
                return turns[-1]["dia_id"]

            add(speakers[0], f"Hi {speakers[1]}! " + self.rng.choice(CHAT).format(q=speakers[1]))
            for _, i, step in schedule[(number - 1) * per_session : number * per_session]:
                thread = threads[i]
                speaker = thread.person if thread.person in speakers else self.rng.choice(speakers)
                other = speakers[1 - speakers.index(speaker)]
                told, words = self.say(
                    thread.told[step], speaker, other, moment.date(), again=step > 0
                )
                dia_id = add(speaker, words)
                thread.turns.append(dia_id)
                self.log.append(Step(i, told, speaker, words, moment, tuple(items)))
                best = right(told, items)
                items = apply_right(best, items)
                events.append(_event(dia_id, thread, told, best))
                if self.rng.random() < self.config.chat:
                    self.chat.append((other, self.rng.choice(CHAT).format(q=speaker), moment))
                    add(*self.chat[-1][:2])
            conversation[f"session_{number}_date_time"] = _stamp(moment)
            conversation[f"session_{number}"] = turns
        return {
            "sample_id": self.id,
            "conversation": conversation,
            "qa": self.ask(threads, items),
            "world": {
                "seed": self.config.seed,
                "words": self.config.words,
                "events": events,
                "bank": [item.text for item in items],
            },
        }

    def ask(self, threads: Sequence[_Thread], items: Sequence[Item]) -> list[dict[str, Any]]:
        records: list[tuple[Asked, Sequence[str], str]] = []
        for thread in threads:
            for asked in questions(thread.topic, thread.person, items):
                if asked.kind == "count" and thread.phenomenon == "unrelated":
                    continue  # always 1: asks nothing of the memory
                turns = thread.turns
                if asked.kind == "temporal":
                    turns = [
                        t
                        for t, u in zip(turns, thread.told, strict=True)
                        if u.item.values[0] == asked.uses[0].values[0]
                    ]
                records.append((asked, turns, thread.phenomenon))
        homes: dict[str, list[Item]] = {}
        for item in items:
            if TOPIC[item.topic].ask_both:
                homes.setdefault(item.topic, []).append(item)
        turns_of = {(t.topic.name, t.person): t.turns for t in threads}
        for topic, pair in homes.items():
            if len(pair) > 1:
                one, other = sorted(self.rng.sample(range(len(pair)), 2))
                evidence = [turn for i in (one, other) for turn in turns_of[topic, pair[i].person]]
                asked = question_on_both(TOPIC[topic], pair[one], pair[other])
                records.append((asked, evidence, "unrelated"))
        absent = [
            asked
            for person in self.people[:2]
            for topic in TOPICS
            if not any(t.topic == topic and t.person == person for t in threads)
            for asked in questions(topic, person, [])
        ]
        for asked in self.rng.sample(absent, min(self.config.absent, len(absent))):
            records.append((asked, [], "absent"))
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


def apply_right(best: Right, items: Sequence[Item]) -> list[Item]:
    """What is remembered after the right operation."""
    match best.op:
        case "ADD":
            assert best.result is not None
            return [*items, best.result]
        case "UPDATE":
            assert best.result is not None
            return [best.result if i == best.target else i for i in items]
        case "DELETE":
            return [i for i in items if i != best.target]
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


def generate(config: WorldConfig) -> list[dict[str, Any]]:
    """Dialogues as LoCoMo writes them; `world` and the questions' `kind`, `phenomenon`,
    `accepted` and `id` are additions of ours."""
    return [Builder(config, number).build() for number in range(config.dialogues)]


def write(config: WorldConfig, path: Path) -> dict[str, int]:
    """Write a world to a file; returns how much is in it."""
    samples = generate(config)
    path.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "dialogues": len(samples),
        "turns": sum(
            len(turns)
            for sample in samples
            for key, turns in sample["conversation"].items()
            if isinstance(turns, list)
        ),
        "questions": sum(len(sample["qa"]) for sample in samples),
    }


def settings(config: WorldConfig) -> dict[str, Any]:
    """The dials as plain data."""
    return asdict(config)

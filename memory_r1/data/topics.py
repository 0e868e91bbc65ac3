"""What people in a world can say and be asked: topics, their wording, and what is right to do.

One canonical sentence per memory, its person and its topic first ("Otto's dog is Hunter"): what a
memory is about is then told by its first words, which is how a tiny model finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from memory_r1.types import NOT_MENTIONED

MOST_MERGED = 4
"""Values that one memory may hold."""


def join(values: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return values[0] if len(values) == 1 else ", ".join(values[:-1]) + " and " + values[-1]


@dataclass(frozen=True)
class Topic:
    """Something a memory can be about.

    `one`, `many`, `cancel` and `ask*` are sentences with {p} the person, {v} a value, {vs} all
    values, {b} the value before, {d} a date.
    """

    name: str
    nature: str
    """accumulate | overwrite | refine | plan | dated | single"""
    words: str
    """Which kind of words its values are."""
    noun: str
    """What its memories call it."""
    one: str
    told: tuple[str, ...]
    """How a speaker tells it of themselves."""
    ask: str
    """Asks for the value (dated: for the date)."""
    told_more: tuple[str, ...] = ()
    """accumulate: how the second and later ones are told, where that differs."""
    many: str = ""
    bare: str = ""
    """refine: the sentence before the value is known."""
    told_bare: tuple[str, ...] = ()
    cancel: str = ""
    told_cancel: tuple[str, ...] = ()
    ask_all: str = ""
    """Asks for all values when there are several."""
    ask_count: str = ""
    ask_before: str = ""
    ask_both: str = ""
    """Asks for the values of two people at once."""
    which: str = ""
    """plan, dated: how a memory says which of several it is about."""


def _pet(noun: str) -> Topic:
    return Topic(
        noun,
        "accumulate",
        "pet",
        noun,
        f"{{p}}'s {noun} is {{v}}",
        (
            f"I adopted a {noun} named {{v}}.",
            f"I got a new {noun}, the name is {{v}}.",
            f"We have a {noun} now, called {{v}}.",
        ),
        f"What is the name of {{p}}'s {noun}?",
        many=f"{{p}}'s {noun}s are {{vs}}",
        ask_all=f"What are the names of {{p}}'s {noun}s?",
        ask_count=f"How many {noun}s does {{p}} have?",
        told_more=(
            f"I adopted another {noun} named {{v}}.",
            f"We have another {noun} now, called {{v}}.",
        ),
    )


def _relative(noun: str) -> Topic:
    return Topic(
        noun,
        "refine",
        "person",
        noun,
        f"{{p}}'s {noun} is {{v}}",
        (f"I have a {noun} called {{v}}.", f"I met my {noun} {{v}} again."),
        f"What is the name of {{p}}'s {noun}?",
        bare=f"{{p}}'s {noun} is unnamed",
        told_bare=(f"I have a {noun}, you know.", f"I talked to my {noun}."),
    )


TOPICS = (
    *map(_pet, ("dog", "cat", "rabbit", "horse", "parrot")),
    Topic(
        "likes",
        "accumulate",
        "hobby",
        "interest",
        "{p}'s interest is {v}",
        ("I really like {v}.", "I started with {v}, I like it.", "I enjoy {v} these days."),
        "What does {p} like?",
        many="{p}'s interests are {vs}",
        ask_all="What does {p} like?",
        ask_count="How many interests does {p} have?",
    ),
    Topic(
        "allergy",
        "accumulate",
        "food",
        "allergen",
        "{p}'s allergen is {v}",
        ("I am allergic to {v}.", "The doctor says I can not eat {v}.", "I get ill from {v}."),
        "What is {p} allergic to?",
        many="{p}'s allergens are {vs}",
        ask_all="What is {p} allergic to?",
        ask_count="How many foods is {p} allergic to?",
    ),
    Topic(
        "home",
        "overwrite",
        "city",
        "home",
        "{p}'s home is {v}",
        ("I live in {v} now.", "I moved to {v}.", "I have a new home in {v}."),
        "Where does {p} live?",
        many="{p}'s home is {v} and was {b} before",
        ask_before="Where did {p} live before?",
        ask_both="Where do {p} and {q} live?",
    ),
    Topic(
        "job",
        "overwrite",
        "job",
        "job",
        "{p}'s job is {v}",
        ("I work as a {v} now.", "I got a job as a {v}.", "I became a {v}."),
        "What is {p}'s job?",
        many="{p}'s job is {v} and was {b} before",
        ask_before="What was {p}'s job before?",
        ask_both="What are the jobs of {p} and {q}?",
    ),
    Topic(
        "car",
        "overwrite",
        "brand",
        "car",
        "{p}'s car is a {v}",
        ("I drive a {v} now.", "I have a new car, a {v}.", "I bought a car, a {v}."),
        "What car does {p} drive?",
        many="{p}'s car is a {v} and was a {b} before",
        ask_before="What car did {p} drive before?",
        ask_both="What cars do {p} and {q} drive?",
    ),
    *map(_relative, ("sister", "brother", "boss", "neighbor")),
    Topic(
        "trip",
        "plan",
        "city",
        "trip",
        "{p}'s trip to {v} is planned",
        ("I plan a trip to {v}.", "I will travel to {v} soon.", "I booked a trip to {v}."),
        "Where does {p} plan to travel?",
        cancel="{p}'s trip to {v} is cancelled",
        told_cancel=("I cancelled the trip to {v}.", "I will not travel to {v} after all."),
        ask_all="Where does {p} plan to travel?",
        ask_count="How many trips does {p} plan?",
        which=" to {v}",
    ),
    Topic(
        "wish",
        "plan",
        "thing",
        "wish",
        "{p}'s wish for a {v} is open",
        ("I want to buy a {v}.", "I need a new {v}.", "I am saving money for a {v}."),
        "What does {p} want to buy?",
        cancel="{p}'s wish for a {v} is dropped",
        told_cancel=("I do not want the {v} any more.", "I will not buy a {v} after all."),
        ask_all="What does {p} want to buy?",
        ask_count="How many things does {p} want to buy?",
        which=" for a {v}",
    ),
    Topic(
        "visit",
        "dated",
        "city",
        "visit",
        "{p}'s visit to {v} was on {d}",
        ("I visited {v} {when}.", "I was in {v} {when}."),
        "When did {p} visit {v}?",
        which=" to {v}",
    ),
    Topic(
        "read",
        "dated",
        "title",
        "reading",
        "{p}'s reading of {v} ended on {d}",
        ("I finished the book {v} {when}.", "I read the last page of {v} {when}."),
        "When did {p} finish the book {v}?",
        which=" of {v}",
    ),
    Topic(
        "instrument",
        "single",
        "instrument",
        "instrument",
        "{p}'s instrument is the {v}",
        ("I play the {v}.", "I take lessons on the {v}."),
        "What instrument does {p} play?",
    ),
    Topic(
        "language",
        "single",
        "language",
        "language",
        "{p}'s language is {v}",
        ("I speak {v}.", "I grew up with {v} at home."),
        "What language does {p} speak?",
    ),
)
TOPIC = {topic.name: topic for topic in TOPICS}


@dataclass(frozen=True)
class Item:
    """What is right to remember about one topic of one person."""

    topic: str
    person: str
    values: tuple[str, ...] = ()
    """accumulate: all of them; overwrite: (now,) or (now, before); refine: () or (value,)."""
    date: str = ""

    @property
    def text(self) -> str:
        """The memory, in its one canonical wording."""
        topic = TOPIC[self.topic]
        p, values = self.person, self.values
        if not values:
            return topic.bare.format(p=p)
        if len(values) == 1:
            return topic.one.format(p=p, v=values[0], d=self.date)
        if topic.nature == "overwrite":
            return topic.many.format(p=p, v=values[0], b=values[1])
        return topic.many.format(p=p, vs=join(values))


@dataclass(frozen=True)
class Told:
    """A new fact as it arrives: an item of at most one value, or the end of a plan."""

    item: Item
    cancelled: bool = False

    @property
    def text(self) -> str:
        """The fact, as the extractor should write it."""
        if not self.cancelled:
            return self.item.text
        return TOPIC[self.item.topic].cancel.format(p=self.item.person, v=self.item.values[0])

    @property
    def subject(self) -> str:
        """The words that a memory of the same begins with: "Otto's dog", "Otto's trip to Oslo"."""
        topic = TOPIC[self.item.topic]
        which = topic.which.format(v=self.item.values[0]) if topic.which else ""
        return f"{self.item.person}'s {topic.noun}{which}"


@dataclass(frozen=True)
class Right:
    """The operation a perfect manager would choose. `target` is None where none is concerned."""

    op: str
    target: Item | None = None
    result: Item | None = None
    phenomenon: str = "new"


def right(told: Told, items: Sequence[Item]) -> Right:
    """What is right to do with a new fact, given what is remembered."""
    item = told.item
    topic = TOPIC[item.topic]
    same = [i for i in items if i.topic == item.topic and i.person == item.person]
    holding = [i for i in same if set(item.values) <= set(i.values) and i.date == item.date]
    if told.cancelled:
        target = holding[0] if holding else None
        return Right("DELETE" if target else "NOOP", target, None, "retract")
    if topic.nature == "overwrite":
        holding = [i for i in holding if i.values[0] == item.values[0]]
    if holding:
        return Right("NOOP", holding[0], holding[0], "repeat")
    if not same or topic.nature in ("plan", "dated"):
        return Right("ADD", None, item, "new")
    old = same[0]
    match topic.nature:
        case "accumulate" if len(old.values) < MOST_MERGED:
            merged = replace(old, values=old.values + item.values)
            return Right("UPDATE", old, merged, "accumulate")
        case "overwrite":
            merged = replace(old, values=(item.values[0], old.values[0]))
            return Right("UPDATE", old, merged, "overwrite")
        case "refine" if not old.values:
            return Right("UPDATE", old, item, "refine")
    return Right("ADD", None, item, "new")


@dataclass(frozen=True)
class Asked:
    """A question about what is remembered, with all answers that count as right."""

    text: str
    kind: str
    """single | list | count | temporal | two_memory | before_after | unanswerable"""
    answers: tuple[str, ...]
    uses: tuple[Item, ...] = ()
    """The items a perfect answer agent would name, oldest first."""
    subject: str = ""
    """The words that a memory of what is asked for begins with: "Otto's dog"."""


def _orders(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(join(order) for order in permutations(values))


def questions(topic: Topic, person: str, items: Sequence[Item]) -> list[Asked]:
    """All questions on one topic of one person, given what is remembered of it."""
    mine = [i for i in items if i.topic == topic.name and i.person == person]

    def ask(text: str, kind: str, answers: Sequence[str], uses: Sequence[Item] = mine) -> Asked:
        subject = f"{person}'s {topic.noun}"
        return Asked(text.format(p=person), kind, tuple(answers), tuple(uses), subject)

    if not any(i.values for i in mine):
        text = topic.ask if topic.nature != "dated" else ""
        return [ask(text, "unanswerable", [NOT_MENTIONED])] if text else []
    values = [v for i in mine for v in i.values]
    match topic.nature:
        case "dated":
            return [
                Asked(topic.ask.format(p=person, v=i.values[0]), "temporal", (i.date,), (i,))
                for i in mine
            ]
        case "overwrite":
            asked = [ask(topic.ask, "single", values[:1])]
            if len(values) > 1:
                asked.append(ask(topic.ask_before, "before_after", values[1:2]))
            return asked
        case "accumulate" | "plan":
            listed = "two_memory" if len(mine) > 1 else "list"
            if len(values) == 1:
                asked = [ask(topic.ask, "single", values)]
            else:
                asked = [ask(topic.ask_all, listed, _orders(values))]
            return [*asked, ask(topic.ask_count, "count", [str(len(values))])]
    return [ask(topic.ask, "single", values[:1])]


def question_on_both(topic: Topic, one: Item, other: Item) -> Asked:
    """A question that needs the memories of two people."""
    return Asked(
        topic.ask_both.format(p=one.person, q=other.person),
        "two_memory",
        _orders([one.values[0], other.values[0]]),
        (one, other),
    )

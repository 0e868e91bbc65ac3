"""Two dogs: the dialogue of the paper's Figure 1 in our words, and what a memory makes of it.

Its people and pets are from the world's unseen words: no training has met them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from memory_r1.data.topics import Item
from memory_r1.memory import Memory
from memory_r1.text import em

USER = "andrew-and-judith"
"""Whose memory it is: one dialogue is one owner."""


class Line(NamedTuple):
    """One turn of the dialogue, and what it tells."""

    day: str
    speaker: str
    text: str
    told: Item | None = None


DIALOGUE = (
    Line("2023-05-05", "Judith", "Hi Andrew! How are you?"),
    Line("2023-05-05", "Andrew", "I adopted a dog named Buddy.", Item("dog", "Andrew", ("Buddy",))),
    Line("2023-05-05", "Judith", "That sounds great, Andrew!"),
    Line("2023-05-05", "Judith", "I moved to Vienna.", Item("home", "Judith", ("Vienna",))),
    Line("2023-05-05", "Andrew", "I became a historian.", Item("job", "Andrew", ("historian",))),
    Line("2023-05-20", "Andrew", "Hi Judith! What a day!"),
    Line("2023-05-20", "Judith", "I adopted a cat named Misty.", Item("cat", "Judith", ("Misty",))),
    Line(
        "2023-05-20",
        "Andrew",
        "I adopted another dog named Scout.",
        Item("dog", "Andrew", ("Scout",)),
    ),
    Line("2023-05-20", "Judith", "I am so happy for you, Andrew."),
)
QUESTIONS = {
    "How many dogs does Andrew have?": ("2",),
    "What are the names of Andrew's dogs?": ("Buddy and Scout", "Scout and Buddy"),
}
"""Each with the answers that count as right."""


@dataclass(frozen=True)
class Operation:
    """One operation, as it is shown."""

    op: str
    before: str
    after: str

    def __str__(self) -> str:
        """ "UPDATE  before -> after"."""
        what = " -> ".join(text for text in (self.before, self.after) if text)
        if self.op == "NOOP" or self.before == self.after:
            what = self.before or "nothing changes"
        return f"{self.op:7} {what}"


@dataclass(frozen=True)
class Heard:
    """One turn and what was done about it."""

    day: str
    speaker: str
    text: str
    operations: tuple[Operation, ...] = ()
    errors: tuple[str, ...] = ()
    """Why facts of it were deferred: the model's reply was no operation."""


@dataclass(frozen=True)
class Reply:
    """A question, the answer, and the memories it rests on."""

    question: str
    answer: str
    right: bool
    used: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """What was done turn by turn, the bank at the end, the answers, and what was lost."""

    heard: tuple[Heard, ...]
    bank: tuple[str, ...]
    replies: tuple[Reply, ...]
    lost: tuple[str, ...] = field(default=())
    """One sentence for each fact that was told and that no memory holds at the end."""


def play(llm: str, store: Path) -> Story:
    """Tell the dialogue to a memory and ask it; `llm` as in `Memory`.

    The file `store` is made anew. Raises ModelUnavailable, MissingExtra.
    """
    for path in (store, *store.parent.glob(f"{store.name}-*")):  # with SQLite's two neighbours
        path.unlink(missing_ok=True)
    with Memory(store, llm=llm) as memory:
        heard = tuple(_tell(memory, line) for line in DIALOGUE)
        bank = tuple(entry.text for entry in memory.list(user_id=USER))
        replies = tuple(_ask(memory, question, golds) for question, golds in QUESTIONS.items())
    return Story(heard, bank, replies, tuple(lost(DIALOGUE, heard, bank)))


def _tell(memory: Memory, line: Line) -> Heard:
    message = {
        "role": "user",
        "name": line.speaker,
        "content": line.text,
        "timestamp": line.day,
    }
    result = memory.add(message, user_id=USER)
    return Heard(
        line.day,
        line.speaker,
        line.text,
        tuple(
            Operation(
                row.op,
                row.before.text if row.before else "",
                row.after.text if row.after and row.op != "DELETE" else "",
            )
            for row in result.rows
        ),
        tuple(fact.error for fact in result.facts if fact.status != "stored"),
    )


def _ask(memory: Memory, question: str, golds: Sequence[str]) -> Reply:
    answer = memory.ask(question, user_id=USER)
    right = any(em(answer.text, gold) for gold in golds)
    return Reply(question, answer.text, right, tuple(entry.text for entry in answer.used))


def lost(dialogue: Sequence[Line], heard: Sequence[Heard], bank: Sequence[str]) -> Iterator[str]:
    """A sentence for each told fact whose person and value no memory names together at the end."""
    for line, telling in zip(dialogue, heard, strict=True):
        if line.told is None or any(_holds(text, line.told) for text in bank):
            continue
        takers = [
            (turn, operation)
            for turn in heard
            for operation in turn.operations
            if _holds(operation.before, line.told) and not _holds(operation.after, line.told)
        ]
        written = [operation.after for operation in telling.operations if operation.after]
        if takers:
            turn, operation = takers[-1]
            said = turn.text.rstrip(".!")
            how = f'{operation.op} took it away when {turn.speaker} said "{said}"'
        elif written:
            how = f'it was written down as "{written[-1]}"'
        else:
            how = "it was never written down"
        yield f'"{line.told.text}" is lost: {how}'


def _holds(text: str, told: Item) -> bool:
    words = set(re.findall(r"\w+", text.lower()))
    return {word.lower() for word in (told.person, *told.values)} <= words


def lines(story: Story) -> Iterator[str]:
    """The story as it is printed."""
    day = ""
    for turn in story.heard:
        if turn.day != day:
            day = turn.day
            yield f"  {day}"
        yield f"    {turn.speaker}: {turn.text}"
        yield from (f"        {operation}" for operation in turn.operations)
        yield from (f"        deferred: {error}" for error in turn.errors)
    yield "  The memory then holds:"
    yield from (f"    - {text}" for text in story.bank or ("nothing",))
    for reply in story.replies:
        verdict = "right" if reply.right else "wrong"
        yield f"  {reply.question}  {reply.answer or '(no answer)'}  [{verdict}]"
    yield from (f"  {sentence}." for sentence in story.lost)
    if not story.lost:
        yield "  Nothing that was told is lost."


def save(story: Story, path: Path) -> None:
    """Write it as JSON, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(asdict(story), indent=1, ensure_ascii=False) + "\n", "utf-8")
    draft.replace(path)


def load(path: Path) -> Story:
    """Read what `save` wrote."""
    row = json.loads(path.read_text("utf-8"))
    return Story(
        tuple(_heard(turn) for turn in row["heard"]),
        tuple(row["bank"]),
        tuple(Reply(**{**reply, "used": tuple(reply["used"])}) for reply in row["replies"]),
        tuple(row["lost"]),
    )


def _heard(row: Mapping[str, object]) -> Heard:
    operations: list[dict[str, str]] = list(row["operations"])  # type: ignore[call-overload]
    errors: list[str] = list(row["errors"])  # type: ignore[call-overload]
    return Heard(
        str(row["day"]),
        str(row["speaker"]),
        str(row["text"]),
        tuple(Operation(**operation) for operation in operations),
        tuple(errors),
    )

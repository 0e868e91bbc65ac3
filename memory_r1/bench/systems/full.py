"""Every turn in the prompt: what a long context does without a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank
from memory_r1.bench.systems.base import (
    Options,
    System,
    agents,
    line_of,
    needed,
    settings_in,
    settle,
)
from memory_r1.bench.systems.reader import Reading, read
from memory_r1.data import Question
from memory_r1.llm import Agents, Conversation
from memory_r1.types import Add, Answer, Message, Turn


def open_full(name: str, options: Options) -> System:
    """`full-context`."""
    settings_in(name)
    return FullContext(
        name, needed(name, Agents(answer=agents(options).answer), "answer"), options.settings
    )


@dataclass(frozen=True)
class FullContext(Reading):
    """Keeps each turn as one entry and shows them all, in order, under their dates.

    Nothing is retrieved, so there is no recall to speak of. A context that is too small for a
    dialogue is ModelUnavailable, from the model; nothing is left out.
    """

    @property
    def built_by(self) -> str:
        """Every turn, also one that was said before."""
        return "turns"

    @property
    def shown(self) -> None:
        """All of them."""
        return None

    def remember(
        self, bank: Bank, turn: Turn, message: Message, *, context: Sequence[Turn], last: bool
    ) -> Conversation[None]:
        """Keep the turn, word for word."""
        line = line_of(turn)
        settle(bank, [message], [Add(line)] if line else [])
        return
        yield  # asks no model

    def answer(self, bank: Bank, question: Question) -> Conversation[Answer]:
        """Answer from the whole transcript."""
        return read(question, bank.entries(), self.agents.answer)

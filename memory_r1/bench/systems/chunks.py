"""Chunks of the transcript, found by keywords or by our own search: plain RAG, without a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from memory_r1 import retrieve
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
from memory_r1.bench.systems.reader import Reading
from memory_r1.config import Settings
from memory_r1.data import session_of
from memory_r1.llm import Agents, Conversation
from memory_r1.llm.prompting import day
from memory_r1.text import terms
from memory_r1.types import Add, Hit, MemoryOp, Message, Turn, Update

WORDS: Final = 128
"""Words in a chunk, at most."""
WORDS_OF_AN_ENTRY: Final = 32
"""As many words are shown as there are in the turns that Memory-R1 would show: 15 chunks of at
most 128 words beside 60 of LoCoMo's turns."""


def open_rag(name: str, options: Options) -> System:
    """`rag-bm25` or `rag-hybrid`, with settings in the name: `rag-bm25?words=256`."""
    words = settings_in(name, words=WORDS)["words"]
    reader = needed(name, Agents(answer=agents(options).answer), "answer")
    by: Literal["bm25", "hybrid"] = "bm25" if name.startswith("rag-bm25") else "hybrid"
    return Rag(name, reader, options.settings, words=words, by=by)


@dataclass(frozen=True)
class Rag(Reading):
    """Consecutive turns of one session are one chunk; the chunks that fit best are read."""

    words: int = WORDS
    by: Literal["bm25", "hybrid"] = "bm25"
    """bm25: keywords alone. hybrid: all of `retrieve.search`."""

    @property
    def built_by(self) -> str:
        """The size of the chunks; how they are found doesn't matter."""
        return f"chunks words={self.words}"

    @property
    def shown(self) -> int:
        """Chunks that are read, at most. `settings.k` says it; `settings.per_speaker` says nothing,
        since a chunk has several speakers."""
        if self.settings.k is not None:
            return self.settings.k
        answerer = self.agents.answer
        entries = Settings().shown_to_answer(answerer.style if answerer else None)
        return max(1, round(entries * WORDS_OF_AN_ENTRY / self.words))

    def remember(
        self, bank: Bank, turn: Turn, message: Message, *, context: Sequence[Turn], last: bool
    ) -> Conversation[None]:
        """Put the turn behind the last chunk, or begin a new one where it doesn't fit."""
        line = line_of(turn)
        ops = [_placed(bank, turn, line, self.words)] if line else []
        # What several people say is nobody's.
        settle(bank, [message], ops, turn=replace(turn, speaker=""))
        return
        yield  # asks no model

    def find(self, bank: Bank, question: str) -> list[Hit]:
        """The best chunks, best first."""
        index = bank.index
        if self.by == "hybrid":
            return retrieve.search(index, question, bank.embedder, k=self.shown)
        scores = index.bm25(terms(question))
        newest_first = len(index) - 1 - np.argsort(-scores[::-1], kind="stable")
        return [Hit(index.entry(row), float(scores[row])) for row in newest_first[: self.shown]]


def _placed(bank: Bank, turn: Turn, line: str, words: int) -> MemoryOp:
    """The operation that puts a turn where it belongs; a turn that is too long stands alone."""
    index = bank.index
    chunk = index.entry(len(index) - 1) if len(index) else None
    if chunk is not None and _sitting(chunk.sources[-1], chunk.said) == _sitting(
        turn.id, turn.said
    ):
        grown = f"{chunk.text}\n{line}"
        if len(grown.split()) <= words:
            return Update(chunk.id, grown)
    return Add(f"[{day(turn.said)}] {line}" if turn.said else line)


def _sitting(turn_id: str, said: object) -> object:
    """What the turns of one session have in common: its number, else the moment it was dated."""
    number = session_of(turn_id)
    return said if number is None else number

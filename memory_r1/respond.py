"""question -> related entries -> the Answer Agent's answer: the way out of the memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from memory_r1 import answer, retrieve
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.llm import Agents, Conversation
from memory_r1.store import Index
from memory_r1.types import Answer, Entry


def respond(
    bank: Bank,
    question: str,
    agents: Agents,
    settings: Settings,
    *,
    asked: datetime | None = None,
    index: Index | None = None,
    where: Callable[[Entry], bool] | None = None,
) -> Conversation[Answer]:
    """Find entries, let the Answer Agent choose among them and answer from those it kept.

    asked: when the question is asked. index: where to look, the bank's current entries by default.
    where: which of them may be found.
    """
    llm = agents.answer
    began = time.perf_counter()
    hits = retrieve.search(
        bank.index if index is None else index,
        question,
        bank.embedder,
        k=settings.shown_to_answer(llm.style if llm else None),
        per_speaker=settings.per_speaker,
        where=where,
    )
    shown = sorted(hits, key=lambda hit: (_said(hit.entry), hit.entry.id))
    entries = tuple(hit.entry for hit in shown)
    found = time.perf_counter()
    if llm is None:
        said = answer.rules(question, hits)
    else:
        said = yield from answer.reply(question, entries, llm.style, asked=asked)
    seconds = {"search": found - began, "answer": time.perf_counter() - found}
    model = llm.name if llm else "rules"
    scores = tuple(hit.score for hit in shown)
    return replace(
        said, question=question, retrieved=entries, scores=scores, model=model, latency=seconds
    )


def _said(entry: Entry) -> datetime:
    return entry.said or entry.stored

"""What people have corrected -> dialogues that train the agents (learning from use).

What was said becomes a dialogue, one per owner. An answer with feedback becomes a question with
its right answer; an operation that somebody undid, corrected, approved or rejected becomes a
decision that is known to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from memory_r1.data import ADVERSARIAL, DECISIONS, SINGLE_HOP, Dialogue, Question, Session
from memory_r1.store import Store
from memory_r1.text import terms
from memory_r1.types import NOT_MENTIONED, Entry, JournalRow, Message, Owner, Turn

MOST_MEMORIES = 30
"""Of the memories there were, so many of those that share words with the fact are kept."""


def dialogues(store: Store, user_id: str | None = None) -> list[Dialogue]:
    """What a store, or one user, has to learn from; owners without anything are left out.

    All are of the split "train". Turns go by the ids of their messages.
    """
    found = []
    for owner in store.owners(user_id):
        messages = store.messages(owner)
        questions = _questions(store, owner, messages)
        decisions = list(_decisions(store, owner, messages))
        if questions or decisions:
            found.append(
                Dialogue(
                    id=_name(owner),
                    speakers=tuple(dict.fromkeys(m.turn.speaker for m in messages)),
                    sessions=_sessions(messages),
                    questions=questions,
                    meta={DECISIONS: decisions} if decisions else {},
                    own_split="train",
                )
            )
    return found


def _name(owner: Owner) -> str:
    return "/".join(part for part in (owner.user_id, owner.agent_id, owner.run_id) if part)


def _sessions(messages: Sequence[Message]) -> tuple[Session, ...]:
    """A session per day on which something was said."""
    days = groupby(messages, key=lambda message: (message.turn.said or message.received).date())
    return tuple(
        Session(number, said[0].turn.said or said[0].received, tuple(map(_turn, said)))
        for number, said in enumerate((list(of) for _, of in days), 1)
    )


def _turn(message: Message) -> Turn:
    return replace(message.turn, id=message.id)


def _questions(store: Store, owner: Owner, messages: Sequence[Message]) -> tuple[Question, ...]:
    """Answers with feedback; a wrong one only where somebody said what is right."""
    order = {message.id: i for i, message in enumerate(messages)}
    sources = {e.id: e.sources for e in store.entries(owner, superseded=True)}
    found: dict[str, Question] = {}
    for said in store.feedback(owner):  # of one question the last word counts
        gold = said.answer if said.right else said.correct
        if not gold:
            continue
        rests_on = {turn for entry in said.used for turn in sources.get(entry, ())}
        unknown = gold == NOT_MENTIONED
        found[said.question] = Question(
            id=said.id,
            dialogue_id=_name(owner),
            text=said.question,
            answer=gold,
            evidence=tuple(sorted(rests_on & order.keys(), key=order.__getitem__)),
            category=ADVERSARIAL if unknown else SINGLE_HOP,
            kind="unanswerable" if unknown else "",
        )
    return tuple(found.values())


def _decisions(store: Store, owner: Owner, messages: Sequence[Message]) -> Iterator[dict[str, Any]]:
    """Operations of a model that a person has judged, with the memories they were decided on."""
    speakers = {message.id: message.turn.speaker for message in messages}
    journal = store.journal(owner)
    of_entry: dict[str, list[JournalRow]] = {}
    for row in journal:
        if row.op != "NOOP":
            of_entry.setdefault(row.entry_id, []).append(row)
    believed: dict[str, Entry] = {}
    for row in journal:
        if row.turn_id and row.op in ("ADD", "UPDATE", "DELETE"):
            right = _right(row, of_entry[row.entry_id])
            if right is not None:
                memories = _near(row, list(believed.values()))
                others = [e.text for e in memories if row.before is None or e.id != row.before.id]
                yield {
                    "fact": row.reason,
                    "speaker": speakers.get(row.turn_id, ""),
                    "memories": [entry.text for entry in memories],
                    "right": others + right,
                }
        if row.state in ("done", "undone") and row.op != "NOOP" and row.entry_id:
            believed.pop(row.entry_id, None)
            if row.after is not None and row.after.superseded is None:
                believed[row.entry_id] = row.after


def _right(row: JournalRow, of_entry: Sequence[JournalRow]) -> list[str] | None:
    """What the entry should read after a decision, [] for not at all; None: nobody has judged."""
    before = [] if row.before is None else [row.before.text]
    proposed = [row.after.text] if row.after and row.after.superseded is None else []
    match row.state:
        case "approved":
            return proposed
        case "rejected":
            return before
        case "proposed":
            return None
    later = [r for r in of_entry[of_entry.index(row) + 1 :] if r.op != "UNDO" and r.state == "done"]
    by_hand = later[0] if later and not later[0].turn_id else None
    if by_hand is not None and by_hand.after is not None:
        return [by_hand.after.text] if by_hand.after.superseded is None else []
    return before if row.undone else None


def _near(row: JournalRow, believed: Sequence[Entry]) -> list[Entry]:
    """The memories that share most words with the fact, in their order; its own is among them."""
    said = set(terms(row.reason))
    concerned = row.before.id if row.before else ""
    shared = {e.id: (e.id == concerned, len(said & set(terms(e.text)))) for e in believed}
    chosen = sorted(believed, key=lambda entry: shared[entry.id], reverse=True)[:MOST_MEMORIES]
    return sorted(chosen, key=lambda entry: entry.id)

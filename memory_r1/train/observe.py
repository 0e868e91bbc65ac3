"""episodes -> what the Memory Manager did to the bank, and alarms when a training goes astray.

Pure functions of what was played; no torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory_r1.bank import Bank
from memory_r1.text import terms
from memory_r1.train.episodes import ManagerEpisode, Situation
from memory_r1.train.rollout import Rollout
from memory_r1.types import JournalRow

_WRITES = ("ADD", "UPDATE")


def decisions(episodes: Iterable[object]) -> dict[str, float]:
    """What decisions were worth, whatever the reward says (names: runlog.METRICS).

    episodes: played ones; those that are no ManagerEpisode are passed over
    returns:  evidence_kept, unsupported_text (shares 0..1) and entry_words; each is left out where
              there is nothing to measure it on
    """
    wanted = kept = words = unsupported = length = entries = 0
    for episode in episodes:
        if not isinstance(episode, ManagerEpisode):
            continue
        before, after = episode.ends
        evidence = _evidence(before)
        sources = {source for entry in after.entries() for source in entry.sources}
        wanted += len(evidence)
        kept += len(evidence & sources)
        rows = _rows(before, after)
        held = _support(before, rows)
        for row in rows:
            if row.op in _WRITES and row.after is not None:
                said = terms(row.after.text)
                words += len(said)
                unsupported += sum(word not in held[row.turn_id] for word in said)
                length += len(row.after.text.split())
                entries += 1
    found = {}
    if wanted:
        found["evidence_kept"] = kept / wanted
    if words:
        found["unsupported_text"] = unsupported / words
    if entries:
        found["entry_words"] = length / entries
    return found


def told(rollout: Rollout) -> dict[str, Any]:
    """What a reader needs besides prompt and completion: the bank and what became of it.

    before, after: texts of the bank's entries; operations: one line each; then what the outcome
    tells: facts, questions, gold answers, answers.
    """
    details: dict[str, Any] = {}
    if len(rollout.steps) > 1:
        details["replies"] = f"{len(rollout.steps)}, of which the last is shown"
    if isinstance(rollout.episode, ManagerEpisode):
        before, after = rollout.episode.ends
        lines = [_line(row) for row in _rows(before, after)]
        if rollout.episode.malformed:
            lines.append(f"{rollout.episode.malformed} unreadable: the bank was left as it was")
        details["turns"] = [f"{turn.speaker}: {turn.text}" for turn, _ in before.turns]
        details["before"] = [entry.text for entry in before.bank.entries()]
        details["operations"] = lines or ["none"]
        details["after"] = [entry.text for entry in after.entries()]
    return {**details, **(rollout.outcome.details if rollout.outcome else {})}


def _evidence(situation: Situation) -> set[str]:
    """The turns that the questions rest on and that the bank could hold after the decision."""
    had = {source for entry in situation.bank.entries() for source in entry.sources}
    could = had | {turn.id for turn, _ in situation.turns}
    return {turn_id for q in situation.questions for turn_id in q.evidence} & could - {""}


def _rows(situation: Situation, bank: Bank) -> list[JournalRow]:
    """What the episode itself did: a fork's journal begins with the original's."""
    return bank.journal()[len(situation.bank.journal()) :]


def _support(situation: Situation, rows: Sequence[JournalRow]) -> dict[str, set[str]]:
    """By turn, the terms an entry may be made of: of the turn, its facts, and entries it touched.

    The entries include deleted ones, since a manager merges two by changing one and deleting the
    other.
    """
    held: dict[str, set[str]] = {row.turn_id: set() for row in rows}
    for turn, facts in situation.turns:
        texts = (turn.speaker, turn.text, turn.caption, *(fact.text for fact in facts))
        held.setdefault(turn.id, set()).update(term for text in texts for term in terms(text))
    for row in rows:
        if row.before is not None:
            held[row.turn_id].update(terms(row.before.text))
    return held


def _line(row: JournalRow) -> str:
    match row:
        case JournalRow(op="UPDATE", before=before, after=after) if before and after:
            return f"UPDATE {before.text} => {after.text}"
        case JournalRow(before=before, after=after) if before or after:
            entry = after or before
            return f"{row.op} {entry.text if entry else ''}"
    return row.op


# --- alarms

STREAK = 3
"""Steps in a row with one operation only before it is an alarm: one small step may be chance."""
ONLY = 0.99
"""From this share on, an operation is the only one."""
WINDOW = 5
"""Steps whose mean entropy is compared with the mean of the first as many."""
EXPLODED, COLLAPSED = 4.0, 0.1
"""So many times the first entropy is an alarm."""

_ADVICE = "Read samples.md; a lower optimizer.lr or a higher weight of kl holds a policy back."


@dataclass(frozen=True)
class Alarm:
    """Something that a training seldom recovers from by itself."""

    step: int
    kind: str
    text: str


class Alarms:
    """Hears the metrics of every step in order, and raises each kind of alarm once."""

    def __init__(self) -> None:
        self._raised: set[str] = set()
        self._streaks = dict.fromkeys(("NOOP", "ADD"), 0)
        self._entropies: list[float] = []

    def hear(self, step: int, row: Mapping[str, Any]) -> list[Alarm]:
        """What is alarming now and was not before."""
        found = [*self._operations(step, row), *self._entropy(step, row)]
        new = [alarm for alarm in found if alarm.kind not in self._raised]
        self._raised |= {alarm.kind for alarm in new}
        return new

    def _operations(self, step: int, row: Mapping[str, Any]) -> list[Alarm]:
        found = []
        for op in self._streaks:
            share = row.get(f"op_{op.lower()}")
            if share is None:
                continue
            self._streaks[op] = self._streaks[op] + 1 if share >= ONLY else 0
            if self._streaks[op] >= STREAK:
                text = f"for {STREAK} steps every operation has been {op}. {_ADVICE}"
                found.append(Alarm(step, f"all {op}", text))
        return found

    def _entropy(self, step: int, row: Mapping[str, Any]) -> list[Alarm]:
        value = row.get("entropy")
        if value is None:
            return []
        self._entropies.append(value)
        if len(self._entropies) < 2 * WINDOW:
            return []
        first, last = (sum(of) / WINDOW for of in (self._entropies[:WINDOW], self._recent()))
        if first * COLLAPSED <= last <= first * EXPLODED:
            return []
        kind = "entropy explodes" if last > first else "entropy collapses"
        text = f"entropy went from {first:.3g} to {last:.3g} nats per token. {_ADVICE}"
        return [Alarm(step, kind, text)]

    def _recent(self) -> list[float]:
        return self._entropies[-WINDOW:]

"""what a play came to -> who is compared with whom, and who learns from it (no torch here).

A unit is one member of a group: a reward, and the completions that are paid by it. Global units
pay for the end of a dialogue, local ones for one session redone from one and the same bank.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memory_r1.types import Entry, JournalRow

if TYPE_CHECKING:
    from memory_r1.train.sessions import Play, Told, Trained, Verdict

Credit = Literal["dialogue", "evidence", "traced"]
"""What the final answers are credited to: all of a dialogue; the sessions that hold a question's
evidence; or the turns whose operations the answer rests on."""


def words(text: str) -> int:
    """The length of a text in words: what the size of banks and histories is counted in."""
    return len(text.split())


def penalty(held: int, said: int, *, alpha: float, weight: float) -> float:
    """What a bank of so many words costs after a history of so many (Memory-R2).

    Nothing up to alpha words per word said; beyond, weight times the excess per word said.
    Departs from the paper in counting words, so that it is the same for every tokenizer.
    """
    return weight * max(0.0, held - alpha * said) / said if said else 0.0


@dataclass(frozen=True)
class Unit:
    """One member of a group, and what it wrote."""

    group: tuple[Hashable, ...]
    """Compared are only those that are equal here."""
    reward: float
    told: tuple[Told, ...]
    """Learns from the advantage; empty for a member that is only compared with."""


def dialogue_units(play: Play, verdict: Verdict) -> list[Unit]:
    """All that a play wrote is paid by its final reward: plain trajectory GRPO (Algorithm 5)."""
    return [
        Unit((play.start.course.id, role), verdict.reward, told)
        for role, told in _by_role(play.told).items()
    ]


def evidence_units(play: Play, verdict: Verdict) -> list[Unit]:
    """Each session is paid by the final questions whose evidence it holds (LoGo's global term).

    One unit per session and role. A session that no question rests on has no unit.
    """
    course = play.start.course
    on = dict(zip((q.id for q in course.questions), course.rests_on, strict=True))
    units = []
    for session in play.start.sessions:
        scores = [m.paid for m in verdict.marks if session in on[m.question.id]]
        if scores:
            reward = sum(scores) / len(scores) - verdict.penalty
            told = [one for one in play.told if one.session == session]
            units += [
                Unit((course.id, session, role), reward, of) for role, of in _by_role(told).items()
            ]
    return units


def traced_units(plays: Sequence[Play], verdicts: Sequence[Verdict]) -> list[Unit]:
    """Each turn is paid by the questions whose answers rest on its operations (traced credit).

    plays, verdicts: all rollouts of one course. A question counts for a turn when in any of them
    its answer rests on what the turn did: so all rollouts are compared on the same questions. One
    unit per turn and role. No evidence is needed, but where nothing was cited it is used.
    """
    touched: dict[str, set[str]] = {}
    for play, verdict in zip(plays, verdicts, strict=True):
        journal = play.banks[-1].journal()
        for mark in verdict.marks:
            for turn_id in traced(mark.used, mark.question.evidence, journal):
                touched.setdefault(turn_id, set()).add(mark.question.id)
    units = []
    for play, verdict in zip(plays, verdicts, strict=True):
        scores = {mark.question.id: mark.paid for mark in verdict.marks}
        of_turn: dict[str, list[Told]] = {}
        for one in play.told:
            of_turn.setdefault(one.turn_id, []).append(one)
        for turn_id, told in of_turn.items():
            if asked := touched.get(turn_id):
                reward = sum(scores[q] for q in sorted(asked)) / len(asked) - verdict.penalty
                units += [
                    Unit((play.start.course.id, turn_id, role), reward, of)
                    for role, of in _by_role(told).items()
                ]
    return units


def traced(
    used: Sequence[Entry], evidence: Collection[str], journal: Sequence[JournalRow]
) -> frozenset[str]:
    """The turns whose operations an answer rests on: those that wrote the entries it cites.

    Where it cites none, the turns that wrote or deleted entries resting on its evidence: what
    should have been there was never written, or was lost.
    """
    ids = {entry.id for entry in used}
    if not ids:
        ids = {
            row.entry_id
            for row in journal
            for entry in (row.before, row.after)
            if entry is not None and not set(evidence).isdisjoint(entry.sources)
        }
    return frozenset(row.turn_id for row in journal if row.turn_id and row.entry_id in ids)


def local_units(
    redone: Sequence[Play], verdicts: Sequence[Verdict], without: Verdict | None
) -> list[Unit]:
    """One session, redone several times from one bank and scored at once (LoGo's local term).

    redone, verdicts: the rerollouts of one session from one anchor, in the same order. without:
    what the bank came to with the session left out (the branch of forced NOOPs); it is compared
    with, so that writes that are all worth something are reinforced even if they are all alike.
    """
    units = []
    for play, verdict in zip(redone, verdicts, strict=True):
        units += [
            Unit((play.start.about, role), verdict.reward, told)
            for role, told in _by_role(play.told).items()
        ]
    if without is not None:
        roles: dict[tuple[Hashable, ...], None] = dict.fromkeys(unit.group for unit in units)
        units += [Unit(group, without.reward, ()) for group in roles]
    return units


def cancelled(told: Sequence[tuple[Hashable, Told, float]]) -> list[bool]:
    """Which completions of (group, completion, advantage) need not be computed.

    Where rollouts of a group wrote the same to the same prompt, their gradients add up to that of
    one with the sum of their advantages: often exactly nothing, since most turns are read alike.
    And what the policy was certain to write has next to no gradient.
    """
    sums: dict[Hashable, float] = {}
    keys = [(group, one.step.prompt_ids, one.step.ids) for group, one, _ in told]
    for key, (_, _, advantage) in zip(keys, told, strict=True):
        sums[key] = sums.get(key, 0.0) + advantage
    certain = [sum(one.step.logps) > -CERTAIN for _, one, _ in told]
    return [abs(sums[key]) < ROUNDING or sure for key, sure in zip(keys, certain, strict=True)]


ROUNDING = 1e-4
"""Advantages are of the size of 1; sums of a few in single precision are this exact."""
CERTAIN = 1e-3
"""Log-probability from which on a completion was the only one to be expected."""


def distinct(plays: Sequence[Play]) -> float:
    """The share of rerollouts that differ from the first of their kind: 0 when all are copies."""
    return (len({play.text for play in plays}) - 1) / (len(plays) - 1) if len(plays) > 1 else 0.0


def _by_role(told: Sequence[Told]) -> Mapping[Trained, tuple[Told, ...]]:
    found: dict[Trained, tuple[Told, ...]] = {}
    for one in told:
        found[one.role] = (*found.get(one.role, ()), one)
    return found

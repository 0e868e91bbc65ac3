"""Courses, plays and who is paid for them: worked by hand, on dialogues small enough to read."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Dialogue, Question, Session
from memory_r1.embed import open_embedder
from memory_r1.errors import ModelUnavailable
from memory_r1.llm import Agents
from memory_r1.store.ram import RamStore
from memory_r1.train import credit
from memory_r1.train.credit import Unit
from memory_r1.train.rewards import Measured
from memory_r1.train.rollout import Step
from memory_r1.train.sessions import (
    Course,
    Mark,
    Play,
    Players,
    Size,
    Start,
    Told,
    Verdict,
    course_of,
    due,
    final,
    judge_plays,
    play_sessions,
)
from memory_r1.types import Add, Completion, Delete, Fact, Noop, Owner, Turn, Update


def turn(session, place, text="I adopted a dog named Rex."):
    return Turn("Ida", text, id=f"D{session}:{place}")


def question(name, *evidence):
    return Question(name, "d", f"What of {name}?", "Rex", tuple(evidence), 4)


DIALOGUE = Dialogue(
    "d",
    ("Ida", "Otto"),
    (
        Session(1, None, (turn(1, 1), turn(1, 2, "Hello"))),
        Session(2, None, (turn(2, 1, "Rex ran away."),)),
        Session(3, None, (turn(3, 1, "I sing."),)),
    ),
    (
        question("dog", "D1:1"),
        question("fate", "D1:1", "D2:1"),
        question("song", "D3:1"),
        question("car"),
    ),
)
COURSE = course_of(DIALOGUE)


def names(questions):
    return [q.id for q in questions]


class Speaker:
    """A policy of the compact style whose replies follow a rule."""

    name, style = "speaker", "compact"

    def __init__(self, say):
        self.say = say
        self.rounds = []

    def generate(self, prompts):
        self.rounds.append(len(prompts))
        return [
            Step((1,), (2, 3), (-0.5, -0.5), self.say(prompt.text), prompt.text, True)
            for prompt in prompts
        ]


class Answerer:
    """Answers from the first memory it is shown, and names it."""

    name, style = "answerer", "compact"

    def complete(self, prompts, **_):
        return [Completion("Ida's dog <s0> => Rex") for _ in prompts]


def players(policy, answerer=None, **changes):
    judges = Agents(answer=answerer or Answerer())
    return Players(policy, judges, Settings(), Measured("em"), Size(), **changes)


def memorise(prompt):
    """Extracts one fact of every turn about a dog, and adds whatever it is told."""
    if prompt.startswith("extract"):
        return "Ida's dog is Rex" if "Rex" in prompt else "nothing"
    return "nothing => ADD"


def start(**changes):
    given_ = {
        "course": COURSE,
        "bank": COURSE.empty(open_embedder()),
        "sessions": range(3),
        "questions": (DIALOGUE.questions[0],),
    }
    return Start(**{**given_, **changes})


def test_a_course_of_fewer_sessions_keeps_the_questions_they_answer():
    course = course_of(DIALOGUE, 2)
    assert len(course.sessions) == 2
    assert names(course.questions) == ["dog", "fate", "car"]
    assert course.rests_on == (frozenset({0}), frozenset({0, 1}), frozenset())


def test_a_course_counts_the_words_that_were_said():
    assert COURSE.said(1) == 7
    assert COURSE.said(3) == 12


def test_a_session_is_scored_on_what_can_be_known_by_its_end_its_own_questions_first():
    rng = random.Random(0)
    assert names(due(COURSE, 0, 16, rng)) == ["dog"]
    assert names(due(COURSE, 1, 16, rng)) == ["dog", "fate"]
    assert names(due(COURSE, 1, 1, rng)) == ["fate"]
    assert names(due(COURSE, 2, 2, rng))[-1] == "song"


@given(st.integers(1, 6), st.integers(0, 99))
def test_the_end_is_scored_on_some_of_all_questions_in_order(most, seed):
    drawn = names(final(COURSE, most, random.Random(seed)))
    assert len(drawn) == min(most, 4)
    assert drawn == [name for name in names(COURSE.questions) if name in drawn]


def test_the_context_of_a_turn_reaches_back_over_sessions():
    assert [t.id for t in COURSE.before(1, 0, 4)] == ["D1:1", "D1:2"]
    assert [t.id for t in COURSE.before(2, 0, 2)] == ["D1:2", "D2:1"]


def test_a_play_reads_all_turns_at_once_and_keeps_the_bank_before_every_session():
    policy = Speaker(memorise)
    (play,) = play_sessions([start()], players(policy), policy.generate)
    assert policy.rounds == [4, 1]  # the first fact meets an empty bank: nobody is asked
    assert [len(bank.entries()) for bank in play.banks] == [0, 1, 2, 2]
    assert [(t.role, t.session, t.turn_id) for t in play.told] == [
        ("extract", 0, "D1:1"),
        ("extract", 0, "D1:2"),
        ("extract", 1, "D2:1"),
        ("extract", 2, "D3:1"),
        ("manage", 1, "D2:1"),
    ]
    assert play.episode.operations == ["ADD", "ADD"]


def test_a_session_redone_from_an_anchor_leaves_the_anchor_as_it_was():
    policy = Speaker(memorise)
    (anchor,) = play_sessions([start()], players(policy), policy.generate)
    again = start(bank=anchor.banks[1], sessions=range(1, 2))
    redone = play_sessions([again, again], players(policy), policy.generate)
    assert [len(play.banks[-1].entries()) for play in redone] == [2, 2]
    assert len(anchor.banks[1].entries()) == 1


def test_a_silent_session_asks_nobody_and_writes_nothing():
    policy = Speaker(memorise)
    (play,) = play_sessions([start(silent=True)], players(policy), policy.generate)
    assert policy.rounds == [] and play.told == []
    assert play.banks[-1].entries() == []


def test_facts_that_a_frozen_extractor_has_read_are_not_read_again():
    policy = Speaker(memorise)
    facts = {("d", t.id): (Fact("Ida's dog is Rex"),) for t in DIALOGUE.turns}
    (play,) = play_sessions([start()], players(policy, facts=facts), policy.generate)
    assert {told.role for told in play.told} == {"manage"}
    assert len(play.banks[-1].entries()) == 4


def test_what_cannot_be_read_is_counted_and_writes_nothing():
    policy = Speaker(lambda prompt: "=>")
    (play,) = play_sessions([start()], players(policy), policy.generate)
    assert play.episode.malformed == 4
    assert play.banks[-1].entries() == []


def test_a_play_is_judged_by_the_answers_from_its_last_bank():
    policy = Speaker(memorise)
    plays = play_sessions([start(), start(silent=True)], players(policy), policy.generate)
    full, empty = judge_plays(plays, players(policy))
    assert (full.reward, full.em) == (1.0, 1.0)
    assert (empty.reward, empty.em) == (0.0, 0.0)
    assert full.marks[0].used[0].sources == ("D1:1",)


def test_an_unreachable_judge_is_no_verdict():
    class Away(Answerer):
        def complete(self, prompts, **_):
            raise ModelUnavailable("away")

    policy = Speaker(memorise)
    plays = play_sessions([start(), start(silent=True)], players(policy), policy.generate)
    # On an empty bank a compact answerer is not asked, so that play can be judged.
    away, empty = judge_plays(plays, players(policy, Away()))
    assert away is None
    assert empty.reward == 0.0


def test_a_bank_pays_for_the_words_beyond_its_share():
    # 100 words said: 70 are free; 90 held are 20 too many, at weight .3: .3 * 20 / 100.
    assert credit.penalty(90, 100, alpha=0.7, weight=0.3) == pytest.approx(0.06)
    assert credit.penalty(70, 100, alpha=0.7, weight=0.3) == 0.0
    assert credit.penalty(5, 0, alpha=0.7, weight=0.3) == 0.0


def test_a_bank_that_grew_too_large_is_paid_less():
    policy = Speaker(memorise)
    tight = replace(players(policy), size=Size(alpha=0.0, weight=1.2))
    plays = play_sessions([start()], tight, policy.generate)
    (verdict,) = judge_plays(plays, tight)
    # Two memories of four words after twelve: 1.2 * 8 / 12.
    assert verdict.penalty == pytest.approx(0.8)
    assert verdict.reward == pytest.approx(0.2)


def told(role, session, turn_id, ids=(2,), logp=-0.5, prompt=(1,)):
    logps = tuple(logp for _ in ids)
    return Told(role, session, turn_id, Step(prompt, tuple(ids), logps, str(ids), "", True))


def play_of(*completions, bank=None):
    return Play(start(), list(completions), [bank or COURSE.empty(open_embedder())])


def verdict(penalty=0.0, **paid):
    marks = tuple(Mark(q, "", paid[q.id], paid[q.id], paid[q.id], ()) for q in COURSE.questions)
    mean = sum(paid.values()) / len(paid)
    return Verdict(mean - penalty, mean, mean, {}, marks, penalty)


def test_sessions_are_paid_by_the_questions_whose_evidence_they_hold():
    play = play_of(
        told("extract", 0, "D1:1"), told("extract", 1, "D2:1"), told("manage", 1, "D2:1")
    )
    units = credit.evidence_units(play, verdict(dog=1.0, fate=0.0, song=1.0, car=1.0))
    assert [(unit.group, unit.reward) for unit in units] == [
        (("d", 0, "extract"), 0.5),  # dog and fate
        (("d", 1, "extract"), 0.0),  # fate
        (("d", 1, "manage"), 0.0),
    ]
    assert [one.turn_id for unit in units for one in unit.told] == ["D1:1", "D2:1", "D2:1"]


def test_the_size_of_the_bank_is_charged_to_every_session():
    play = play_of(told("extract", 0, "D1:1"))
    (unit,) = credit.evidence_units(play, verdict(0.1, dog=1.0, fate=0.0, song=1.0, car=1.0))
    assert unit.reward == pytest.approx(0.4)


def test_trajectory_credit_pays_all_that_was_written_alike():
    play = play_of(told("extract", 0, "D1:1"), told("manage", 1, "D2:1"))
    units = credit.dialogue_units(play, verdict(dog=1.0, fate=0.0, song=1.0, car=0.0))
    assert [(unit.group, unit.reward) for unit in units] == [
        (("d", "extract"), 0.5),
        (("d", "manage"), 0.5),
    ]


def journal(*ops):
    """A bank after operations, each (turn id, operation of the entries so far)."""
    bank = Bank(RamStore(), open_embedder(), Owner("d"))
    for turn_id, op in ops:
        bank.apply([op(bank.entries())], turn=Turn("Ida", "", id=turn_id))
    return bank


def test_an_answer_rests_on_all_turns_that_wrote_what_it_cites():
    bank = journal(
        ("D1:1", lambda e: Add("Ida's dog is Rex")),
        ("D1:2", lambda e: Add("Ida's home is Oslo")),
        ("D2:1", lambda e: Update(e[0].id, "Ida's dogs are Rex and Bo")),
        ("D3:1", lambda e: Noop(e[1].id)),
    )
    dogs, home = bank.entries()
    rows = bank.journal()
    assert credit.traced([dogs], [], rows) == {"D1:1", "D2:1"}
    # Who says that it is known already vouches for it.
    assert credit.traced([home], [], rows) == {"D1:2", "D3:1"}


def test_where_nothing_is_cited_who_lost_the_evidence_is_held_to_account():
    bank = journal(
        ("D1:1", lambda e: Add("Ida's dog is Rex")),
        ("D3:1", lambda e: Delete(e[0].id)),
    )
    assert credit.traced([], ["D1:1"], bank.journal()) == {"D1:1", "D3:1"}
    assert credit.traced([], ["D2:1"], bank.journal()) == frozenset()


def test_traced_credit_compares_all_rollouts_of_a_turn_on_the_same_questions():
    bank = journal(("D1:1", lambda e: Add("Ida's dog is Rex")))
    cited = Mark(COURSE.questions[0], "Rex", 1.0, 1.0, 1.0, tuple(bank.entries()))
    lost = Mark(COURSE.questions[0], "", 0.0, 0.0, 0.0, ())
    other = Mark(COURSE.questions[2], "", 1.0, 1.0, 1.0, ())
    plays = [play_of(told("extract", 0, "D1:1"), bank=bank), play_of(told("extract", 0, "D1:1"))]
    ends = [Verdict(1.0, 1, 1, {}, (cited, other)), Verdict(0.5, 0.5, 0.5, {}, (lost, other))]
    units = credit.traced_units(plays, ends)
    # The second rollout cites nothing and touched nothing, and is still asked about the dog.
    assert [(unit.group, unit.reward) for unit in units] == [
        (("d", "D1:1", "extract"), 1.0),
        (("d", "D1:1", "extract"), 0.0),
    ]


def test_the_branch_of_noops_is_compared_with_and_learns_nothing():
    redone = [play_of(told("manage", 1, "D2:1")), play_of(told("manage", 1, "D2:1"))]
    without = Verdict(0.0, 0, 0)
    units = credit.local_units(redone, [Verdict(1.0, 1, 1), Verdict(1.0, 1, 1)], without)
    assert [(unit.reward, len(unit.told)) for unit in units] == [(1.0, 1), (1.0, 1), (0.0, 0)]
    assert len({unit.group for unit in units}) == 1


def test_copies_whose_advantages_cancel_out_are_left_out():
    same, other = told("extract", 0, "D1:1", ids=(5, 6)), told("extract", 0, "D1:1", ids=(7,))
    entries = [("g", same, 0.5), ("g", same, -0.5), ("g", other, 0.5), ("h", same, 0.5)]
    assert credit.cancelled(entries) == [True, True, False, False]


def test_what_was_certain_to_be_written_is_left_out():
    certain = told("extract", 0, "D1:1", logp=-1e-6)
    assert credit.cancelled([("g", certain, 1.0)]) == [True]


def test_greedy_copies_are_told_from_rerollouts():
    one, other = told("manage", 0, "D1:1", ids=(5,)), told("manage", 0, "D1:1", ids=(6,))
    assert credit.distinct([play_of(one), play_of(one), play_of(one)]) == 0.0
    assert credit.distinct([play_of(one), play_of(other), play_of(one)]) == 0.5
    assert credit.distinct([play_of(one), play_of(other)]) == 1.0


def test_a_unit_is_compared_in_its_own_role_only():
    play = play_of(told("extract", 0, "D1:1"), told("manage", 0, "D1:1"))
    groups = {unit.group for unit in credit.dialogue_units(play, Verdict(1.0, 1, 1))}
    assert groups == {("d", "extract"), ("d", "manage")}
    assert all(isinstance(unit, Unit) for unit in credit.dialogue_units(play, Verdict(1.0, 1, 1)))


def test_a_course_without_its_questions_evidence_is_never_due():
    course = Course("d", COURSE.sessions, (COURSE.questions[3],))
    assert due(course, 2, 16, random.Random(0)) == []

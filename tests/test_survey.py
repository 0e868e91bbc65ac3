"""Which questions a run asks, and when."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bench.plan import Plan
from memory_r1.bench.survey import rounds, survey
from memory_r1.data import Dialogue, Question, Session
from memory_r1.errors import DataError
from memory_r1.types import Turn


def dialogue(sessions, turns=2):
    return Dialogue(
        "d",
        ("Ines", "Olaf"),
        tuple(
            Session(
                n, None, tuple(Turn("Ines", "Hm.", id=f"D{n}:{i}") for i in range(1, turns + 1))
            )
            for n in range(1, sessions + 1)
        ),
    )


def question(name, *evidence, category=4):
    return Question(name, "d", "?", "!", evidence, category)


def plan(**fields):
    return Plan(**({"benchmark": "locomo", "data": Path("x"), "out": Path("y")} | fields))


def test_a_build_asks_all_at_the_end():
    asked = (question("q", "D1:1"), question("r"))
    [only] = rounds(dialogue(3), asked, plan())
    assert (only.begins, only.ends, only.questions, only.sessions) == (0, 6, asked, 0)


def test_streaming_asks_what_can_be_known_by_then_and_asks_it_again():
    early, late, told_twice = (
        question("early", "D1:2"),
        question("late", "D4:1"),
        question("twice", "D1:1", "D3:2"),
    )
    asked = rounds(dialogue(5), (early, late, told_twice), plan(protocol="stream", every=2))
    assert [(r.begins, r.ends, r.sessions) for r in asked] == [(0, 4, 2), (4, 8, 4), (8, 10, 5)]
    assert [[q.id for q in r.questions] for r in asked] == [
        ["early"],
        ["early", "late", "twice"],
        ["early", "late", "twice"],
    ]


def test_what_has_no_answer_is_always_asked_and_what_has_no_evidence_at_the_end():
    absent, unknown = question("absent", category=5), question("unknown")
    asked = rounds(dialogue(4), (absent, unknown), plan(protocol="stream", every=2))
    assert [[q.id for q in r.questions] for r in asked] == [["absent"], ["absent", "unknown"]]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3))
def test_rounds_take_every_turn_once_and_end_with_the_dialogue(sessions, every, turns):
    asked = rounds(dialogue(sessions, turns), (), plan(protocol="stream", every=every))
    assert [r.begins for r in asked] == [0, *(r.ends for r in asked[:-1])]
    assert asked[-1].ends == sessions * turns
    assert asked[-1].sessions == sessions
    assert all(r.sessions % every == 0 for r in asked[:-1])


@pytest.fixture
def file(tmp_path):
    def talk(name, questions):
        return {
            "sample_id": name,
            "conversation": {
                "speaker_a": "Ines",
                "speaker_b": "Olaf",
                "session_1_date_time": "1:56 pm on 8 May, 2023",
                "session_1": [{"speaker": "Ines", "dia_id": "D1:1", "text": "Hello."}],
            },
            "qa": [
                {"question": f"{i}?", "answer": "x", "evidence": ["D1:1"], "category": 4}
                for i in range(questions)
            ],
        }

    path = tmp_path / "talks.json"
    path.write_text(json.dumps([talk("a", 3), talk("b", 0), talk("c", 5)]))
    return path


def ids(found):
    return [question.id for of in found.questions.values() for question in of]


def test_a_limit_asks_the_first_and_builds_only_their_dialogues(file):
    found = survey(plan(data=file, limit=2))
    assert ids(found) == ["a#0", "a#1"]
    assert [dialogue.id for dialogue in found.dialogues()] == ["a"]
    assert (found.turns, found.asked) == (1, 2)


def test_a_seed_draws_and_a_larger_sample_holds_the_smaller_one(file):
    samples = [set(ids(survey(plan(data=file, limit=n, seed=3)))) for n in range(1, 9)]
    assert [len(sample) for sample in samples] == list(range(1, 9))
    assert all(small < large for small, large in zip(samples, samples[1:], strict=False))
    others = {frozenset(ids(survey(plan(data=file, limit=3, seed=seed)))) for seed in range(8)}
    assert len(others) > 1


def test_a_file_without_questions_says_so(file):
    file.write_text(json.dumps([json.loads(file.read_text())[1]]))
    with pytest.raises(DataError, match="asks no question in split 'test'"):
        survey(plan(data=file))

"""predictions -> scores."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bench.score import (
    Prediction,
    group_names,
    groups,
    judge,
    measures,
    names_target,
    paired_bootstrap,
    percentiles,
    recall,
    sources_of_targets,
)
from memory_r1.data import Question
from memory_r1.errors import ConfigError
from memory_r1.types import NOT_MENTIONED, Answer, Entry, Owner


def prediction(**fields):
    values = {
        "question_id": "q1",
        "dialogue_id": "d1",
        "category": 4,
        "question": "Which city does Ines live in?",
        "gold": "Porto",
        "prediction": "Porto",
        "retrieved": [],
        "used": [],
        "em": 1.0,
        "f1": 1.0,
        "f1_official": 1.0,
        "bleu1": 1.0,
        "latency": {},
        "tokens": [0, 0],
        "prompt_hash": "",
    }
    return Prediction(**(values | fields))


def retrieved(*sources):
    return [{"entry_id": str(i), "source_turns": list(turns)} for i, turns in enumerate(sources)]


def question(answer, *accepted, category=1, **fields):
    return Question(
        "d1#0", "d1", "How many boats?", answer, ("D1:1",), category, accepted, **fields
    )


def test_any_accepted_answer_is_right():
    judged = judge(question("2", "two", "two boats"), Answer("Two."))
    assert (judged.em, judged.f1) == (1.0, 1.0)
    assert judged.gold == "2"
    assert judged.accepted == ["two", "two boats"]


def test_a_wrong_answer_scores_nothing():
    judged = judge(question("2", "two"), Answer("three"))
    assert (judged.em, judged.f1, judged.f1_official, judged.bleu1) == (0, 0, 0, 0)


def test_an_empty_answer_scores_nothing():
    judged = judge(question("2"), Answer("", known=False))
    assert (judged.em, judged.f1, judged.f1_official, judged.bleu1) == (0, 0, 0, 0)


def test_saying_that_it_is_not_known_is_right_where_it_is_not():
    judged = judge(question(NOT_MENTIONED, category=5), Answer("Not mentioned", known=False))
    assert judged.em == judged.f1_official == 1.0


def test_recall_is_the_share_of_evidence_turns_that_retrieved_entries_rest_on():
    two_of_three = prediction(
        evidence=["D1:1", "D2:4", "D3:2"], retrieved=retrieved(["D1:1", "D9:9"], ["D3:2"], [])
    )
    assert recall(two_of_three) == pytest.approx(2 / 3)


def test_recall_of_a_question_without_evidence_is_not_a_zero():
    assert recall(prediction(retrieved=retrieved(["D1:1"]))) is None


def test_showing_everything_is_not_perfect_retrieval():
    flood = prediction(evidence=["D1:1"], retrieved=retrieved(*[[f"D1:{i}"] for i in range(61)]))
    assert recall(flood) is None


def test_shares_are_per_cent_with_one_decimal():
    rows = [
        prediction(em=1.0, evidence=["D1:1"], retrieved=retrieved(["D1:1"])),
        prediction(em=0.0, evidence=["D1:1", "D1:2"], retrieved=retrieved(["D1:1"])),
        prediction(em=0.0, prediction="in the old town"),
    ]
    row = measures(rows)
    assert row["n"] == 3
    assert row["em"] == 33.3
    assert row["recall@60"] == 75.0
    assert row["all@60"] == 50.0
    assert row["answer_words"] == 2.0


def test_measures_of_nothing_are_unknown_not_zero():
    assert measures([])["f1"] is None


def test_a_locomo_group_has_its_number_the_official_name_and_the_papers():
    assert group_names("locomo", prediction(category=1)) == ["1 multi-hop (paper: single-hop)"]
    assert group_names("locomo", prediction(category=2)) == ["2 temporal"]
    assert group_names("locomo", prediction(category=4)) == ["4 single-hop (paper: open-domain)"]


def test_a_world_question_counts_in_its_kind_and_its_phenomenon():
    rows = [
        prediction(kind="count", phenomenon="accumulate", em=1.0),
        prediction(kind="count", phenomenon="repeat", em=0.0),
    ]
    found = groups("world", rows)
    assert {name: row["em"] for name, row in found.items()} == {
        "kind: count": 50.0,
        "phenomenon: accumulate": 100.0,
        "phenomenon: repeat": 0.0,
    }


def test_percentiles_are_per_component():
    found = percentiles({"search": [0.1, 0.2, 0.3], "answer": []})
    assert found == {"search": {"p50": 0.2, "p95": 0.29}}


def test_a_constant_gain_has_a_sharp_interval():
    assert paired_bootstrap([1.0, 0.5, 0.25], [0.5, 0.0, -0.25]) == (0.5, 0.5, 0.5)


def test_pairing_finds_what_unpaired_noise_would_hide():
    hard_and_easy = [0.0, 1.0] * 200
    slightly_better = [score + 0.01 * (i % 3) for i, score in enumerate(hard_and_easy)]
    difference, low, high = paired_bootstrap(slightly_better, hard_and_easy, seed=3)
    assert 0 < low < difference < high < 0.02


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_swapping_the_systems_turns_the_interval_around(pairs):
    a, b = zip(*pairs, strict=True)
    there = paired_bootstrap(a, b, seed=1, resamples=200)
    back = paired_bootstrap(b, a, seed=1, resamples=200)
    assert there == pytest.approx((-back.difference, -back.high, -back.low), abs=1e-9)
    assert there.low - 1e-9 <= there.high


def test_an_interval_is_the_same_for_the_same_seed():
    a, b = [0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0])])
def test_scores_that_do_not_pair_up_are_refused(a, b):
    with pytest.raises(ConfigError, match="one of each per question"):
        paired_bootstrap(a, b)


EVENTS = [
    {"dia_id": "D1:1", "op": "ADD", "target": "", "text": "one dog"},
    {"dia_id": "D1:2", "op": "ADD", "target": "", "text": "a cat"},
    {"dia_id": "D2:1", "op": "UPDATE", "target": "one dog", "text": "two dogs"},
    {"dia_id": "D2:2", "op": "NOOP", "target": "a cat", "text": ""},
    {"dia_id": "D3:1", "op": "DELETE", "target": "two dogs", "text": ""},
]


def test_a_target_rests_on_every_turn_that_made_it():
    assert [sorted(sources) for sources in sources_of_targets(EVENTS)] == [
        [],
        [],
        ["D1:1"],
        ["D1:2"],
        ["D1:1", "D2:1"],
    ]


@pytest.mark.parametrize(
    ("text", "sources", "target", "right"),
    [
        ("two dogs", (), "two dogs", True),
        ("the second dog", ("D2:1",), "two dogs", True),  # its own wording, the right turn
        ("a cat", ("D1:2",), "two dogs", False),
        ("a cat", ("D1:2",), "", False),  # nothing should have been changed
    ],
)
def test_an_operation_names_the_right_entry_by_its_text_or_by_its_turns(
    text, sources, target, right
):
    entry = Entry("1", text, Owner("ann"), datetime.now(UTC), sources=sources)
    assert names_target(entry, target, {"D1:1", "D2:1"}) == right

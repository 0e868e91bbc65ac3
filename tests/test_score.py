"""predictions -> scores."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bench.score import (
    Prediction,
    compare,
    groups,
    intervals,
    last_asked,
    measures,
    names_target,
    ndcg,
    paired_bootstrap,
    percentiles,
    ranked_sessions,
    recall,
    recall_all,
    recall_any,
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
    judged = compare(question("2", "two", "two boats"), Answer("Two."))
    assert (judged.em, judged.f1) == (1.0, 1.0)
    assert judged.gold == "2"
    assert judged.accepted == ["two", "two boats"]


def test_a_wrong_answer_scores_nothing():
    judged = compare(question("2", "two"), Answer("three"))
    assert (judged.em, judged.f1, judged.f1_official, judged.bleu1) == (0, 0, 0, 0)


def test_an_empty_answer_scores_nothing():
    judged = compare(question("2"), Answer("", known=False))
    assert (judged.em, judged.f1, judged.f1_official, judged.bleu1) == (0, 0, 0, 0)


def test_saying_that_it_is_not_known_is_right_where_it_is_not():
    judged = compare(question(NOT_MENTIONED, category=5), Answer("Not mentioned", known=False))
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


def test_a_question_counts_in_each_of_its_groups():
    rows = [
        prediction(groups=["kind: count", "phenomenon: accumulate"], em=1.0),
        prediction(groups=["phenomenon: repeat", "kind: count"], em=0.0),
        prediction(groups=[], em=0.0),
    ]
    found = groups(rows)
    assert list(found) == ["kind: count", "phenomenon: accumulate", "phenomenon: repeat"]
    assert [row["em"] for row in found.values()] == [50.0, 100.0, 0.0]


def test_rouge_l_recall_is_that_of_the_best_accepted_answer():
    compared = compare(question("two boats", "one boat and one raft"), Answer("one boat, one raft"))
    assert compared.rouge_l_recall == pytest.approx(4 / 5)
    assert measures([compared])["rouge_l_recall"] == 80.0


# A judge's verdicts.


def test_only_what_a_judge_decided_on_counts_in_its_share():
    rows = [prediction(question_id=name, groups=[name[0]]) for name in ("a1", "a2", "b1", "b2")]
    said = {("a1", 0): True, ("a2", 0): None, ("b1", 0): False}
    row = measures(rows, said)
    assert (row["judge"], row["unscored"]) == (50.0, 50.0)  # b2 was never asked: no WRONG
    assert {name: row["judge"] for name, row in groups(rows, said).items()} == {"a": 100.0, "b": 0}


def test_without_a_judge_its_columns_are_unknown():
    row = measures([prediction()])
    assert row["judge"] is None and row["unscored"] is None
    assert measures([prediction()], {})["judge"] is None


def test_a_question_asked_again_later_has_a_verdict_of_its_own():
    rows = [prediction(sessions=5), prediction(sessions=10)]
    assert measures(rows, {("q1", 5): True, ("q1", 10): False})["judge"] == 50.0


def test_a_streaming_question_counts_as_it_was_asked_last():
    rows = [prediction(sessions=n, question_id=id) for n, id in ((10, "a"), (5, "a"), (5, "b"))]
    assert {row.key for row in last_asked(rows)} == {("a", 10), ("b", 5)}
    assert last_asked([prediction()]) == [prediction()]


# LongMemEval's measures of retrieval.


def test_the_second_place_loses_nothing_and_the_third_does():
    assert ndcg("abc", {"a"}, 5) == ndcg("abc", {"b"}, 5) == 1.0
    assert ndcg("abc", {"c"}, 5) == pytest.approx(0.6309298)  # 1 / log2(3)
    assert ndcg("abcd", {"b", "d"}, 5) == pytest.approx(0.75)  # (1 + 1/2) / (1 + 1)
    assert ndcg("abcd", {"d"}, 3) == 0.0


def test_more_than_fits_is_not_asked_of_the_first_places():
    assert ndcg("ab", {"a", "b", "c"}, 2) == 1.0
    assert recall_all("ab", {"a", "b", "c"}, 2) == 0.0


ids = st.lists(st.integers(0, 12), unique=True, max_size=12)


@given(ids, st.sets(st.integers(0, 12), min_size=1), st.integers(1, 12))
def test_rank_measures_are_shares_and_all_implies_any(ranking, relevant, k):
    found = ndcg(ranking, relevant, k)
    assert 0 <= found <= 1 + 1e-12
    assert recall_all(ranking, relevant, k) <= recall_any(ranking, relevant, k)
    assert (found > 0) == recall_any(ranking, relevant, k)


@given(ids, st.sets(st.integers(0, 12), min_size=1), st.integers(1, 12), st.integers(0, 10))
def test_a_relevant_id_that_moves_up_never_costs(ranking, relevant, k, place):
    if place + 1 < len(ranking) and ranking[place + 1] in relevant:
        better = list(ranking)
        better[place], better[place + 1] = better[place + 1], better[place]
        assert ndcg(better, relevant, k) >= ndcg(ranking, relevant, k) - 1e-12


def scored(*rows):
    """Entries as they are shown: (score, turns...)."""
    return [
        {"entry_id": str(i), "source_turns": turns, "score": score}
        for i, (score, *turns) in enumerate(rows)
    ]


def test_sessions_rank_by_their_best_entry_whatever_order_was_shown():
    found = prediction(
        evidence=["D5:3", "D2:1"],
        retrieved=scored((0.1, "D5:3"), (0.9, "D1:4"), (0.5, "D2:9", "D1:1"), (0.05, "D2:1")),
    )
    assert ranked_sessions(found) == [1, 2, 5]
    row = measures([found])
    assert row["session_recall_any@5"] == row["session_recall_all@5"] == 100.0
    assert row["session_ndcg@5"] == 81.5  # (1 + 0.631) / 2
    assert row["recall@60"] == 100.0


def test_a_session_beyond_the_first_five_is_found_by_ten_only():
    entries = [(1.0 - i / 10, f"D{i}:1") for i in range(1, 8)]
    row = measures([prediction(evidence=["D6:2"], retrieved=scored(*entries))])
    assert [row[f"session_recall_any@{k}"] for k in (5, 10)] == [0.0, 100.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"evidence": [], "retrieved": scored((1.0, "D1:1"))},
        {"evidence": ["D1:1"], "retrieved": scored((None, "D1:1"))},
        {"evidence": ["D1:1"], "retrieved": scored((1.0, "D1:1")), "category": 5},
        {"evidence": ["turn-7"], "retrieved": scored((1.0, "turn-7"))},
    ],
    ids=["no evidence", "nothing ranked", "nothing to find", "turns without sessions"],
)
def test_what_cannot_be_ranked_is_no_zero(fields):
    row = measures([prediction(**fields)])
    assert row["session_recall_any@5"] is None and row["session_ndcg@10"] is None


def test_a_search_that_finds_nothing_missed_it():
    assert measures([prediction(evidence=["D1:1"])])["session_recall_any@5"] == 0.0


# Intervals.


def test_an_interval_of_a_thousand_coin_flips_is_three_points_wide_each_way():
    rows = [prediction(question_id=str(i), em=float(i % 2), f1=0.25) for i in range(1000)]
    found = intervals(rows)
    low, high = found["em"]
    assert low == pytest.approx(50 - 3.1, abs=0.3) and high == pytest.approx(50 + 3.1, abs=0.3)
    assert found["f1"] == [25.0, 25.0]
    assert found == intervals(rows) == intervals(rows[::-1])
    assert "judge" not in found


def test_the_interval_of_a_judge_leaves_out_what_it_did_not_decide():
    rows = [prediction(question_id=str(i)) for i in range(400)]
    said = {(str(i), 0): None if i >= 200 else i % 4 > 0 for i in range(400)}
    low, high = intervals(rows, said)["judge"]
    assert low == pytest.approx(75 - 6, abs=1) and high == pytest.approx(75 + 6, abs=1)
    assert intervals(rows, dict.fromkeys(said))["f1"] and "judge" not in intervals(rows, {})


def test_one_decided_answer_among_many_still_has_an_interval():
    rows = [prediction(question_id=str(i)) for i in range(50)]
    assert intervals(rows, {("7", 0): True})["judge"] == [100.0, 100.0]


def test_nothing_has_no_interval():
    assert intervals([]) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_lies_within_what_was_seen(scores):
    rows = [prediction(em=score) for score in scores]
    low, high = intervals(rows, resamples=100)["em"]
    assert 100 * min(scores) - 0.06 <= low <= high <= 100 * max(scores) + 0.06


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


def test_a_system_that_shows_all_it_has_is_not_scored_for_retrieval():
    everything = prediction(evidence=["D1:1"], retrieved=[], memories=40)
    nothing = prediction(evidence=["D1:1"], retrieved=[], memories=0)
    assert recall(everything) is None
    assert recall(nothing) == 0.0
    assert measures([everything])["session_recall_any@5"] is None

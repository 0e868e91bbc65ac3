"""Metrics against their worked values and their originals; index terms in many scripts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from memory_r1.text import bleu1, em, f1, f1_official, normalise, terms

WORKED = [  # gold, prediction, category, f1_official, f1, bleu1
    ("a trophy", "Trophy", 4, 1.000, 0.667, 0.368),
    ("7 May 2023", "May 7, 2023", 2, 1.000, 1.000, 0.750),
    (
        "pottery, camping, painting, swimming",
        "swimming, pottery and painting",
        1,
        0.583,
        0.750,
        0.536,
    ),
    (
        "Likely no; though she likes reading, she wants to be a counselor",
        "Likely no",
        3,
        1.000,
        0.154,
        0.002,
    ),
    ("Becoming Nicole", '"Becoming Nicole"', 4, 1.000, 0.000, 0.500),
    (2022, "in 2022", 2, 0.667, 0.667, 0.500),
]


@pytest.mark.parametrize(("gold", "said", "category", "official", "words", "bleu"), WORKED)
def test_the_worked_values_come_out(gold, said, category, official, words, bleu):
    assert f1_official(said, gold, category) == pytest.approx(official, abs=0.0006)
    assert f1(said, gold) == pytest.approx(words, abs=0.0006)
    assert bleu1(said, gold) == pytest.approx(bleu, abs=0.0006)


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("The  Becoming, Nicole!", "becoming nicole", 1),
        ("2022", 2022, 1),
        ("in 2022", 2022, 0),
        ("Buddy", "a buddy", 1),
        ("", "two", 0),
        ("the", "two", 0),
        ("", "A", 0),
        ("!", "?", 0),
        ("a", "A", 1),
        ("an", "A", 0),
        ("", "", 0),
    ],
)
def test_exact_match_forgives_case_articles_and_punctuation_and_nothing_else(said, gold, right):
    assert em(said, gold) == right


def test_normal_form_keeps_words_that_begin_like_articles():
    assert normalise("The theatre, an antelope & a-ha") == "theatre antelope aha"


@pytest.mark.parametrize("category", [1, 2, 3, 4])
@pytest.mark.parametrize("said", ["", "   ", ",", "the", ",,,"])
def test_saying_nothing_scores_nothing(said, category):
    for gold in ("two dogs", "the", ""):
        assert f1_official(said, gold, category) == 0
    assert f1(said, "two dogs") == em(said, "two dogs") == 0


def test_an_empty_prediction_or_gold_has_no_f1():
    assert f1("", "x") == f1("x", "") == f1("", "") == bleu1("", "") == bleu1("", "x") == 0


def test_repeating_the_gold_word_pays_in_no_metric():
    assert f1("dog dog dog dog", "dog") == 1  # over sets it costs nothing ...
    assert f1_official("dog dog dog dog", "dog", 4) == pytest.approx(0.4)  # ... here it does
    assert bleu1("dog dog dog dog", "dog") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("said", "right"),
    [("Not mentioned.", 1), ("There is No Information Available", 1), ("Yes", 0), ("", 0)],
)
def test_an_adversarial_question_is_answered_by_declining(said, right):
    assert f1_official(said, "whatever", 5) == right


def test_only_what_precedes_the_semicolon_counts_in_category_three_alone():
    assert f1_official("Likely no", "Likely no; she reads", 3) == 1
    assert f1_official("Likely no", "Likely no; she reads", 4) == pytest.approx(2 / 3)


@given(st.text("ab .,'!x", max_size=30), st.text("ab .,'!x", max_size=30))
def test_bleu1_is_nltks(said, gold):
    original = sentence_bleu(
        [word_tokenize(gold, preserve_line=True)],
        word_tokenize(said, preserve_line=True),
        weights=(1, 0, 0, 0),
        smoothing_function=SmoothingFunction().method1,
    )
    assert bleu1(said, gold) == pytest.approx(float(original))


@given(st.text(), st.text(), st.sampled_from([1, 2, 3, 4, 5]))
def test_every_metric_stays_between_nothing_and_all(said, gold, category):
    for score in (em(said, gold), f1(said, gold), bleu1(said, gold)):
        assert 0 <= score <= 1
    assert 0 <= f1_official(said, gold, category) <= 1


@given(st.text(min_size=1))
def test_the_gold_itself_is_always_an_exact_match(gold):
    assert em(gold, gold) == float(bool(gold.strip()))


def test_terms_are_stems_without_stop_words():
    assert terms("When did Melanie's kids go camping in the Rocky Mountains?") == (
        *("melani", "kid", "go", "camp", "rocki", "mountain"),
    )


def test_a_date_is_found_by_its_parts():
    assert set(terms("7 May 2023")) <= set(terms("[1:56 pm on 7 May, 2023] Melanie: hi"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢猫", ("我喜", "喜欢", "欢猫", "我", "喜", "欢", "猫")),
        ("猫", ("猫",)),
        ("買bread 東京", ("買", "bread", "東京", "東", "京")),
        ("Ｃａｆé", ("café",)),
        ("हिन्दी भाषा", ("हिन्दी", "भाषा")),
        ("don’t stop!", ("stop",)),
        ("🙂 ... — !", ()),
        ("", ()),
    ],
)
def test_terms_in_other_scripts(text, expected):
    assert terms(text) == expected


@given(st.text())
def test_any_text_has_terms_or_none(text):
    assert all(term and not term.isspace() for term in terms(text))


def test_without_nltk_the_core_works_and_the_metrics_say_what_to_install():
    code = """
import sys
sys.modules["nltk"] = None
from memory_r1.errors import MissingExtra
from memory_r1.text import bleu1, em, f1, f1_official, terms
assert em("Two", "two") == f1("two", "two") == 1 and terms("dogs") == ("dog",)
for score in (lambda: bleu1("a", "a"), lambda: f1_official("a", "a", 4)):
    try:
        score()
    except MissingExtra as error:
        assert "memory-r1[bench]" in str(error), error
    else:
        raise SystemExit("no MissingExtra")
"""
    subprocess.run([sys.executable, "-c", code], check=True)

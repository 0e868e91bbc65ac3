"""What compact prompts and replies are made of: sorted rows, labels, an arrow, a pointer."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.errors import MalformedReply
from memory_r1.llm.prompting import halves, labelled, labels, pointed
from memory_r1.types import Entry, Owner


def entries(*texts):
    moment = datetime(2023, 5, 8, tzinfo=UTC)
    return [Entry(f"id-{n}", text, Owner("u"), moment) for n, text in enumerate(texts)]


def test_rows_stand_in_the_order_of_their_texts_under_the_labels_they_were_given():
    rows = entries("Otto's dog is Rolo", "Ida's home is Rome", "Ida's dogs are Pip and Max")
    assert labelled(rows) == (
        "Ida's dogs are Pip and Max <s2> Ida's home is Rome <s1> Otto's dog is Rolo <s0>"
    )
    assert labelled([]) == ""


@given(st.lists(st.text(max_size=12), max_size=8))
def test_every_row_is_shown_once_with_its_own_label_whatever_it_says(texts):
    shown = labelled(entries(*texts))
    assert sorted(labels(shown)) == list(range(len(texts)))
    assert shown.count("<") == len(texts)


@given(st.lists(st.sampled_from(["a", "b", "c <s0>"]), max_size=6), st.randoms())
def test_the_order_given_changes_labels_but_never_the_order_of_the_texts(texts, rng):
    other = list(texts)
    rng.shuffle(other)

    def without_labels(rows):
        return [part for part in labelled(entries(*rows)).split() if not part.startswith("<s")]

    assert without_labels(texts) == without_labels(other)


@pytest.mark.parametrize(
    ("left", "found"),
    [
        ("Otto's dog is Rolo <s3>", [3]),
        ("<s0>", [0]),
        ("a <s2> , b <s0>", [2, 0]),
        ("a <s2> , a <s2>", [2]),
        ("nothing", []),
        ("Otto's dog nothing", []),
        ("Otto's trip to Oslo nothing", []),
        # Neither: a memory without its label, a label in the middle, both at once.
        ("", None),
        ("Otto's dog is Rolo", None),
        ("Otto's <s3> dog", None),
        ("Otto's dog is Rolo <s3> nothing", None),
        ("nothing is known", None),
        ("Otto's dog isnothing", None),
        ("Nothing", None),
        ("<s>", None),
        ("a >", None),
    ],
)
def test_a_reply_points_at_memories_at_nothing_or_is_neither(left, found):
    assert pointed(left) == found


@given(st.text())
def test_whatever_stands_before_the_arrow_can_be_judged(left):
    found = pointed(left)
    assert found is None or found == labels(left)


def test_a_reply_has_two_sides():
    assert halves(" Ida's dog nothing  =>  ADD ") == ("Ida's dog nothing", "ADD")
    assert halves("=> ADD") == ("", "ADD")


@pytest.mark.parametrize("reply", ["", "a", "a =>", "a => b => c", "a => b <s0>", "a <s0> =>\n"])
def test_a_reply_of_another_form_is_refused(reply):
    with pytest.raises(MalformedReply, match="expected"):
        halves(reply)

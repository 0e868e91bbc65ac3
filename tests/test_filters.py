"""Which entries a filter means."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.errors import ConfigError
from memory_r1.filters import predicate
from memory_r1.types import Entry, Owner

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def entry(**metadata):
    return Entry("a", "Ann has a cat", Owner("ann"), NOON, speaker="Ann", metadata=metadata)


TRIP = entry(topic="travel", year=2023, tags=["work", "sea"], done=True)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"topic": "travel"},
        {"topic": {"eq": "travel"}, "year": {"gt": 2022, "lte": 2023}},
        {"topic": {"ne": "food"}},
        {"colour": {"ne": "red"}},
        {"colour": {"nin": ["red"]}},
        {"topic": {"in": ["food", "travel"]}},
        {"topic": {"nin": ["food"]}},
        {"topic": "*"},
        {"tags": {"contains": "sea"}},
        {"topic": {"contains": "rav"}},
        {"topic": {"icontains": "RAV"}},
        {"speaker": "Ann", "text": {"icontains": "CAT"}},
        {"stored": {"gte": "2024-05-01T12:00", "lt": datetime(2024, 5, 2)}},
        {"stored": NOON},
        {"AND": [{"topic": "travel"}, {"year": 2023}]},
        {"OR": [{"topic": "food"}, {"year": 2023}]},
        {"NOT": [{"topic": "food"}]},
        {"NOT": {"topic": "food"}},
        {"$or": [{"topic": "food"}, {"year": {"$gte": 2023}}]},
        {"done": True},
    ],
)
def test_an_entry_is_meant(filters):
    test = predicate(filters)
    assert test is None or test(TRIP)


@pytest.mark.parametrize(
    "filters",
    [
        {"topic": "food"},
        {"topic": "travel", "year": 2022},
        {"colour": "red"},
        {"colour": "*"},
        {"expires": "*"},
        {"colour": {"gt": 1}},
        {"year": {"gt": "2022"}},
        {"year": {"contains": 2}},
        {"topic": {"contains": 7}},
        {"topic": {"contains": "RAV"}},
        {"done": 1},
        {"year": {"gt": True}},
        {"stored": {"lt": "no moment"}},
        {"stored": 7},
        {"OR": [{"topic": "food"}, {"year": 2022}]},
        {"OR": []},
        {"NOT": [{"topic": "travel"}, {"topic": "food"}]},
    ],
)
def test_an_entry_is_not_meant(filters):
    assert not predicate(filters)(TRIP)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ("topic", "should be a dict"),
        ({"year": {"over": 3}}, "unknown operator 'over'"),
        ({"year": {"in": "2023"}}, "takes a list"),
        ({"OR": "topic"}, "takes a list of filters"),
        ({"AND": ["topic"]}, "should be a dict"),
    ],
)
def test_what_is_no_filter_is_refused_with_what_was_expected(filters, said):
    with pytest.raises(ConfigError, match=said):
        predicate(filters)


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab"])


@given(VALUES, VALUES)
def test_an_operator_and_its_opposite_never_agree(value, wanted):
    held = entry(key=value)
    for one, other in (("eq", "ne"), ("in", "nin")):
        given_value = [wanted] if one == "in" else wanted
        assert predicate({"key": {one: given_value}})(held) != predicate(
            {"key": {other: given_value}}
        )(held)
    test = {"key": {"eq": wanted}}
    assert predicate({"NOT": [test]})(held) != predicate(test)(held)

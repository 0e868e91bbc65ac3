"""Retrieval: each reason for a hit by itself, the protocols, and LoCoMo's bar."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.data import load, scored
from memory_r1.embed import LocalEmbedder
from memory_r1.errors import StoreError
from memory_r1.retrieve import related, search
from memory_r1.store.index import Index
from memory_r1.types import Entry, Owner

NOW = datetime(2024, 5, 1, tzinfo=UTC)
DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Letters:
    """Embeds a text as its counts of the letters q, x and z, which no entry needs."""

    name, dim = "letters", 3

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.count(c) for c in "qxz"] for text in texts], np.float32)
        counts = counts.reshape(len(texts), 3)
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        return counts / np.where(lengths > 0, lengths, 1)


def bank(*rows: tuple[str, ...]) -> Index:
    """Entries of (text, speaker, source)."""
    index = Index()
    for i, (text, *more) in enumerate(rows):
        speaker, *sources = more or [""]
        entry = Entry(f"{i:04}", text, Owner("u"), NOW, speaker, tuple(sources))
        index.put(entry, Letters().embed([text])[0])
    return index


def texts(hits) -> list[str]:
    return [hit.entry.text for hit in hits]


def test_a_word_alone_or_a_vector_alone_makes_a_hit():
    index = bank(("nothing",), ("a lamp",), ("zz",), ("nought",), ("nix",))
    found = texts(search(index, "lamp z", Letters(), k=2))
    assert sorted(found) == ["a lamp", "zz"]


def test_the_turns_around_a_match_follow_it_and_other_sessions_do_not():
    index = bank(
        ("how far is the moon", "A", "D1:1"),
        ("far", "B", "D1:2"),
        ("bye", "A", "D1:9"),
        ("hello", "A", "D2:1"),
        ("some noise", "B", "D2:2"),
    )
    found = texts(search(index, "moon?", Letters(), k=5))
    assert found[:2] == ["how far is the moon", "far"]
    assert found[2] == "bye", "of the same session, though no neighbour"


def test_neighbours_are_known_by_their_turns_not_by_the_order_of_storage():
    index = bank(
        ("moon", "A", "D1:1"),
        ("stored next, said long after", "A", "D5:1"),
        ("stored last, said next", "B", "D1:2"),
        ("something else", "A", "D7:1"),
    )
    found = texts(search(index, "moon", Letters(), k=4))
    assert found[1] == "stored last, said next"


def test_without_turn_numbers_the_order_of_storage_tells_the_neighbours():
    index = bank(*((word,) for word in "red orange yellow green blue moon indigo violet".split()))
    found = texts(search(index, "moon", Letters(), k=3))
    assert found[0] == "moon" and set(found[1:]) == {"blue", "indigo"}


def test_the_only_speaker_named_is_preferred():
    index = bank(("I like tea", "Ann"), ("I like tea", "Bo Smith"))
    named = search(index, "Does Bo like tea?", Letters(), k=2, explain=True)
    assert named[0].entry.speaker == "Bo Smith" and named[0].signals["speaker"] == 1
    both = search(index, "Do Ann and Bo like tea?", Letters(), k=2, explain=True)
    assert "speaker" not in both[0].signals


def test_per_speaker_takes_as_many_of_each():
    index = bank(*((f"moon {i}", "Ann") for i in range(9)), ("x", "Bo"), ("y", "Bo"), ("z", ""))
    hits = search(index, "moon", Letters(), k=3, per_speaker=2)
    assert sorted(hit.entry.speaker for hit in hits) == ["Ann", "Ann", "Bo", "Bo"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    only = search(index, "moon", Letters(), k=3, speakers=["Bo"])
    assert {hit.entry.speaker for hit in only} == {"Bo"} and len(only) == 2
    assert search(index, "moon", Letters(), k=3, per_speaker=2, speakers=["Nobody"]) == []


def test_the_signals_add_up_to_the_score():
    index = bank(("moon", "A", "D1:1"), ("far", "B", "D1:2"), ("zz", "A", "D2:1"))
    for hit in search(index, "Did A see the moon z", Letters(), k=3, explain=True):
        assert sum(hit.signals.values()) == pytest.approx(hit.score, abs=1e-5)
    assert search(index, "moon", Letters(), k=1)[0].signals == {}


def test_a_query_that_matches_nothing_returns_the_newest():
    index = bank(("one",), ("two",), ("three",))
    assert texts(search(index, "?", Letters(), k=2)) == ["three", "two"]


def test_an_empty_bank_and_no_places_find_nothing():
    assert search(Index(), "moon", Letters(), k=5) == []
    assert search(bank(("moon",)), "moon", Letters(), k=0) == []
    assert related(Index(), ["moon"], Letters(), k=5) == []


def test_another_embedders_index_is_refused():
    with pytest.raises(StoreError, match="3 numbers and the embedder .* makes 256"):
        search(bank(("moon",)), "moon", LocalEmbedder(), k=1)


def test_related_entries_come_oldest_first_and_every_fact_gets_its_turn():
    index = bank(("tea",), ("moon one",), ("moon two",), ("moon three",), ("sun",), ("rain",))
    found = [entry.text for entry in related(index, ["a new moon", "rain again"], Letters(), k=2)]
    assert found[-1] == "rain" and found[0].startswith("moon")


def test_related_leaves_neighbours_out():
    index = bank(
        ("moon", "A", "D1:1"),
        ("next", "A", "D1:2"),
        ("tea", "A", "D2:1"),
        ("moon again", "A", "D9:9"),
    )
    assert [e.text for e in related(index, ["moon"], Letters(), k=2)] == ["moon", "moon again"]


def test_a_small_bank_is_shown_whole():
    index = bank(("one",), ("two",))
    assert [entry.text for entry in related(index, ["x"], Letters(), k=5)] == ["one", "two"]


PLACES = st.one_of(
    st.just(()),
    st.tuples(st.builds("D{}:{}".format, st.integers(1, 3), st.integers(1, 6))),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text("moon zq", max_size=9), st.sampled_from(["", "A", "B"]), PLACES)),
    st.text("moon zqAB", max_size=12),
    st.integers(0, 8),
)
def test_search_returns_the_head_of_one_ranking(rows, query, k):
    index = bank(*((text, speaker, *places) for text, speaker, places in rows))
    ranking = search(index, query, Letters(), k=len(rows))
    assert len({hit.entry.id for hit in ranking}) == len(rows)
    assert all(np.isfinite(hit.score) for hit in ranking)
    assert search(index, query, Letters(), k=k) == ranking[:k]


@pytest.mark.data
def test_locomos_validation_dialogue_is_found_above_the_bar():
    path = DATA / "locomo10.json"
    if not path.exists():
        pytest.skip(f"locomo10.json is not in {DATA}; set MEMORY_R1_DATA to its folder")
    [dialogue] = [one for one in load(path) if one.split == "validation"]
    embedder, index = LocalEmbedder(), Index()
    told = [f"{turn.speaker}: {turn.text} {turn.caption}" for turn in dialogue.turns]
    for i, (turn, text, vector) in enumerate(
        zip(dialogue.turns, told, embedder.embed(told), strict=True)
    ):
        index.put(Entry(f"{i:04}", text, Owner("u"), NOW, turn.speaker, (turn.id,)), vector)
    shares = []
    for question in scored([dialogue]):
        hits = search(index, question.text, embedder, k=60)
        found = {source for hit in hits for source in hit.entry.sources}
        shares.append(len(found & set(question.evidence)) / len(question.evidence))
    assert np.mean(shares) > 0.87

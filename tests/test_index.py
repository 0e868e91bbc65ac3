"""The column index: scores by hand, and any history of changes equal to a fresh start."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Thread
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.store import columns
from memory_r1.store.index import Index, packed
from memory_r1.text import terms
from memory_r1.types import Entry, Owner

NOW = datetime(2024, 5, 1, tzinfo=UTC)


def entry(entry_id: str, text: str, speaker: str = "Ann", sources: tuple[str, ...] = ()) -> Entry:
    return Entry(entry_id, text, Owner("u"), NOW, speaker, sources)


def filled(*entries: Entry) -> Index:
    index = Index()
    for one in entries:
        index.put(one, vector_of(one.text))
    return index


def vector_of(text: str) -> np.ndarray:
    return np.array([len(text), text.count("a"), 1], np.float32)


def assert_same(one: Index, other: Index) -> None:
    assert one.entries == other.entries
    assert len(one) == len(other)
    assert one.speakers == other.speakers
    np.testing.assert_array_equal(one.sessions, other.sessions)
    np.testing.assert_array_equal(one.turns, other.turns)
    if len(other):
        np.testing.assert_array_equal(one.vectors, other.vectors)
    for query in ("cat", "dog runs", "cat cat bird", "xyz"):
        np.testing.assert_allclose(one.bm25(terms(query)), other.bm25(terms(query)), rtol=1e-6)
        np.testing.assert_array_equal(one.containing(terms(query)), other.containing(terms(query)))
    for speaker in ("Ann", "Bo", "Bo the \ud83d", "Cy"):
        np.testing.assert_array_equal(one.spoken_by(speaker), other.spoken_by(speaker))


def test_bm25_of_two_entries_by_hand():
    index = filled(entry("a", "The cat sat"), entry("b", "dogs"))
    # idf ln 2; "cat sat" is 4/3 of the mean length: 0.9 * (0.6 + 0.4 * 4/3) = 1.02 of damping
    np.testing.assert_allclose(index.bm25(terms("a cat")), [0.6931472 * 1.9 / 2.02, 0], rtol=1e-5)


def test_a_rare_word_counts_more_than_a_common_one_and_a_repeated_query_word_once():
    index = filled(entry("a", "red car"), entry("b", "red bus"), entry("c", "red cab"))
    car, bus, _ = index.bm25(terms("red car"))
    assert car > 2 * bus > 0
    np.testing.assert_array_equal(index.bm25(terms("car car")), index.bm25(terms("car")))


def test_the_entries_that_contain_all_of_some_words_are_looked_up():
    index = filled(entry("a", "cat dog"), entry("b", "dog runs"), entry("c", "dog cat runs"))
    assert index.containing(terms("cats and dogs")).tolist() == [0, 2]
    assert index.containing(["dog"]).tolist() == index.containing([]).tolist() == [0, 1, 2]
    assert index.containing(["dog", "bird"]).tolist() == []
    index.drop("a")
    assert index.containing(["dog"]).tolist() == [0, 1] and index.containing(["cat"]).tolist() == [
        1
    ]


def test_an_empty_index_answers():
    index = Index()
    assert index.entries == [] and len(index.bm25(("cat",))) == 0 and index.vectors.size == 0
    assert index.speakers == [] and "a" not in index


def test_entries_stand_in_the_order_of_their_ids_whatever_the_order_of_arrival():
    one = filled(entry("c", "bird"), entry("a", "cat"), entry("b", "dog runs"))
    other = filled(entry("a", "cat"), entry("b", "dog runs"), entry("c", "bird"))
    assert_same(one, other)


def test_the_place_is_that_of_the_latest_source():
    index = filled(
        entry("a", "x", sources=("D1:2", "D3:11")),
        entry("b", "x", sources=("0192af",)),
        entry("c", "x"),
    )
    assert index.sessions.tolist() == [3, -NOW.toordinal(), -NOW.toordinal()]
    assert index.turns.tolist() == [11, -1, -1]


def test_what_is_not_there_cannot_be_dropped():
    with pytest.raises(UnknownEntry, match="'z'"):
        filled(entry("a", "cat")).drop("z")


def test_vectors_of_another_embedder_are_refused_and_change_nothing():
    index = filled(entry("a", "cat"))
    with pytest.raises(StoreError, match="re-embed"):
        index.put(entry("b", "dog"), np.zeros(7, np.float32))
    assert_same(index, filled(entry("a", "cat")))


def test_a_copy_and_its_original_go_their_own_ways():
    original = filled(entry("a", "cat"), entry("b", "dog"))
    copy = original.copy()
    second = copy.copy()
    copy.put(entry("a", "bird", "Bo"), vector_of("bird"))
    copy.put(entry("c", "dog runs"), vector_of("dog runs"))
    original.drop("b")
    assert_same(original, filled(entry("a", "cat")))
    assert_same(copy, filled(entry("a", "bird", "Bo"), entry("b", "dog"), entry("c", "dog runs")))
    assert_same(second, filled(entry("a", "cat"), entry("b", "dog")))


ROWS = [
    entry("c", "cat cat dog", "Bo the \ud83d", ("D2:1",)),
    entry("a", "", ""),
    entry("b", "the dog runs", sources=("m7", "D1:2")),
]


def stored(*entries: Entry):
    """Rows as a store keeps them; the body is the id."""
    vectors = [vector_of(one.text).astype("<f4").tobytes() for one in entries]
    return [
        (one.id, one.speaker, packed(one), one.id, vector)
        for one, vector in zip(entries, vectors, strict=True)
    ]


def test_many_entries_at_once_are_the_same_as_one_by_one():
    vectors = np.array([vector_of(one.text) for one in ROWS])
    assert_same(Index.build(ROWS, vectors), filled(*ROWS))
    assert_same(Index.build([], np.empty((0, 3))), Index())
    with pytest.raises(StoreError, match=r"3 entries came with vectors of shape \(2, 3\)"):
        Index.build(ROWS, vectors[:2])


def test_what_a_store_kept_is_loaded_and_a_body_is_read_once_when_asked_for():
    read: list[str] = []

    def read_body(body: str) -> Entry:
        read.append(body)
        return next(one for one in ROWS if one.id == body)

    index = Index.load(stored(*ROWS), read_body)
    assert index.bm25(["dog"]).argmax() == 1 and read == []
    assert index.copy().entry(1) is index.entry(1) and read == ["b"]
    assert_same(index, filled(*ROWS))
    index.put(entry("bb", "bird"), vector_of("bird"))
    assert_same(index, filled(*ROWS, entry("bb", "bird")))


def test_what_another_version_packed_is_packed_anew():
    rows = [(key, who, b"", body, vector) for key, who, _, body, vector in stored(*ROWS)]
    old = np.array([columns.PACKING + 1, 9, 9, 9, 9], "<i8").tobytes()
    rows[0] = (*rows[0][:2], old, *rows[0][3:])
    index = Index.load(rows, lambda body: next(one for one in ROWS if one.id == body))
    assert_same(index, filled(*ROWS))


def test_stored_vectors_of_two_embedders_are_refused():
    one, two = stored(*ROWS[:2])
    with pytest.raises(StoreError, match=r"\[2, 3\] numbers: the embedder has changed"):
        Index.load([one, (*two[:4], two[4][:8])], str)


def test_copies_share_what_they_know_and_an_append_moves_nothing():
    index = filled(entry("a", "cat"), entry("b", "dog"))
    copy = index.copy()
    copy.put(entry("c", "bird"), vector_of("bird"))
    assert np.shares_memory(index.vectors, copy.vectors)
    index.put(entry("c", "cow"), vector_of("cow"))
    assert_same(index, filled(entry("a", "cat"), entry("b", "dog"), entry("c", "cow")))
    assert_same(copy, filled(entry("a", "cat"), entry("b", "dog"), entry("c", "bird")))


def test_old_versions_are_cleared_away():
    index = filled(entry("a", "cat"), entry("b", "dog"))
    for i in range(500):
        index.put(entry("a", f"cat {i}"), vector_of(f"cat {i}"))
    assert len(index._slots) < 200
    assert_same(index, filled(entry("a", "cat 499"), entry("b", "dog")))


def test_a_word_is_counted_up_to_65535_times_and_a_long_entry_is_held():
    index = filled(entry("a", "cat " * 100_000), entry("b", "dog"))
    assert index.bm25(["cat"])[0] > index.bm25(["cat"])[1] == 0


def test_readers_of_a_copy_see_nothing_of_what_is_appended_meanwhile():
    index, wrong = filled(entry("0000", "cat")), []
    expected = index.bm25(["cat"]).tolist()

    def read(known: Index) -> None:
        for _ in range(300):
            if known.bm25(["cat"]).tolist() != expected or len(known.vectors) != 1:
                wrong.append(len(known))

    reader = Thread(target=read, args=(index.copy(),))
    with patch.object(columns, "TAIL", 20):
        reader.start()
        for i in range(1, 600):
            index.put(entry(f"{i:04}", "cat dog"), vector_of("cat dog"))
        reader.join()
    assert not wrong and len(index) == 600


def test_sketches_tell_about_the_cosines_also_of_what_came_after_them():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1200, 80)).astype(np.float32) * (0.9 ** np.arange(80))
    entries = [entry(f"{i:04}", "cat") for i in range(1200)]
    with patch.object(columns, "SAMPLE", 100):
        index = Index.build(entries[:500], vectors[:500])
        for known in (500, 550, 900, 1200):  # nothing new, a few more, more, over twice as many
            for i in range(len(index), known):
                index.put(entries[i], vectors[i])
            query = vectors[7]
            found = index.sketched(query)
            np.testing.assert_allclose(found.cosines, index.cosines(query), atol=0.1)
            assert found.spread == pytest.approx(float(index.cosines(query).std()), rel=0.3)
    index.drop("0003")
    np.testing.assert_allclose(index.sketched(query).cosines, index.cosines(query), atol=0.1)


ENTRY = st.builds(
    entry,
    st.sampled_from("abcdefgh"),
    st.lists(st.sampled_from("cat dog bird runs the 7".split()), max_size=6).map(" ".join),
    st.sampled_from(["", "Ann", "Bo"]),
    st.sampled_from([(), ("D1:2",), ("D2:1", "D2:3"), ("m7",)]),
)


@settings(max_examples=200)
@given(
    st.sampled_from([1, 5, 1 << 15]),
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 2), ENTRY),
            st.tuples(st.just("drop"), st.integers(0, 2), st.sampled_from("abcdefgh")),
            st.tuples(st.just("copy"), st.integers(0, 2), st.integers(0, 2)),
        ),
        max_size=40,
    ),
)
def test_any_history_of_puts_drops_and_copies_equals_an_index_built_anew(tail, history):
    with patch.object(columns, "TAIL", tail):
        _play(history)


def _play(history):
    indexes = [Index(), Index(), Index()]
    believed: list[dict[str, Entry]] = [{}, {}, {}]
    for action, at, what in history:
        if action == "put":
            indexes[at].put(what, vector_of(what.text))
            believed[at][what.id] = what
        elif action == "copy":
            indexes[what], believed[what] = indexes[at].copy(), dict(believed[at])
        elif what in believed[at]:
            indexes[at].drop(what)
            del believed[at][what]
    for index, entries in zip(indexes, believed, strict=True):
        assert_same(index, filled(*(entries[key] for key in sorted(entries))))

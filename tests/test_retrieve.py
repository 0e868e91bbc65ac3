"""Retrieval: each reason for a hit by itself, the protocols, and LoCoMo's bar."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1 import retrieve
from memory_r1.data import load, scored
from memory_r1.embed import LocalEmbedder
from memory_r1.errors import StoreError
from memory_r1.retrieve import containing, related, search
from memory_r1.store.index import Index
from memory_r1.text import terms
from memory_r1.types import Entry, Hit, Owner

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


def test_entries_that_may_not_be_returned_give_way_to_the_next_best():
    index = bank(*((f"moon {i}", "Ann" if i % 2 else "Bo") for i in range(300)))
    ranking = texts(search(index, "moon", Letters(), k=300))
    odd = [text for text in ranking if text.endswith(("7", "9"))]

    def where(entry: Entry) -> bool:
        return entry.text.endswith(("7", "9"))

    assert texts(search(index, "moon", Letters(), k=5, where=where)) == odd[:5]
    assert texts(search(index, "moon", Letters(), k=300, where=where)) == odd
    assert texts(search(index, "moon", Letters(), k=9, per_speaker=2, where=where)) == odd[:2]
    assert search(index, "moon", Letters(), k=5, where=lambda entry: False) == []


def test_what_may_be_returned_is_asked_in_the_order_of_the_ranking_until_enough_may():
    index = bank(*((f"moon {i}",) for i in range(300)))
    ranking, asked = texts(search(index, "moon", Letters(), k=300)), []

    def where(entry: Entry) -> bool:
        asked.append(entry.text)
        return entry.text != ranking[0]

    assert texts(search(index, "moon", Letters(), k=3, where=where)) == ranking[1:4]
    assert asked == ranking[: len(asked)] and len(asked) < 20


def test_a_rare_word_is_found_whatever_the_vectors_say():
    rng = np.random.default_rng(3)
    letters = (" ".join(rng.choice(list("qxz"), 6)) for _ in range(500))
    index = bank(*((text,) for text in letters), ("xylem q q q q",))
    for exact_up_to in (10**6, 0):
        with patch.multiple(retrieve, EXACT_UP_TO=exact_up_to, LIKELY=20):
            [hit, _] = search(index, "xylem zzz", Letters(), k=2, explain=True)
            assert hit.entry.text == "xylem q q q q" and hit.signals["vectors"] < -0.5


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("我在上海工作，养了两只猫", "谁养猫？"),
        ("来週、京都へ旅行に行きます", "京都旅行はいつ？"),
        ("저는 부산에서 김치를 만들어요", "부산에 누가 살아요?"),
        ("ฉันชอบกินข้าวเหนียว", "ใครชอบข้าวเหนียว"),
    ],
    ids=["Chinese", "Japanese", "Korean", "Thai"],
)
def test_words_are_found_in_scripts_that_put_no_spaces_around_them(told, asked):
    others = ("我喜欢喝茶", "犬と公園を散歩した", "오늘은 날씨가 좋아요", "พรุ่งนี้ฝนตก", "I like tea")
    index = bank((told,), *((other,) for other in others))
    best, second = search(index, asked, Letters(), k=2, explain=True)
    assert best.entry.text == told and best.signals["words"] > 1 > second.signals["words"]


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


def test_related_entries_are_those_with_the_best_rank_for_any_fact():
    rng = np.random.default_rng(4)
    words = "moon sun tea lamp rain far q x z".split()
    index = bank(*((" ".join(rng.choice(words, 4)),) for _ in range(200)))
    facts = ["moon q rain", "lamp x", "far z z tea"]
    scores = np.array(
        [
            [hit.signals["words"] + hit.signals["vectors"] for hit in sorted(hits, key=by_id)]
            for hits in (search(index, fact, Letters(), k=200, explain=True) for fact in facts)
        ]
    )
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1).min(axis=0)
    expected = sorted(np.lexsort((-scores.max(axis=0), ranks))[:8])
    assert [int(entry.id) for entry in related(index, facts, Letters(), k=8)] == expected


def by_id(hit: Hit) -> str:
    return hit.entry.id


def test_the_entries_with_every_word_of_a_text_are_found():
    index = bank(("Ann: I like the moon",), ("Ann: moon",), ("Bo: the moon I like",), ("the",))
    found = [entry.text for entry in containing(index, "like moon")]
    assert found == ["Ann: I like the moon", "Bo: the moon I like"]
    assert len(containing(index, "the")) == 4 and containing(index, "like tea") == []


def test_a_small_bank_is_shown_whole():
    index = bank(("one",), ("two",))
    assert [entry.text for entry in related(index, ["x"], Letters(), k=5)] == ["one", "two"]


PLACES = st.one_of(
    st.just(()),
    st.tuples(st.builds("D{}:{}".format, st.integers(1, 3), st.integers(1, 6))),
)


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


def test_the_head_is_that_of_the_ranking_also_in_a_larger_bank():
    rng = np.random.default_rng(1)
    words = "moon sun tea lamp rain far zz".split()
    index = bank(*((" ".join(rng.choice(words, 3)),) for _ in range(1000)))
    ranking = search(index, "moon tea z", Letters(), k=1000)
    assert [hit.score for hit in ranking] == sorted((h.score for h in ranking), reverse=True)
    for k in (1, 7, 15, 16, 100, 999):
        assert search(index, "moon tea z", Letters(), k=k) == ranking[:k]


def scores_by_hand(entries: Sequence[Entry], query: str) -> list[float]:
    """The ranking as one would write it down: what the columns have to agree with."""

    def standardised(scores: list[float]) -> list[float]:
        mean = sum(scores) / len(scores)
        spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        return [(score - mean) / spread if spread > 1e-6 else 0.0 for score in scores]

    def bm25(text: str) -> float:
        score, counts = 0.0, Counter(terms(text))
        for term in set(terms(query)):
            holders = sum(term in terms(entry.text) for entry in entries)
            rarity = math.log(1 + (len(entries) - holders + 0.5) / (holders + 0.5))
            damping = 0.9 * (0.6 + 0.4 * counts.total() / max(mean_length, 1))
            score += rarity * counts[term] * 1.9 / (counts[term] + damping)
        return score

    mean_length = sum(len(terms(entry.text)) for entry in entries) / len(entries)
    vectors = Letters().embed([query, *(entry.text for entry in entries)])
    words = standardised([bm25(entry.text) for entry in entries])
    cosines = standardised([float(vector @ vectors[0]) for vector in vectors[1:]])
    own = [word + 0.7 * cosine for word, cosine in zip(words, cosines, strict=True)]
    places, best, sessions = [], defaultdict(lambda: -math.inf), defaultdict(list)
    for number, (entry, score) in enumerate(zip(entries, own, strict=True)):
        session, turn = -1, number
        if entry.sources:
            session, turn = map(int, entry.sources[-1].removeprefix("D").split(":"))
        places.append((session, turn))
        best[session, turn] = max(best[session, turn], score)
        sessions[session].append(score)
    named = {entry.speaker for entry in entries if entry.speaker.lower() in query.lower().split()}
    totals = []
    for entry, score, (session, turn) in zip(entries, own, places, strict=True):
        for step, weight in ((-2, 0.3), (-1, 0.5), (1, 0.5), (2, 0.3)):
            score += weight * best.get((session, turn + step), 0.0)
        score += 0.5 * sum(sessions[session]) / len(sessions[session])
        totals.append(score + (len(named) == 1 and entry.speaker in named))
    return totals


@given(
    st.lists(
        st.tuples(st.text("moon zq", max_size=9), st.sampled_from(["", "A", "B"]), PLACES),
        min_size=1,
    ),
    st.text("moon zqAB", max_size=12),
)
def test_the_ranking_is_the_one_worked_out_by_hand(rows, query):
    index = bank(*((text, speaker, *places) for text, speaker, places in rows))
    by_hand = scores_by_hand(index.entries, query)
    hits = search(index, query, Letters(), k=len(rows))
    np.testing.assert_allclose(
        [hit.score for hit in hits],
        [by_hand[int(hit.entry.id)] for hit in hits],
        atol=1e-3,
    )


def test_a_large_bank_is_ranked_nearly_as_if_every_vector_were_compared():
    rng = np.random.default_rng(2)
    size, dim = 8_000, 96
    vectors = rng.standard_normal((size, dim)).astype(np.float32) * 0.97 ** np.arange(dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = [f"word{n}" for n in range(2000)]
    spoken = rng.zipf(1.3, (size, 6)) % len(words)
    index = Index.build(
        (
            Entry(
                f"{i:06}",
                " ".join(words[n] for n in row),
                Owner("u"),
                NOW,
                "",
                (f"D{i // 9}:{i % 9}",),
            )
            for i, row in enumerate(spoken)
        ),
        vectors,
    )

    class Near:
        """Embeds a query as something near the entry its number names."""

        name, dim = "near", 96

        def embed(self, texts: Sequence[str]) -> np.ndarray:
            rows = [int(text.split()[0]) for text in texts]
            noise = np.random.default_rng(rows[0]).standard_normal((len(rows), 96)) * 0.05
            return (vectors[rows] + noise).astype(np.float32)

    shares = []
    for i in range(40):
        query = f"{i * 97} word{i % 7} word{i * 13}"
        exact = {hit.entry.id for hit in search(index, query, Near(), k=10)}
        with patch.multiple(retrieve, EXACT_UP_TO=1000, LIKELY=400):
            found = {hit.entry.id for hit in search(index, query, Near(), k=10)}
            assert related(index, [query], Near(), k=5)
        shares.append(len(exact & found) / 10)
    assert np.mean(shares) >= 0.98


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

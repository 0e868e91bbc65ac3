"""The Store contract: whatever passes this is a backend."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_r1.errors import StoreError, UnknownEntry
from memory_r1.store import Counts, Store, new_id, open_store
from memory_r1.store.ram import RamStore
from memory_r1.store.schema import MIGRATIONS
from memory_r1.store.sqlite import SqliteStore
from memory_r1.types import Entry, Feedback, JournalRow, Message, Owner, Record, Turn

ANNA, BEN = Owner("anna"), Owner("ben", agent_id="helper", run_id="7")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
# Each example has owners of its own, so the store may stay.
PER_EXAMPLE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


POSTGRES = pytest.param("postgres", marks=pytest.mark.slow)  # a server has to be started


@pytest.fixture(params=["ram", "sqlite", POSTGRES])
def store(request, tmp_path):
    store = open_store(place(request, tmp_path))
    yield store
    store.close()


@pytest.fixture(params=["sqlite", POSTGRES])
def location(request, tmp_path):
    """Where a store lasts, to be opened several times."""
    return place(request, tmp_path)


def place(request, tmp_path) -> str:
    match request.param:
        case "ram":
            return "ram:"
        case "sqlite":
            return str(tmp_path / "memory.db")
        case "postgres":
            return request.getfixturevalue("new_postgres")()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memory.db"


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


EAST, NORTH = vector(1, 0), vector(0, 1)


def entry(entry_id: str, text: str = "she has a cat", owner: Owner = ANNA, **fields) -> Entry:
    return Entry(entry_id, text, owner, NOON, **fields)


def message(message_id: str, text: str = "hello", owner: Owner = ANNA, **fields) -> Message:
    return Message(message_id, owner, Turn("Anna", text, said=NOON), NOON, **fields)


def row(row_id: str, entry_id: str = "", owner: Owner = ANNA, **fields) -> JournalRow:
    return JournalRow(row_id, owner, "NOOP", NOON, entry_id, **fields)


def indexed(store: Store, owner: Owner = ANNA) -> list[str]:
    return [found.text for found in store.index(owner).entries]


# entries and versions


def test_an_entry_is_found_by_its_owner_and_by_nobody_else(store):
    store.put(entry("a"), EAST)
    assert isinstance(store, Store)
    assert store.get(ANNA, "a") == entry("a")
    assert store.entries(ANNA) == [entry("a")]
    assert indexed(store) == ["she has a cat"]
    assert store.entries(BEN) == [] and indexed(store, BEN) == []
    with pytest.raises(UnknownEntry, match="'a'"):
        store.get(BEN, "a")


def test_two_owners_may_use_one_id(store):
    store.put(entry("a", "hers"), EAST)
    store.put(entry("a", "his", BEN), NORTH)
    assert (store.get(ANNA, "a").text, store.get(BEN, "a").text) == ("hers", "his")
    assert sorted(store.owners(), key=str) == [ANNA, BEN]


def test_entries_are_ordered_by_id_whatever_the_order_of_writing(store):
    for entry_id in ("b", "c", "a"):
        store.put(entry(entry_id, f"text {entry_id}"), EAST)
    assert [found.id for found in store.entries(ANNA)] == ["a", "b", "c"]
    assert indexed(store) == ["text a", "text b", "text c"]


def test_the_next_version_replaces_the_one_before_and_keeps_it_in_the_line(store):
    store.put(entry("a", "she lives in Rome"), EAST)
    moved = replace(entry("a", "she lives in Oslo", version=2), stored=LATER)
    store.put(moved, NORTH)
    assert store.entries(ANNA, superseded=True) == [moved]
    assert indexed(store) == ["she lives in Oslo"]
    first, last = store.versions(ANNA, "a")
    assert first == entry("a", "she lives in Rome", superseded=LATER)
    assert last == moved
    assert np.array_equal(store.vector(ANNA, "a"), NORTH)
    assert np.array_equal(store.vector(ANNA, "a", 1), EAST)
    assert np.array_equal(store.index(ANNA).vectors, NORTH[None])


def test_a_superseded_entry_leaves_the_index_and_can_come_back(store):
    store.put(entry("a"), EAST)
    gone = entry("a", superseded=LATER)
    store.put(gone, EAST)
    assert store.entries(ANNA) == [] and indexed(store) == []
    assert store.get(ANNA, "a") == gone
    assert store.entries(ANNA, superseded=True) == [gone]
    store.put(entry("a"), EAST)
    assert store.entries(ANNA) == [entry("a")] and indexed(store) == ["she has a cat"]


def test_an_earlier_version_put_again_drops_the_later_ones(store):
    for version in (1, 2, 3):
        store.put(entry("a", f"version {version}", version=version), EAST)
    store.put(entry("a", "version 1"), EAST)
    assert store.versions(ANNA, "a") == [entry("a", "version 1")]
    assert indexed(store) == ["version 1"]
    with pytest.raises(UnknownEntry):
        store.vector(ANNA, "a", 2)


@pytest.mark.parametrize("version", [0, 2])
def test_a_version_that_leaves_a_gap_is_refused(store, version):
    with pytest.raises(StoreError, match="its last is 0"):
        store.put(entry("a", version=version), EAST)
    assert store.entries(ANNA, superseded=True) == []


def test_a_removed_entry_is_as_if_never_added(store):
    store.put(entry("a"), EAST)
    store.put(entry("b", "kept"), EAST)
    assert len(store.index(ANNA)) == 2
    store.remove(ANNA, "a")
    assert indexed(store) == ["kept"]
    for read in (store.get, store.versions, store.vector, store.remove):
        with pytest.raises(UnknownEntry):
            read(ANNA, "a")
    store.put(entry("a", "again"), EAST)
    assert indexed(store) == ["again", "kept"]


@pytest.mark.parametrize(
    "bad", [[], [[1.0, 0.0]], [float("nan"), 0.0], [float("inf"), 0.0]], ids=str
)
def test_only_one_row_of_finite_numbers_is_a_vector(store, bad):
    with pytest.raises(StoreError, match="vector of finite numbers"):
        store.put(entry("a"), np.array(bad))
    assert indexed(store) == []


def test_vectors_of_another_length_are_refused_until_all_are_gone(store):
    store.put(entry("a"), EAST)
    with pytest.raises(StoreError, match="embedder has changed"):
        store.put(entry("b"), vector(1, 0, 0))
    assert len(store.index(ANNA)) == 1
    store.remove(ANNA, "a")
    store.put(entry("b"), vector(1, 0, 0))
    assert store.index(ANNA).vectors.shape == (1, 3)


@pytest.mark.parametrize(
    "metadata",
    [{"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": {1}}, {"a": NOON}],
    ids=["tuple", "number as key", "nan", "set", "datetime"],
)
def test_metadata_that_json_would_change_is_refused(store, metadata):
    with pytest.raises(StoreError, match="metadata must"):
        store.put(entry("a", metadata=metadata), EAST)
    with pytest.raises(StoreError, match="metadata must"):
        store.add_message(message("m", metadata=metadata))
    assert store.entries(ANNA) == [] and store.messages(ANNA) == []


def test_metadata_changed_by_the_caller_afterwards_is_not_changed_in_the_store(store):
    tags = ["pets"]
    store.put(entry("a", metadata={"tags": tags}), EAST)
    tags.append("wrong")
    assert store.get(ANNA, "a").metadata == {"tags": ["pets"]}


def test_moments_come_back_in_utc(store):
    rome = timezone(timedelta(hours=2))
    store.put(entry("a", said=datetime(2024, 5, 1, 14, tzinfo=rome)), EAST)
    store.put(entry("b", happened=(datetime(2024, 5, 1), datetime(2024, 5, 2))), EAST)
    store.add_message(replace(message("m"), received=datetime(2024, 5, 1, 14, tzinfo=rome)))
    assert store.get(ANNA, "a").said.isoformat() == "2024-05-01T12:00:00+00:00"
    assert store.get(ANNA, "b").happened[1] == datetime(2024, 5, 2, tzinfo=UTC)
    assert store.messages(ANNA)[0].received.isoformat() == "2024-05-01T12:00:00+00:00"


@pytest.mark.parametrize(
    "text", ["", "a\0b", "half an emoji \ud83d", "\ud83d\ude00", "猫 é 😀 \r\n"]
)
def test_any_text_is_kept_exactly(store, text):
    owner = Owner(text)
    kept = entry("a", text, owner, speaker=text, quote=text, sources=(text,), metadata={"x": text})
    said = Message("m", owner, Turn(text, text, caption=text, id=text), NOON, error=text)
    store.put(kept, EAST)
    store.add_message(said)
    store.add_journal(row("j", "a", owner, after=kept, reason=text))
    assert store.get(owner, "a") == kept and store.entries(owner) == [kept]
    assert store.messages(owner) == [said]
    assert store.journal(owner) == [row("j", "a", owner, after=kept, reason=text)]
    assert store.owners() == [owner] and len(store.index(owner)) == 1


# transactions


def test_a_failed_transaction_leaves_nothing_behind(store):
    store.put(entry("a"), EAST)
    store.add_message(message("m"))
    with pytest.raises(RuntimeError), store.transaction():
        store.put(entry("a", "changed", version=2), EAST)
        store.put(entry("b"), EAST)
        store.add_message(message("n"))
        store.set_message(message("m", state="done"))
        store.add_journal(row("j"))
        store.set_meta("embedder", "half")
        assert len(store.index(ANNA)) == 2
        store.forget(ANNA)
        raise RuntimeError
    assert store.entries(ANNA, superseded=True) == [entry("a")]
    assert indexed(store) == ["she has a cat"]
    assert store.messages(ANNA) == [message("m")]
    assert store.journal(ANNA) == [] and store.get_meta("embedder") is None


def test_a_failed_inner_transaction_takes_back_only_its_own_writes(store):
    with store.transaction():
        store.put(entry("a"), EAST)
        with pytest.raises(RuntimeError), store.transaction():
            store.put(entry("b"), EAST)
            assert len(store.index(ANNA)) == 2
            raise RuntimeError
        with store.transaction():
            store.put(entry("c"), EAST)
        assert len(store.index(ANNA)) == 2
    assert [found.id for found in store.entries(ANNA)] == ["a", "c"]


def test_a_finished_inner_transaction_falls_with_the_outer_one(store):
    with pytest.raises(RuntimeError), store.transaction():
        with store.transaction():
            store.put(entry("a"), EAST)
        raise RuntimeError
    assert store.entries(ANNA) == [] and indexed(store) == []


def test_another_thread_sees_all_of_a_transaction_or_nothing(store):
    inside, seen = threading.Event(), []

    def read() -> None:
        inside.wait()
        seen.append(len(store.entries(ANNA)))
        seen.append(len(store.index(ANNA)))

    reader = threading.Thread(target=read)
    reader.start()
    with store.transaction():
        store.put(entry("a"), EAST)
        inside.set()
        reader.join(0.05)
        store.put(entry("b"), EAST)
    reader.join()
    assert set(seen) <= {0, 2}  # a store lets readers wait, or shows them what was before
    assert indexed(store) == ["she has a cat"] * 2


def test_threads_share_a_store(store):
    def write(n: int) -> None:
        with store.transaction():
            store.put(entry(new_id(), f"memory {n}"), EAST)
            store.add_journal(row(new_id()))
        store.index(ANNA).bm25(["memory"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert sorted(indexed(store)) == sorted(f"memory {n}" for n in range(80))
    assert len(store.journal(ANNA)) == 80


def test_an_index_in_hand_is_not_changed_by_later_writes(store):
    store.put(entry("a"), EAST)
    in_hand = store.index(ANNA)
    store.put(entry("b"), EAST)
    with store.transaction():
        store.put(entry("a", "changed", version=2), EAST)
    assert in_hand.entries == [entry("a")]
    assert len(store.index(ANNA)) == 2


# messages, journal, meta, forget, fork


def test_messages_keep_their_order_and_tell_their_state(store):
    for message_id in ("z", "m", "a"):
        store.add_message(message(message_id))
    assert store.waiting() == [ANNA]
    store.set_message(message("m", state="deferred", error="no model", since=LATER))
    store.set_message(message("z", state="done"))
    assert [kept.id for kept in store.messages(ANNA)] == ["z", "m", "a"]
    assert store.messages(ANNA, "pending") == [message("a")]
    deferred = message("m", state="deferred", error="no model", since=LATER)
    assert store.messages(ANNA, "deferred") == [deferred] and store.message(ANNA, "m") == deferred
    assert [kept.id for kept in store.messages(ANNA, "done")] == ["z"]
    assert store.messages(BEN) == []
    for ask in (
        lambda: store.message(BEN, "m"),
        lambda: store.set_message(message("m", owner=BEN)),
    ):
        with pytest.raises(StoreError, match="no message 'm'"):
            ask()
    for name in "ma":
        store.set_message(message(name, state="done"))
    assert store.waiting() == []


def test_a_message_is_claimed_by_one(store):
    received = message("m")
    store.add_message(received)
    mine = replace(received, state="working", since=NOON)
    theirs = replace(received, state="working", since=LATER)
    assert store.set_message(mine, was=received)
    assert not store.set_message(theirs, was=received)
    assert store.message(ANNA, "m") == mine
    later = replace(mine, state="done", usage={"calls": 2, "embeddings": 1})
    assert not store.set_message(later, was=theirs)
    assert store.set_message(later, was=mine)
    assert store.message(ANNA, "m") == later


def test_what_was_said_of_answers_is_kept(store):
    said = [
        Feedback(name, ANNA, NOON, "How many dogs?", "1", False, correct="2", used=("a", "b"))
        for name in "yx"
    ]
    for one in said:
        store.add_feedback(one)
    assert store.feedback(ANNA) == said and store.feedback(BEN) == []
    with pytest.raises(StoreError):
        store.add_feedback(said[0])
    assert store.fork(ANNA).feedback(ANNA) == said
    assert store.forget(ANNA)["feedback"] == 2
    assert store.feedback(ANNA) == []


def test_owners_are_found_by_their_user(store):
    theirs = [Owner("ben"), Owner("ben", "helper"), Owner("ben", "helper", "7")]
    for owner in [*theirs, ANNA]:
        store.put(entry("a", owner=owner), EAST)
    assert sorted(store.owners("ben"), key=str) == sorted(theirs, key=str)
    assert store.owners("anna") == [ANNA] and store.owners("nobody") == []
    assert len(store.owners()) == 4


def test_who_has_an_entry_is_found_by_its_id(store):
    store.put(entry("a"), EAST)
    store.put(entry("b", owner=BEN, superseded=LATER), EAST)
    store.put(entry("c"), EAST)
    store.remove(ANNA, "c")
    assert (store.holding("a"), store.holding("b")) == ([ANNA], [BEN])
    assert store.holding("c") == store.holding("never") == []
    store.put(entry("a", owner=BEN), EAST)
    assert sorted(store.holding("a"), key=str) == [ANNA, BEN]


def test_a_sound_store_has_no_problems(store):
    store.put(entry("a"), EAST)
    store.put(entry("a", "more", version=2), NORTH)
    store.put(entry("b", superseded=LATER, expires=LATER), NORTH)
    store.remove(ANNA, "b")
    store.add_message(message("m"))
    store.add_journal(row("j", "a"))
    assert store.problems() == []


def test_the_journal_keeps_its_order_and_is_read_by_entry(store):
    for number, entry_id in enumerate(("a", "b", "a")):
        store.add_journal(row(f"j{9 - number}", entry_id))
    store.mark(ANNA, "j9", "undone")
    assert [kept.id for kept in store.journal(ANNA)] == ["j9", "j8", "j7"]
    assert [kept.id for kept in store.journal(ANNA, "a")] == ["j9", "j7"]
    assert store.journal_row(ANNA, "j9") == row("j9", "a", state="undone")
    assert store.journal(ANNA, "") == [] and store.journal(BEN) == []
    for ask in (lambda: store.journal_row(BEN, "j9"), lambda: store.mark(BEN, "j9", "done")):
        with pytest.raises(StoreError, match="no journal row"):
            ask()


def test_an_id_is_given_once(store):
    store.add_message(message("m", "first"))
    store.add_journal(row("j", "first"))
    with pytest.raises(StoreError):
        store.add_message(message("m", "second"))
    with pytest.raises(StoreError):
        store.add_journal(row("j", "second"))
    assert store.messages(ANNA)[0].turn.text == "first"
    assert store.journal(ANNA)[0].entry_id == "first"


def test_meta_is_set_and_set_again(store):
    assert store.get_meta("embedder") is None
    store.set_meta("embedder", "one")
    store.set_meta("embedder", "two")
    assert store.get_meta("embedder") == "two"


def test_a_page_of_the_journal_lies_between_two_ids(store):
    for name in "adcb":
        store.add_journal(row(name, "e"))
    store.add_journal(row("c", "e", BEN))

    def page(**bounds):
        return "".join(found.id for found in store.journal_page(ANNA, **bounds))

    assert page() == "dcba" and page(limit=2) == "dc" and page(limit=0) == ""
    assert page(before="c") == "ba" and page(after="a", before="d", limit=1) == "c"


def test_a_record_is_kept_by_its_kind_and_key(store):
    first = Record("reply", "k", NOON, {"status": 201, "text": "\0 \ud83d"})
    assert store.record("reply", "k") is None
    assert store.put_record(first, new=True)
    assert not store.put_record(replace(first, body={}), new=True)
    assert store.record("reply", "k") == first and store.record("key", "k") is None
    assert store.put_record(replace(first, body={"status": 200}))
    assert store.record("reply", "k").body == {"status": 200}
    store.put_record(replace(first, key="a"))
    assert [record.key for record in store.records("reply")] == ["a", "k"]
    assert store.owners() == [] and store.problems() == []
    with pytest.raises(StoreError, match="the body of a record must be JSON"):
        store.put_record(replace(first, body={"x": float("nan")}))


def test_records_are_dropped_by_key_or_age(store):
    for hour, key in enumerate("abc"):
        store.put_record(Record("reply", key, NOON + timedelta(hours=hour), {}))
    store.put_record(Record("other", "a", NOON, {}))
    assert store.drop_records("reply", before=NOON + timedelta(hours=1)) == 1
    assert store.drop_records("reply", key="b") == 1
    assert store.drop_records("reply", key="b") == 0
    assert [record.key for record in store.records("reply")] == ["c"]
    assert store.drop_records("reply") == 1 and len(store.records("other")) == 1


def test_a_failed_transaction_takes_its_records_back(store):
    store.put_record(Record("reply", "old", NOON, {}))
    with pytest.raises(RuntimeError), store.transaction():
        store.put_record(Record("reply", "new", NOON, {}))
        store.drop_records("reply", key="old")
        raise RuntimeError
    assert [record.key for record in store.records("reply")] == ["old"]


def test_forget_erases_the_records_of_an_owner(store):
    for owner in (ANNA, BEN, None):
        store.put_record(Record("reply", str(owner), NOON, {"text": "a secret"}, owner=owner))
    assert store.forget(ANNA)["records"] == 1
    assert [record.owner for record in store.records("reply")] == [None, BEN]


def test_forget_erases_one_owner_and_counts_what_is_gone(store):
    for owner in (ANNA, BEN):
        store.put(entry("a", owner=owner), EAST)
        store.put(entry("a", "changed", owner, version=2), EAST)
        store.put(entry("b", "gone", owner, superseded=LATER), EAST)
        store.put(entry("c", owner=owner), EAST)
        store.remove(owner, "c")
        store.add_message(message("m", owner=owner))
        store.add_journal(row("j", "a", owner))
    assert len(store.index(ANNA)) == 1
    counts = {"entries": 2, "versions": 3, "vectors": 3, "journal": 1, "messages": 1, "feedback": 0}
    assert store.forget(ANNA) == {**counts, "records": 0}
    assert store.entries(ANNA, superseded=True) == [] and indexed(store) == []
    assert store.messages(ANNA) == [] and store.journal(ANNA) == []
    assert store.owners() == [BEN] and indexed(store, BEN) == ["changed"]
    assert set(store.forget(ANNA).values()) == {0}
    store.put(entry("a", "a new start"), vector(1, 0, 0))
    assert indexed(store) == ["a new start"]


def test_a_fork_has_everything_and_never_writes_back(store):
    store.put(entry("a"), EAST)
    store.put(entry("a", "changed", version=2), NORTH)
    store.put(entry("b", superseded=LATER), EAST)
    store.put(entry("a", "his", BEN), EAST)
    store.add_message(message("m"))
    store.add_journal(row("j", "a"))
    store.set_meta("embedder", "one")
    twin = store.fork(ANNA)

    def everything(of: Store) -> list:
        return [
            *(of.versions(ANNA, "a"), of.entries(ANNA, superseded=True), of.messages(ANNA)),
            *(of.journal(ANNA), of.get_meta("embedder"), indexed(of)),
            *(of.vector(ANNA, "a", version).tolist() for version in (1, 2)),
        ]

    before = everything(store)
    assert everything(twin) == before
    assert twin.owners() == [ANNA]
    twin.put(entry("a", "changed in the fork", version=3), EAST)
    twin.add_message(message("n"))
    twin.mark(ANNA, "j", "undone")
    twin.set_meta("embedder", "two")
    assert everything(store) == before
    store.put(entry("c", "changed in the parent"), EAST)
    assert indexed(twin) == ["changed in the fork"]


def test_a_ram_store_forks_with_all_its_owners():
    store = RamStore()
    store.put(entry("a"), EAST)
    store.put(entry("a", "his", BEN), EAST)
    twin = store.fork()
    store.put(entry("b"), EAST)
    twin.put(entry("c", owner=BEN), EAST)
    assert [len(twin.entries(owner)) for owner in (ANNA, BEN)] == [1, 2]
    assert [len(store.entries(owner)) for owner in (ANNA, BEN)] == [2, 1]


# what goes in comes out

moments = st.datetimes(timezones=st.just(UTC))
texts = st.text(st.characters(exclude_categories=()), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
metadatas = st.dictionaries(texts, json_values, max_size=2)
owners = st.builds(Owner, texts, texts, texts)


def entries_of(owner: Owner) -> st.SearchStrategy[Entry]:
    return st.builds(
        Entry,
        id=st.uuids().map(str),
        text=texts,
        owner=st.just(owner),
        stored=moments,
        speaker=texts,
        sources=st.lists(texts, max_size=3).map(tuple),
        quote=texts,
        said=st.none() | moments,
        happened=st.none() | st.tuples(moments, moments),
        superseded=st.none() | moments,
        expires=st.none() | moments,
        metadata=metadatas,
    )


def rows_of(owner: Owner) -> st.SearchStrategy[JournalRow]:
    some = st.none() | entries_of(owner)
    ids = st.uuids().map(str)
    return st.builds(
        JournalRow, id=ids, owner=st.just(owner), at=moments, entry_id=ids, before=some, after=some,
        turn_id=texts, reason=texts, model=texts, prompt_hash=texts,
        state=st.sampled_from(["done", "undone", "proposed", "approved", "rejected"]),
    )  # fmt: skip


def feedback_of(owner: Owner) -> st.SearchStrategy[Feedback]:
    return st.builds(
        Feedback, id=st.uuids().map(str), owner=st.just(owner), at=moments, question=texts,
        answer=texts, right=st.booleans(), correct=texts, used=st.lists(texts).map(tuple),
    )  # fmt: skip


def messages_of(owner: Owner) -> st.SearchStrategy[Message]:
    turns = st.builds(
        Turn, speaker=texts, text=texts, said=st.none() | moments, id=texts, caption=texts,
        role=texts,
    )  # fmt: skip
    return st.builds(
        Message, id=st.uuids().map(str), owner=st.just(owner), turn=turns, received=moments,
        error=texts, metadata=metadatas, expires=st.none() | moments, since=st.none() | moments,
        state=st.sampled_from(["pending", "working", "done", "deferred"]),
        verbatim=st.booleans(),
        usage=st.dictionaries(st.sampled_from(["calls", "embeddings"]), st.integers(0, 9)),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", POSTGRES])
def lasting(request, tmp_path_factory):
    store = open_store(place(request, tmp_path_factory.mktemp("lasting")))
    yield store
    store.close()


@given(data=st.data(), owner=owners)
@settings(max_examples=40, suppress_health_check=PER_EXAMPLE)
def test_what_a_store_is_given_comes_back_exactly(lasting, data, owner):
    kept = data.draw(entries_of(owner))
    numbers = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3))
    said, done = data.draw(messages_of(owner)), data.draw(rows_of(owner))
    judged = data.draw(feedback_of(owner))
    lasting.put(kept, vector(*numbers))
    lasting.add_message(said)
    lasting.add_journal(done)
    lasting.add_feedback(judged)
    assert lasting.get(owner, kept.id) == kept
    assert lasting.messages(owner) == [said] and lasting.feedback(owner) == [judged]
    assert lasting.journal_row(owner, done.id) == done
    assert lasting.vector(owner, kept.id).tobytes() == vector(*numbers).tobytes()
    assert lasting.owners() == [owner]
    lasting.forget(owner)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "end", "remove"]))),
)
@settings(max_examples=40, suppress_health_check=PER_EXAMPLE)
def test_the_index_always_agrees_with_the_entries_and_the_stores_with_each_other(location, steps):
    owner = Owner(new_id())
    ram, one, other = RamStore(), open_store(location), open_store(location)
    known: dict[str, Entry] = {}
    for number, (entry_id, step) in enumerate(steps):
        last = known.get(entry_id)
        if step == "put" or last is None:
            version = last.version + 1 if last else 1
            known[entry_id] = entry(entry_id, f"text {number}", owner, version=version)
        elif step == "end":
            known[entry_id] = replace(last, superseded=LATER)
        else:
            del known[entry_id]
        for store in (ram, one):
            if entry_id in known:
                store.put(known[entry_id], EAST * number)
            else:
                store.remove(owner, entry_id)
        current = [known[i] for i in sorted(known) if known[i].superseded is None]
        for store in (ram, one, other):
            assert store.entries(owner) == current
            assert store.index(owner).entries == current
        assert other.index(owner).vectors.tolist() == ram.index(owner).vectors.tolist()
    assert one.problems() == []
    one.close()
    other.close()


# several handles, processes, and files that aren't stores


def test_two_handles_see_each_others_writes_through_the_index(location):
    one, two = open_store(location), open_store(location)
    one.put(entry("a", "cat"), EAST)
    assert indexed(two) == ["cat"]
    two.put(entry("b", "dog"), NORTH)
    two.put(entry("a", "cats", version=2), EAST)
    assert indexed(one) == ["cats", "dog"]
    one.remove(ANNA, "b")
    assert indexed(two) == ["cats"]
    two.forget(ANNA)
    two.put(entry("c", "fresh start"), EAST)
    assert indexed(one) == ["fresh start"]
    one.remove(ANNA, "c")
    one.put(entry("c", "re-embedded"), vector(1, 0, 0))
    assert two.index(ANNA).vectors.shape == (1, 3)
    one.close()
    two.close()


WORDS = ["a plain sentence", "a NUL \0 and a \x1f", "half an emoji \ud83d", 'a "quote" \\', "ünï"]
STEPS = ["put", "end", "remove", "said", "asked", "did", "judged", "failed", "forget"]
OPS = ["ADD", "UPDATE", "DELETE", "NOOP", "UNDO"]


def step(store, owner, name, number, data):
    """One thing that can happen to a store; `data` are four numbers."""
    text, entry_id = WORDS[data[0] % 5], "abc"[data[1] % 3]
    known = {e.id: e for e in store.entries(owner, superseded=True)}
    last = known.get(entry_id)
    misleading = {"t": text, "op": "no", "usage": {"calls": 9}, "deep": [{"op": "no"}]}
    match name:
        case "put":
            version = last.version + 1 if last else 1
            store.put(entry(entry_id, text, owner, version=version, metadata=misleading), EAST)
        case "end" if last:
            store.put(replace(last, superseded=LATER), EAST)
        case "remove" if last:
            store.remove(owner, entry_id)
        case "said":
            usage = {"calls": data[2], "embeddings": data[3]} if data[1] % 3 else {}
            state = ["pending", "working", "done", "deferred"][data[1] % 4]
            kept = message(f"{number}", text, owner, usage=usage, state=state)
            store.add_message(replace(kept, metadata=misleading))
        case "asked":
            for one in store.messages(owner)[:1]:
                store.set_message(replace(one, state="done", usage={"calls": data[2]}))
        case "did":
            states = ["done", "undone", "proposed", "rejected"]
            row_id = f'{number}","op":"no' if data[2] % 2 else f"{number}"
            row = JournalRow(row_id, owner, OPS[data[0] % 5], NOON, entry_id)
            row = replace(row, state=states[data[1] % 4], reason=text, after=last)
            store.add_journal(row)
        case "judged":
            store.add_feedback(Feedback(f"{number}", owner, NOON, text, "a", True))
        case "failed":
            with pytest.raises(RuntimeError), store.transaction():
                store.add_message(message("gone", text, owner, usage={"calls": 1}))
                raise RuntimeError
        case "forget":
            store.forget(owner)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(STEPS),
            st.sampled_from(["", "helper"]),
            st.tuples(*[st.integers(0, 9)] * 4),
        ),
        max_size=30,
    )
)
@settings(max_examples=40, suppress_health_check=PER_EXAMPLE)
def test_every_store_counts_what_the_one_in_memory_counts(lasting, history):
    user, ram = f"half \ud83d {new_id()}", RamStore()
    for number, (name, agent, data) in enumerate(history):
        for store in (ram, lasting):
            step(store, Owner(user, agent), name, number, data)
    assert lasting.counts(user) == lasting.counts() == ram.counts() == ram.counts(user)
    assert lasting.counts("somebody else") == Counts()
    with lasting.transaction():
        lasting.add_feedback(Feedback("one more", Owner(user), NOON, "q", "a", True))
        assert lasting.counts(user).feedback == ram.counts().feedback + 1
    for owner in lasting.owners():
        lasting.forget(owner)


def test_what_a_store_has_is_counted(store):
    for version, text in enumerate(("Rome", "Oslo"), 1):
        store.put(entry("a", text, version=version), EAST)
    store.put(entry("b", superseded=LATER), EAST)
    store.put(entry("c"), EAST)
    store.remove(ANNA, "c")
    store.add_message(message("m", state="done", usage={"calls": 2, "prompt_tokens": 700}))
    store.add_message(message("n", "again", state="deferred", usage={"calls": 1}))
    store.add_journal(JournalRow("1", ANNA, "ADD", NOON, "a"))
    store.add_journal(JournalRow("2", ANNA, "DELETE", NOON, "a", state="proposed"))
    store.add_journal(JournalRow("3", BEN, "ADD", NOON, "x"))
    store.add_feedback(Feedback("f", ANNA, NOON, "Where?", "Oslo", True))
    assert store.counts("anna") == Counts(
        owners=1,
        entries=1,
        superseded=1,
        operations={"ADD": 1, "DELETE": 1},
        proposals=1,
        messages={"done": 1, "deferred": 1},
        feedback=1,
        usage={"calls": 3, "prompt_tokens": 700},
    )
    assert store.counts("nobody") == Counts()
    everyone = store.counts()
    assert (everyone.owners, everyone.operations) == (2, {"ADD": 2, "DELETE": 1})


def test_more_owners_than_are_counted_at_once_are_all_counted(store):
    with store.transaction():
        for number in range(250):
            store.add_feedback(Feedback("f", Owner(f"user {number}"), NOON, "q", "a", True))
    assert (store.counts().owners, store.counts().feedback) == (250, 250)


def test_everything_is_kept_when_closed_and_opened_again(location):
    store = open_store(location)
    store.put(entry("a"), EAST)
    store.close()
    with pytest.raises(StoreError, match="open it again"):
        store.get(ANNA, "a")
    again = open_store(location)
    assert again.get(ANNA, "a") == entry("a") and indexed(again) == ["she has a cat"]
    again.close()


def test_an_index_that_is_read_again_scores_as_the_one_that_was_filled(location):
    store = open_store(location)
    texts = ("her cat sleeps", "his dog, his dog", "half a cat \ud83d")
    for number, (text, speaker) in enumerate(zip(texts, ("Anna", "Bo\0", "\ud83d"), strict=True)):
        store.put(entry(str(number), text, speaker=speaker, sources=(f"D1:{number}",)), EAST)
    filled = store.index(ANNA)
    store.put(entry("1", "his cat", version=2), NORTH)
    store.put(entry("1", texts[1], speaker="Bo\0", sources=("D1:1",)), EAST)
    again = open_store(location)
    for index in (store.index(ANNA), again.index(ANNA)):
        assert index.entries == filled.entries and index.speakers == filled.speakers
        assert index.bm25(["cat", "dog"]).tolist() == filled.bm25(["cat", "dog"]).tolist()
        assert (index.sessions.tolist(), index.turns.tolist()) == ([1, 1, 1], [0, 1, 2])
    store.close()
    again.close()


def run_python(code: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_process_leaves_nothing_of_its_transaction(location):
    code = """
import os, signal, sys
import numpy as np
from datetime import UTC, datetime
from memory_r1.store import open_store
from memory_r1.types import Entry, Owner
store, owner, now = open_store(sys.argv[1]), Owner("anna"), datetime(2024, 5, 1, tzinfo=UTC)
store.put(Entry("whole", "committed", owner, now), np.ones(2))
with store.transaction():
    store.put(Entry("half", "never committed", owner, now), np.ones(2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, location).wait() == -9
    store = open_store(location)
    assert indexed(store) == ["committed"]
    store.put(entry("next"), EAST)  # and its lock is gone
    store.close()


@pytest.mark.slow
def test_eight_processes_that_add_a_hundred_memories_each_keep_eight_hundred(location):
    code = """
import sys
import numpy as np
from datetime import UTC, datetime
from memory_r1.store import new_id, open_store
from memory_r1.types import Entry, Owner
store, owner = open_store(sys.argv[1]), Owner("anna")
for n in range(100):
    store.put(Entry(new_id(), f"{sys.argv[2]} {n}", owner, datetime.now(UTC)), np.ones(2))
"""
    processes = [run_python(code, location, name) for name in "abcdefgh"]
    assert [process.wait() for process in processes] == [0] * 8
    store = open_store(location)
    expected = sorted(f"{name} {n}" for name in "abcdefgh" for n in range(100))
    assert sorted(indexed(store)) == expected
    assert len(store.entries(ANNA)) == 800 and store.problems() == []
    store.close()


def test_a_writer_waits_for_another_and_then_says_who_is_in_the_way(location):
    one = open_store(location)
    two = type(one)(location, timeout=0.05)
    with one.transaction():
        one.put(entry("a"), EAST)
        with pytest.raises(StoreError, match="another process has kept it locked"):
            two.put(entry("b"), EAST)
        assert two.entries(ANNA) == []  # readers never wait
    two.put(entry("b"), EAST)
    assert len(one.entries(ANNA)) == 2
    one.close()
    two.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork a process")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_is_told_to_open_the_store_again(location):
    store = open_store(location)
    child = os.fork()
    if child == 0:
        try:
            store.entries(ANNA)
        except StoreError as err:
            os._exit(0 if "open the store again" in str(err) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.close()


def test_forgotten_text_is_nowhere_in_the_files(path):
    store = SqliteStore(path)
    other = SqliteStore(path)
    store.put(entry("a", "the secret is 4711"), EAST)
    store.put(entry("b", "kept", BEN), EAST)
    store.add_message(message("m", "the secret is 4711"))
    files = [file for file in path.parent.iterdir() if b"secret" in file.read_bytes()]
    assert files  # so that the check below can fail
    assert other.forget(ANNA)["messages"] == 1
    for file in path.parent.iterdir():
        assert b"secret" not in file.read_bytes(), file
        assert b"anna" not in file.read_bytes(), file
    store.close()
    other.close()


def test_forget_says_when_a_reader_keeps_the_erased_text_in_the_log(path):
    store = SqliteStore(path, timeout=0.05)
    store.put(entry("a", "the secret is 4711"), EAST)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM versions").fetchone()
    with pytest.raises(StoreError, match="are erased, but .* call forget again"):
        store.forget(ANNA)
    assert store.entries(ANNA, superseded=True) == []
    store.put(entry("b", owner=BEN), EAST)  # later writes are not held up by it
    reader.close()
    store.forget(ANNA)
    assert not any(b"secret" in file.read_bytes() for file in path.parent.iterdir())
    store.close()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="no folder .*nowhere; create it"):
        open_store(tmp_path / "nowhere" / "memory.db")


def test_a_folder_is_not_a_store(tmp_path):
    with pytest.raises(StoreError, match="it is a folder"):
        open_store(tmp_path)


@pytest.mark.parametrize("content", [b"%PDF-1.7 " + bytes(5000), b"just some notes\n" * 300])
def test_another_kind_of_file_is_refused_and_not_touched(path, content):
    path.write_bytes(content)
    with pytest.raises(StoreError, match="another kind of file"):
        open_store(path)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_not_touched(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE invoices (id)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        open_store(path)
    assert path.read_bytes() == content


def test_a_file_of_a_newer_version_is_refused(path):
    open_store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match=f"schema 99, .* up to {len(MIGRATIONS)}; upgrade"):
        open_store(path)


def test_a_damaged_file_is_reported_when_read(path):
    store = SqliteStore(path)
    for number in range(200):
        store.put(entry(f"{number:03}", "text " * 50), EAST)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        open_store(path).entries(ANNA)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no user ids")
def test_a_read_only_file_says_so():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.db"
        open_store(path).close()
        os.chmod(folder, 0o755)
        os.chmod(path, 0o444)
        user = os.geteuid()
        if user == 0:  # root may write anything
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match="must be writable for this user"):
                open_store(path)
        finally:
            os.seteuid(user)


def test_a_schema_grows_by_numbered_migrations(path, monkeypatch):
    open_store(path).close()

    def second(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE messages ADD COLUMN colour TEXT")

    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE messages ADD COLUMN shape TEXT")
        raise RuntimeError("half way")

    monkeypatch.setattr("memory_r1.store.schema.MIGRATIONS", (*MIGRATIONS, second, broken))
    with pytest.raises(RuntimeError):
        open_store(path)
    monkeypatch.setattr("memory_r1.store.schema.MIGRATIONS", (*MIGRATIONS, second))
    open_store(path).close()
    connection = sqlite3.connect(path)
    columns = [column[1] for column in connection.execute("PRAGMA table_info(messages)")]
    assert columns[-1] == "colour" and "shape" not in columns
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    connection.close()


def test_a_store_is_opened_by_path_or_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("ram:"), RamStore)
    for location in ("a.db", tmp_path / "b.db", "sqlite:///c.db", f"sqlite:///{tmp_path}/d.db"):
        open_store(location).close()
    assert sorted(file.name for file in tmp_path.glob("*.db")) == ["a.db", "b.db", "c.db", "d.db"]


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://", "sqlite:///", "mysql://x/y"])
def test_what_is_not_a_store_is_told_the_forms_there_are(url):
    with pytest.raises(StoreError, match="'sqlite:///memory.db', 'postgresql://.*' or 'ram:'"):
        open_store(url)


# ids


def test_ids_rise_and_are_never_given_twice_by_threads():
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: [new_id() for _ in range(2000)], range(4)))
    assert all(batch == sorted(batch) for batch in batches)
    assert len({one for batch in batches for one in batch}) == 8000


def test_ids_keep_rising_when_the_clock_steps_back(monkeypatch):
    monkeypatch.setattr("memory_r1.store.ids.time.time_ns", lambda: 4_000_000_000_000_000_000)
    first = new_id()
    monkeypatch.setattr("memory_r1.store.ids.time.time_ns", lambda: 3_000_000_000_000_000_000)
    assert new_id() > first
    monkeypatch.setattr("memory_r1.store.ids._last_millisecond", 0)


def test_a_new_file_is_its_owners_alone(tmp_path):
    store = open_store(tmp_path / "m.db")
    store.put(entry("a"), EAST)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    store.close()
    (tmp_path / "m.db").chmod(0o660)  # what its owner allows stays allowed
    open_store(tmp_path / "m.db").close()
    assert (tmp_path / "m.db").stat().st_mode & 0o777 == 0o660

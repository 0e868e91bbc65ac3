"""Operations change a bank, all or none, and every step can be taken back."""

import time
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank, reindex
from memory_r1.errors import ModelUnavailable, StoreError, UnknownEntry
from memory_r1.store.ram import RamStore
from memory_r1.store.sqlite import SqliteStore
from memory_r1.types import Add, Delete, Noop, Owner, Turn, Update

ANNA = Owner("anna")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
FIRST = Turn("Anna", "I have a cat", said=NOON - timedelta(days=2), id="D1:1")
SECOND = Turn("Ben", "And now a dog", said=NOON - timedelta(days=1), id="D2:5")


class LetterEmbedder:
    """Counts letters: texts with the same letters get the same vector."""

    def __init__(self, name: str = "letters", dim: int = 4) -> None:
        self.name, self.dim = name, dim

    def embed(self, texts):
        counts = np.ones((len(texts), self.dim), np.float32)
        for at, text in enumerate(texts):
            for letter in text:
                counts[at, ord(letter) % self.dim] += 1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Clock:
    """Moves on by a minute each time it is read."""

    def __init__(self) -> None:
        self.moment = NOON

    def __call__(self) -> datetime:
        self.moment += timedelta(minutes=1)
        return self.moment


@pytest.fixture(params=["ram", "sqlite"])
def bank(request, tmp_path):
    store = RamStore() if request.param == "ram" else SqliteStore(tmp_path / "memory.db")
    yield Bank(store, LetterEmbedder(), ANNA, now=Clock())
    store.close()


def added(bank: Bank, text: str = "Anna has a cat", turn: Turn | None = FIRST) -> str:
    (row,) = bank.apply([Add(text)], turn=turn)
    return row.entry_id


def texts(bank: Bank) -> list[str]:
    return [entry.text for entry in bank.entries()]


def state(bank: Bank) -> list:
    """All that an undo has to restore, exactly."""
    every = bank.entries(superseded=True)
    return [
        *(every, bank.entries(), bank.index.entries, bank.index.vectors.tolist()),
        *([bank.history(entry.id) for entry in every]),
        *([bank.store.vector(ANNA, entry.id).tolist() for entry in every]),
    ]


# apply


def test_add_writes_an_entry_with_its_source_and_its_clocks(bank):
    (row,) = bank.apply(
        [Add("Anna has a cat")], turn=FIRST, quote="a cat", metadata={"tag": "pets"}
    )
    (entry,) = bank.entries()
    assert bank.get(row.entry_id) == entry == row.after
    assert (entry.text, entry.speaker, entry.sources) == ("Anna has a cat", "Anna", ("D1:1",))
    assert (entry.quote, entry.metadata, entry.version) == ("a cat", {"tag": "pets"}, 1)
    assert entry.said == FIRST.said and entry.stored == NOON + timedelta(minutes=1)
    assert bank.index.entries == [entry]


def test_update_keeps_the_id_and_rests_on_both_turns(bank):
    entry_id = added(bank)
    bank.apply([Update(entry_id, "Anna has a cat and a dog")], turn=SECOND, metadata={"n": 2})
    (entry,) = bank.entries()
    assert (entry.id, entry.version, entry.text) == (entry_id, 2, "Anna has a cat and a dog")
    assert entry.sources == ("D1:1", "D2:5")
    assert (entry.speaker, entry.said, entry.metadata) == ("Anna", SECOND.said, {"n": 2})
    first, second = bank.history(entry_id)
    assert (first.text, first.superseded, second) == ("Anna has a cat", entry.stored, entry)


def test_a_turn_is_a_source_once_and_an_older_one_does_not_turn_the_clock_back(bank):
    entry_id = added(bank, turn=SECOND)
    bank.apply([Update(entry_id, "once")], turn=SECOND)
    bank.apply([Update(entry_id, "and again")], turn=FIRST)
    assert bank.get(entry_id).sources == ("D2:5", "D1:1")
    assert bank.get(entry_id).said == SECOND.said


def test_a_message_without_a_turn_id_is_the_source_itself(bank):
    turn = Turn("Anna", "I have a cat")
    (row,) = bank.apply([Add("Anna has a cat")], turn=turn, message_id="m1")
    assert (row.after.sources, row.turn_id) == (("m1",), "m1")
    (row,) = bank.apply([Add("Anna likes tea")])
    assert (row.after.sources, row.turn_id, row.after.speaker) == ((), "", "")


def test_delete_takes_an_entry_out_of_search_and_keeps_its_history(bank):
    entry_id = added(bank)
    (row,) = bank.apply([Delete(entry_id)], turn=SECOND)
    assert bank.entries() == [] and len(bank.index) == 0
    assert bank.get(entry_id).superseded == row.at
    assert bank.entries(superseded=True) == bank.history(entry_id) == [row.after]


def test_every_operation_is_one_row_of_the_journal(bank):
    cat, dog = added(bank, "cat"), added(bank, "dog")
    rows = bank.apply(
        [Add("bird"), Update(cat, "cats"), Delete(dog), Noop()],
        turn=SECOND,
        message_id="m2",
        reason="she said so",
        model="tiny",
        prompt_hash="abc",
    )
    assert [row.op for row in rows] == ["ADD", "UPDATE", "DELETE", "NOOP"]
    assert bank.journal()[2:] == rows
    assert [row.entry_id for row in rows[1:]] == [cat, dog, ""]
    assert [row.before and row.before.text for row in rows] == [None, "cat", "dog", None]
    assert [row.after and row.after.text for row in rows] == ["bird", "cats", "dog", None]
    for row in rows:
        assert (row.turn_id, row.reason) == ("m2", "she said so")
        assert (row.model, row.prompt_hash, row.undone) == ("tiny", "abc", False)
    assert [row.op for row in bank.journal(cat)] == ["ADD", "UPDATE"]


@pytest.mark.parametrize("op", [Update("nobody", "x"), Delete("nobody")])
def test_an_unknown_id_in_the_middle_leaves_nothing_behind(bank, op):
    entry_id = added(bank)
    before = state(bank), bank.journal()
    with pytest.raises(UnknownEntry, match="nobody"):
        bank.apply([Add("new"), Update(entry_id, "changed"), op, Add("newer")], turn=SECOND)
    assert (state(bank), bank.journal()) == before


def test_a_deleted_entry_can_be_neither_updated_nor_deleted(bank):
    entry_id = added(bank)
    bank.apply([Delete(entry_id)], turn=SECOND)
    for op in (Update(entry_id, "x"), Delete(entry_id)):
        with pytest.raises(UnknownEntry, match="was deleted at .*; undo that"):
            bank.apply([op], turn=SECOND)


def test_an_unreachable_embedder_changes_nothing(bank):
    entry_id = added(bank)
    before = state(bank), bank.journal()

    def unreachable(texts):
        raise ModelUnavailable("no embedder")

    bank.embedder.embed = unreachable
    with pytest.raises(ModelUnavailable):
        bank.apply([Delete(entry_id), Add("new")], turn=SECOND)
    assert (state(bank), bank.journal()) == before
    assert bank.apply([Noop()], turn=SECOND)[0].op == "NOOP"  # nothing to embed


def test_owners_do_not_see_each_other(bank):
    entry_id = added(bank)
    other = Bank(bank.store, bank.embedder, Owner("ben"))
    assert other.entries() == [] and other.journal() == [] and len(other.index) == 0
    with pytest.raises(UnknownEntry):
        other.apply([Delete(entry_id)], turn=None)


def test_as_of_tells_what_was_believed_then(bank):
    cat, dog = added(bank, "one cat"), added(bank, "a dog")
    before = bank.journal()[-1].at
    bank.apply([Update(cat, "two cats"), Delete(dog)], turn=SECOND)
    after = bank.journal()[-1].at
    bank.undo(bank.journal()[-1].id)
    assert [entry.text for entry in bank.as_of(before)] == ["one cat", "a dog"]
    assert [entry.text for entry in bank.as_of(after)] == ["two cats"]
    assert bank.as_of(NOON) == [] and bank.as_of(bank.journal()[-1].at) == bank.entries()


# undo


@pytest.mark.parametrize("change", [Add("a dog"), Update("", "two cats"), Delete(""), Noop()])
def test_undo_restores_exactly(bank, change):
    entry_id = added(bank)
    before = state(bank)
    if not isinstance(change, Add | Noop):
        change = Update(entry_id, change.text) if isinstance(change, Update) else Delete(entry_id)
    naive = (datetime(2024, 1, 1), datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=5))))
    (row,) = bank.apply([change], turn=SECOND, happened=naive, metadata={"deep": [1, {"x": 2}]})
    undo = bank.undo(row.id)
    assert state(bank) == before
    assert (undo.op, undo.entry_id) == ("UNDO", row.entry_id)
    assert (undo.before, undo.after) == (row.after, row.before)
    assert [kept.undone for kept in bank.journal()] == [False, True, False]
    assert bank.journal()[-1] == undo


def test_an_operation_is_undone_once_and_redone_by_undoing_the_undo(bank):
    entry_id = added(bank)
    (row,) = bank.apply([Update(entry_id, "two cats")], turn=SECOND)
    changed = state(bank)
    undo = bank.undo(row.id)
    with pytest.raises(StoreError, match="undone already"):
        bank.undo(row.id)
    bank.undo(undo.id)
    assert state(bank) == changed


def test_undo_is_refused_when_the_entry_was_changed_later_and_says_what_to_undo(bank):
    entry_id = added(bank)
    (first,) = bank.apply([Update(entry_id, "two cats")], turn=SECOND)
    (last,) = bank.apply([Update(entry_id, "three cats")], turn=SECOND)
    before = state(bank), bank.journal()
    with pytest.raises(StoreError, match=f"changed since; first undo UPDATE {last.id}"):
        bank.undo(first.id)
    assert (state(bank), bank.journal()) == before
    bank.undo(last.id)
    bank.undo(first.id)
    assert texts(bank) == ["Anna has a cat"]


def test_other_entries_changed_later_do_not_stand_in_the_way(bank):
    cat, dog = added(bank, "cat"), added(bank, "dog")
    (row,) = bank.apply([Delete(cat)], turn=SECOND)
    bank.apply([Update(dog, "dogs")], turn=SECOND)
    bank.undo(row.id)
    assert texts(bank) == ["cat", "dogs"]


def test_undo_of_an_unknown_row_or_of_another_owners_is_refused(bank):
    added(bank)
    other = Bank(bank.store, bank.embedder, Owner("ben"))
    for of, journal_id in ((bank, "nothing"), (other, bank.journal()[0].id)):
        with pytest.raises(StoreError, match="no journal row"):
            of.undo(journal_id)


steps = st.lists(
    st.tuples(st.sampled_from(["add", "update", "delete", "noop"]), st.integers(0, 5)), max_size=12
)


@given(before=steps, after=steps, data=st.data())
@settings(max_examples=60)
def test_any_operations_undone_in_reverse_restore_the_bank_they_started_from(before, after, data):
    bank = Bank(RamStore(), LetterEmbedder(), ANNA, now=Clock())

    def play(plan) -> list[str]:
        rows = []
        for number, (kind, at) in enumerate(plan):
            current = bank.entries()
            chosen = current[at % len(current)].id if current else None
            if kind == "add" or (chosen is None and kind != "noop"):
                op = Add(f"new {number}")
            elif kind == "update":
                op = Update(chosen, f"changed {number}")
            else:
                op = Delete(chosen) if kind == "delete" else Noop()
            turn = data.draw(st.sampled_from([FIRST, SECOND]))
            rows += [row.id for row in bank.apply([op], turn=turn)]
        return rows

    play(before)
    start, done = state(bank), len(bank.journal())
    moment = bank.journal()[-1].at if done else NOON
    rows = play(after)
    finish = state(bank)
    undos = [bank.undo(row).id for row in reversed(rows)]
    assert state(bank) == start
    assert bank.as_of(moment) == bank.entries()
    assert len(bank.journal()) == done + 2 * len(rows)  # nothing leaves the journal
    for undo in reversed(undos):
        bank.undo(undo)
    assert state(bank) == finish


# fork


def test_a_fork_never_writes_back_and_sees_nothing_new(bank):
    entry_id = added(bank)
    before = state(bank), bank.journal()
    fork = bank.fork()
    fork.apply([Update(entry_id, "in the fork"), Add("also")], turn=SECOND)
    assert texts(fork) == ["in the fork", "also"]
    assert (state(bank), bank.journal()) == before
    bank.apply([Delete(entry_id)], turn=SECOND)
    assert texts(fork) == ["in the fork", "also"] and len(fork.index) == 2


def test_forks_of_forks_are_independent(bank):
    entry_id = added(bank)
    one = bank.fork()
    one.apply([Add("one")], turn=SECOND)
    two, three = one.fork(), one.fork()
    two.apply([Delete(entry_id)], turn=SECOND)
    three.apply([Update(entry_id, "three")], turn=SECOND)
    assert [texts(each) for each in (bank, one, two, three)] == [
        ["Anna has a cat"],
        ["Anna has a cat", "one"],
        ["one"],
        ["three", "one"],
    ]


def test_a_decision_on_a_fork_takes_less_than_300_microseconds():
    """Training does thousands; the quickest of many is what it costs on a quiet machine."""
    bank = Bank(RamStore(), LetterEmbedder(), ANNA)
    ids = [added(bank, f"memory number {n}") for n in range(30)]
    seconds = []
    for _ in range(300):
        start = time.perf_counter()
        bank.fork().apply([Update(ids[7], "memory number seven")], turn=SECOND)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 300e-6


def test_a_fork_can_undo_what_happened_before_it(bank):
    added(bank)
    fork = bank.fork()
    fork.undo(fork.journal()[0].id)
    assert fork.entries() == [] and texts(bank) == ["Anna has a cat"]


# embedders


@pytest.mark.parametrize("other", [LetterEmbedder("other", 4), LetterEmbedder("letters", 8)])
def test_a_store_of_another_embedder_is_refused_by_name_until_it_is_reindexed(bank, other):
    entry_id = added(bank)
    bank.apply([Update(entry_id, "two cats")], turn=SECOND)
    gone = added(bank, "gone")
    bank.apply([Delete(gone)], turn=SECOND)
    before = bank.entries(superseded=True), bank.history(entry_id), bank.journal()
    expected = f"'letters' .4 dimen.*'{other.name}' .{other.dim} dimen.*reindex"
    with pytest.raises(StoreError, match=expected):
        Bank(bank.store, other, ANNA)
    len(bank.index)  # a cached index of the old length must not be in the way
    assert reindex(bank.store, other) == 3
    again = Bank(bank.store, other, ANNA)
    assert again.index.vectors.tolist() == other.embed(["two cats"]).tolist()
    assert (again.entries(superseded=True), again.history(entry_id), again.journal()) == before
    again.undo(again.journal(entry_id)[-1].id)
    again.undo(again.journal(gone)[-1].id)
    assert texts(again) == ["Anna has a cat", "gone"]


def test_a_failed_reindex_leaves_the_store_as_it_was(bank):
    added(bank)
    before = state(bank)
    broken = LetterEmbedder("broken")
    broken.embed = lambda texts: np.full((len(texts), 4), np.nan)
    with pytest.raises(StoreError, match="finite"):
        reindex(bank.store, broken)
    assert state(bank) == before
    Bank(bank.store, LetterEmbedder(), ANNA)

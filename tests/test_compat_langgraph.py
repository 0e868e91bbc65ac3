"""LangGraph's store over ours: as its own one behaves, and in a real graph with LangMem's tools."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("langgraph.store.base", reason="langgraph-checkpoint is not installed")

from langgraph.store.base import (  # noqa: E402
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore  # noqa: E402

from memory_r1 import Memory  # noqa: E402
from memory_r1.compat.items import text_of  # noqa: E402
from memory_r1.compat.langgraph import MemoryStore  # noqa: E402
from memory_r1.embed import LocalEmbedder  # noqa: E402
from memory_r1.errors import ConfigError, MemoryR1Error  # noqa: E402
from memory_r1.llm import ScriptedLLM  # noqa: E402

EMBEDDER = LocalEmbedder()
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
SCRIPT = Path(__file__).parent / "compat" / "langgraph_graph.py"


@pytest.fixture
def memory(tmp_path):
    with Memory(tmp_path / "m.db", embedder=EMBEDDER) as memory:
        yield memory


@pytest.fixture
def store(memory):
    return MemoryStore(memory)


def keys(items):
    return [item.key for item in items]


# The same operations against LangGraph's own store

labels = st.sampled_from(["a", "b", "c"])
namespaces = st.lists(labels, min_size=1, max_size=3).map(tuple)
names = st.sampled_from(["k1", "k2", "k3"])
numbers = st.one_of(st.integers(-2, 2), st.floats(-2, 2, allow_nan=False).map(lambda x: x + 0.0))
values = st.fixed_dictionaries(
    {"n": numbers},
    optional={
        "text": st.sampled_from(["tea", "oboe", ""]),
        "deep": st.fixed_dictionaries({"x": st.integers(0, 1)}),
        "list": st.lists(st.integers(0, 1), max_size=2),
        "none": st.none(),
    },
)
conditions = st.one_of(
    st.fixed_dictionaries({"text": st.sampled_from(["tea", "oboe", None])}),
    st.fixed_dictionaries({"deep": st.fixed_dictionaries({"x": st.integers(0, 1)})}),
    st.fixed_dictionaries({"list": st.lists(st.integers(0, 1), max_size=2)}),
    st.fixed_dictionaries(
        {"n": st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), numbers)}
    ),
    st.fixed_dictionaries({"n": st.dictionaries(st.sampled_from(["$eq", "$ne"]), numbers)}),
    st.fixed_dictionaries({"text": st.fixed_dictionaries({"$ne": st.just("tea")})}),
)
paths = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=2).map(tuple)
matches = st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), paths)
puts = st.builds(
    PutOp, namespaces, names, st.one_of(st.none(), values, values), st.none(), ttl=st.none()
)
gets = st.builds(GetOp, namespaces, names)
searches = st.builds(
    SearchOp,
    st.one_of(namespaces, st.just(())),
    st.one_of(st.none(), conditions),
    st.integers(0, 5),
    st.integers(0, 3),
    st.none(),
)
listings = st.builds(
    ListNamespacesOp,
    st.one_of(st.none(), st.lists(matches, max_size=2).map(tuple)),
    st.one_of(st.none(), st.integers(1, 3)),
    st.integers(0, 5),
    st.integers(0, 2),
)
# Theirs lists a namespace that the same batch has only looked at: listings go by themselves.
batches = st.one_of(
    st.lists(st.one_of(puts, puts, gets, searches), min_size=1, max_size=4),
    st.lists(listings, min_size=1, max_size=2),
)


def seen(result):
    """A result without its moments, which are two clocks' business."""
    if isinstance(result, list):
        return [seen(one) for one in result]
    if result is None or isinstance(result, tuple):
        return result
    return (result.namespace, result.key, result.value)


@settings(max_examples=150)
@given(st.lists(batches, min_size=1, max_size=8))
def test_it_answers_as_langgraphs_own_store(program):
    theirs = InMemoryStore()
    with Memory("ram:", embedder=EMBEDDER) as memory:
        ours = MemoryStore(memory)
        for batch in program:
            # Nor does theirs forget a namespace whose items are gone.
            for namespace in [n for n, items in theirs._data.items() if not items]:
                del theirs._data[namespace]
            order = {namespace: i for i, namespace in enumerate(theirs._data)}
            batch = [op for op in batch if not spans(op, order)]
            assert seen(ours.batch(batch)) == seen(theirs.batch(batch)), batch


def spans(op, order):
    """Whether an operation's answer depends on the order of namespaces, which is nobody's word."""
    if not isinstance(op, SearchOp):
        return False
    prefix = op.namespace_prefix
    return sum(namespace[: len(prefix)] == prefix for namespace in order) > 1 and (
        op.limit < 100 or op.offset
    )


@settings(max_examples=60)
@given(st.lists(puts, min_size=1, max_size=12), st.one_of(st.none(), conditions))
def test_a_search_over_namespaces_finds_the_same_items(program, condition):
    theirs = InMemoryStore()
    with Memory("ram:", embedder=EMBEDDER) as memory:
        ours = MemoryStore(memory)
        for put in program:
            ours.batch([put])
            theirs.batch([put])
        for prefix in ((), ("a",), ("a", "b")):
            search = SearchOp(prefix, condition, limit=100)
            (mine,), (other,) = ours.batch([search]), theirs.batch([search])
            assert sorted(seen(mine), key=repr) == sorted(seen(other), key=repr)


@settings(max_examples=100)
@given(st.sets(namespaces, min_size=1, max_size=6), st.lists(listings, min_size=1, max_size=8))
def test_namespaces_are_listed_as_theirs_are(wanted, asked):
    theirs = InMemoryStore()
    with Memory("ram:", embedder=EMBEDDER) as memory:
        ours = MemoryStore(memory)
        for namespace in sorted(wanted):
            for one in (ours, theirs):
                one.put(namespace, "k", {"content": "x"})
        assert ours.batch(asked) == theirs.batch(asked)


def test_namespaces_can_be_found_by_their_beginning_and_their_end(store):
    for namespace in (("a", "b", "c"), ("a", "b", "d", "e"), ("a", "x", "c"), ("b", "c")):
        store.put(namespace, "k", {"content": "x"})
    assert store.list_namespaces(prefix=("a", "b"), max_depth=3) == [
        ("a", "b", "c"),
        ("a", "b", "d"),
    ]
    assert store.list_namespaces(suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c"), ("b", "c")]
    assert store.list_namespaces(prefix=("a", "*", "c"), offset=1) == [("a", "x", "c")]
    assert store.list_namespaces(prefix=("a",), suffix=("*", "e")) == [("a", "b", "d", "e")]


# What it adds, and where it knows better


def test_a_query_finds_what_means_the_same(store):
    store.put(("memories", "ann"), "1", {"content": "Ann plays the oboe in an orchestra"})
    store.put(("memories", "ann"), "2", {"content": "Ann moved to Lisbon last spring"})
    store.put(("memories", "ben"), "3", {"content": "Ben plays the oboe"})
    assert keys(store.search(("memories", "ann"), query="Which instrument?", limit=1)) == ["1"]
    found = store.search(("memories",), query="Which city did Ann move to?", limit=3)
    assert found[0].key == "2"
    assert found[0].score >= found[1].score >= found[2].score
    assert store.search(("memories",), query="oboe", filter={"content": "Ben plays the oboe"})[
        0
    ].namespace == ("memories", "ben")
    assert store.search(("nobody",), query="oboe") == []


def test_pages_of_a_query_follow_on_one_another(store):
    for number in range(7):
        store.put(("n",), str(number), {"content": f"The oboe part number {number}"})
    every = keys(store.search(("n",), query="oboe part number 3", limit=7))
    pages = [
        keys(store.search(("n",), query="oboe part number 3", limit=3, offset=offset))
        for offset in (0, 3, 6)
    ]
    assert [key for page in pages for key in page] == every
    assert sorted(every) == list("0123456")


def test_an_item_that_is_not_indexed_is_found_last_and_without_a_score(store):
    store.put(("n",), "hidden", {"content": "Ann plays the oboe"}, index=False)
    store.put(("n",), "open", {"content": "Lisbon is in Portugal"})
    found = store.search(("n",), query="oboe")
    assert keys(found) == ["open", "hidden"]
    assert found[1].score is None
    assert store.get(("n",), "hidden").value == {"content": "Ann plays the oboe"}


def test_only_the_fields_that_are_asked_for_are_compared(memory):
    store = MemoryStore(memory, fields=["title"])
    store.put(("n",), "1", {"title": "Oboe", "body": "Lisbon"})
    store.put(("n",), "2", {"title": "Lisbon", "body": "Oboe"})
    store.put(("n",), "3", {"title": "x", "tags": ["harbour", "boats"]}, index=["tags[*]"])
    assert keys(store.search(("n",), query="Oboe"))[0] == "1"
    assert keys(store.search(("n",), query="boats"))[0] == "3"


def test_a_value_reads_as_text():
    assert text_of({"content": "Ann plays the oboe"}) == "Ann plays the oboe"
    assert (
        text_of({"name": "Ann", "age": 7, "likes": ["tea"]}) == 'name: Ann\nage: 7\nlikes: ["tea"]'
    )
    assert text_of({"a": {"b": "x"}}, ["a.b", "missing"]) == "x"


def test_overwriting_keeps_the_creation_and_the_history(store, memory):
    store.put(("memories", "ann"), "home", {"content": "Ann lives in Porto"})
    first = store.get(("memories", "ann"), "home")
    store.put(("memories", "ann"), "home", {"content": "Ann lives in Lisbon"})
    second = store.get(("memories", "ann"), "home")
    assert second.created_at == first.created_at == first.updated_at < second.updated_at
    (entry,) = memory.list(user_id="memories.ann")
    versions = memory.history(entry.id, user_id="memories.ann")
    assert [version.text for version in versions] == ["Ann lives in Porto", "Ann lives in Lisbon"]
    memory.undo(entry.id, user_id="memories.ann")
    assert store.get(("memories", "ann"), "home").value == {"content": "Ann lives in Porto"}


def test_every_other_verb_reads_the_same_memory(store, memory):
    store.put(("memories", "ann"), "1", {"content": "Ann plays the oboe"})
    (hit,) = memory.search("instrument", user_id="memories.ann")
    assert hit.entry.text == "Ann plays the oboe"
    memory.add("I moved to Lisbon", user_id="ben", infer=False, metadata={"topic": "home"})
    (item,) = store.search(("ben",))
    assert item.value == {"content": "I moved to Lisbon", "topic": "home"}
    assert store.get(("ben",), item.key).value == item.value
    store.put(("ben",), item.key, {"content": "Ben moved to Lisbon"})
    assert [entry.text for entry in memory.list(user_id="ben")] == ["Ben moved to Lisbon"]


def test_what_the_memory_manager_changes_shows_in_the_item(tmp_path):
    text = "Ann has two dogs, Buddy and Scout"
    replies = [
        json.dumps({"facts": [{"text": "Ann has another dog, Scout"}]}),
        json.dumps({"operations": [{"op": "UPDATE", "id": 0, "text": text}]}),
    ]
    with Memory(tmp_path / "m.db", embedder=EMBEDDER, llm=ScriptedLLM(replies)) as memory:
        store = MemoryStore(memory)
        store.put(("ann",), "dogs", {"content": "Ann has a dog, Buddy", "kind": "pets"})
        memory.add("I adopted another dog, Scout", user_id="ann")
        assert store.get(("ann",), "dogs").value == {"content": text, "kind": "pets"}


class Clock:
    def __init__(self):
        self.now = datetime(2024, 5, 7, tzinfo=UTC)

    def __call__(self):
        return self.now

    def pass_by(self, minutes):
        self.now += timedelta(minutes=minutes)


def test_an_item_ends_when_it_was_not_used_for_its_time(tmp_path):
    clock = Clock()
    with Memory(tmp_path / "m.db", embedder=EMBEDDER, now=clock) as memory:
        store = MemoryStore(memory)
        store.put(("n",), "short", {"content": "tea"}, ttl=10)
        store.put(("n",), "long", {"content": "oboe"})
        clock.pass_by(8)
        assert store.get(("n",), "short") is not None  # and starts anew
        clock.pass_by(8)
        assert keys(store.search(("n",))) == ["short", "long"]  # again
        clock.pass_by(8)
        assert store.get(("n",), "short", refresh_ttl=False) is not None
        clock.pass_by(3)
        assert store.get(("n",), "short") is None
        assert keys(store.search(("n",), query="tea")) == ["long"]
        store.put(("m",), "x", {"content": "x"}, ttl=1)
        clock.pass_by(2)
        assert store.list_namespaces() == [("n",)]


def test_a_time_to_live_can_be_taken_back(tmp_path):
    clock = Clock()
    with Memory(tmp_path / "m.db", embedder=EMBEDDER, now=clock) as memory:
        store = MemoryStore(memory, ttl={"default_ttl": 10})
        store.put(("n",), "k", {"content": "tea"})
        store.put(("n",), "k", {"content": "tea"}, ttl=None)
        clock.pass_by(11)
        assert store.get(("n",), "k").value == {"content": "tea"}


def test_reading_does_not_write_a_version_each_time(tmp_path):
    clock = Clock()
    with Memory(tmp_path / "m.db", embedder=EMBEDDER, now=clock) as memory:
        store = MemoryStore(memory)
        store.put(("n",), "k", {"content": "tea"}, ttl=60)
        for _ in range(20):
            clock.pass_by(1)
            store.get(("n",), "k")
        (entry,) = memory.list(user_id="n")
        assert entry.version <= 4


def test_editing_an_item_changes_nothing_that_is_kept(store):
    store.put(("n",), "k", {"content": "tea", "tags": ["a"]})
    item = store.get(("n",), "k")
    item.value["tags"].append("b")
    item.value["content"] = "x"
    assert store.get(("n",), "k").value == {"content": "tea", "tags": ["a"]}


def test_a_batch_is_written_whole_or_not_at_all(store):
    good = PutOp(("n",), "good", {"content": "tea"})
    bad = PutOp(("n",), "bad", {"content": object()})
    with pytest.raises(ConfigError, match="JSON"):
        store.batch([good, bad])
    assert store.search(("n",)) == []


def test_a_batch_reads_first_and_the_last_put_of_a_key_counts(store):
    results = store.batch(
        [
            PutOp(("n",), "k", {"content": "first"}),
            GetOp(("n",), "k"),
            PutOp(("n",), "k", {"content": "second"}),
        ]
    )
    assert results == [None, None, None]
    assert store.get(("n",), "k").value == {"content": "second"}


def test_a_time_to_live_beyond_all_calendars_is_for_ever(store):
    store.put(("n",), "k", {"content": "tea"}, ttl=1e12)
    assert store.get(("n",), "k").value == {"content": "tea"}


@pytest.mark.parametrize("namespace", [(), ("",), ("a.b",), ("langgraph",), ("a", 1)])
def test_an_impossible_namespace_is_refused(store, namespace):
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {"content": "x"})


def test_an_impossible_operation_is_refused(store):
    store.put(("n",), "k", {"content": "x"})
    with pytest.raises(ValueError, match="like"):
        store.search(("n",), filter={"content": {"$like": "x"}})
    for op in (GetOp(("a.b",), "k"), PutOp(("",), "k", {}), SearchOp(("a", 1))):
        with pytest.raises(InvalidNamespaceError):
            store.batch([op])
    with pytest.raises(MemoryR1Error, match="expected an operation"):
        store.batch(["get"])


def test_a_missing_number_is_on_no_side_of_a_limit(store):
    """LangGraph's store in RAM raises TypeError here."""
    store.put(("n",), "with", {"n": 3})
    store.put(("n",), "without", {"content": "x"})
    assert keys(store.search(("n",), filter={"n": {"$gt": 2}})) == ["with"]


def test_credentials_are_kept_out_of_the_searched_text_and_in_the_value(store, memory):
    secret = "sk-" + "a1B2" * 8
    store.put(("n",), "k", {"content": f"my key is {secret}"})
    assert secret not in memory.list(user_id="n")[0].text
    assert store.get(("n",), "k").value == {"content": f"my key is {secret}"}


def test_it_can_be_awaited(store):
    async def play():
        await asyncio.gather(
            *(store.aput(("n",), str(number), {"content": f"x {number}"}) for number in range(8))
        )
        await store.adelete(("n",), "3")
        found = await store.asearch(("n",), limit=20)
        return keys(found), await store.aget(("n",), "4"), await store.alist_namespaces()

    found, item, listed = asyncio.run(play())
    assert sorted(found) == list("0124567")
    assert item.value == {"content": "x 4"}
    assert listed == [("n",)]


@pytest.mark.slow
def test_a_real_graph_and_langmems_tools_use_it(tmp_path):
    if not PEERS.exists():
        pytest.skip(f"{PEERS} is not there: run  make peers")
    done = subprocess.run(
        [PEERS, SCRIPT, tmp_path], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "remembered": ["Ann plays the oboe"],
        "recalled": ["Ann plays the oboe"],
        "created": "created memory",
        "found": ["Ann likes green tea"],
        "updated": ["Ann likes black tea"],
        "deleted": [],
        "versions": ["Ann likes green tea", "Ann likes black tea"],
    }


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['langgraph.store.base'] = None\n"
        "try:\n    import memory_r1.compat.langgraph\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("MissingExtra")
    assert "memory-r1[langgraph]" in done.stdout

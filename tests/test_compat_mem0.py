"""mem0's surface over ours: the same scenario against the real package, and what it promises."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import memory_r1
from memory_r1.compat import mem0
from memory_r1.compat.banks import NO_USER
from memory_r1.compat.mem0_config import open_memory
from memory_r1.embed import LocalEmbedder
from memory_r1.errors import ConfigError, MemoryR1Error
from memory_r1.llm import ScriptedLLM
from memory_r1.types import Owner

EMBEDDER = LocalEmbedder()
HERE = Path(__file__).parent / "compat"
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
sys.path.insert(0, str(HERE))
import mem0_contract  # noqa: E402

# Where we differ, and why. An entry that no longer differs fails the test, so that the list
# stays true.
NEW = "mem0-2.2.1.json"
OLD = "mem0-1.0.11.json"
DIFFERENT = {
    (NEW, "search where ne"): "mem0's Qdrant passes over a memory without the key; ours isn't pets",
    (NEW, "search where nin"): "the same",
    (NEW, "search where contains"): "mem0 documents it; its local Qdrant never finds anything",
    (NEW, "search where icontains"): "the same",
    (NEW, "search where there"): "mem0 documents '*' as any value; its local Qdrant ignores it",
    (OLD, "add with an empty id"): "1.x took any id; the model's script has no reply for it",
    (OLD, "add with a space in an id"): "the same",
    (OLD, "get after update"): "1.x replaced the metadata; 2.x and we merge it",
}


def recording(name):
    return json.loads((HERE / name).read_text("utf-8"))["shapes"]


def agrees(theirs, ours):
    """The same shape. Of errors: what catches theirs catches ours."""
    if (
        isinstance(theirs, dict)
        and isinstance(ours, dict)
        and "raises" in theirs
        and "raises" in ours
    ):
        return theirs["raises"][0] in ours["raises"]
    return theirs == ours


@pytest.fixture(scope="module", params=[(NEW, 2), (OLD, 1)], ids=["2.x", "1.x"])
def both(request, tmp_path_factory):
    name, version = request.param
    ours = mem0_contract.play_ours(str(tmp_path_factory.mktemp("mem0")), version)
    return name, recording(name), ours


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_same_calls_give_the_same_shapes(both, kind):
    name, theirs, ours = both
    assert theirs[kind].keys() == ours[kind].keys()
    different = {call for call in theirs[kind] if not agrees(theirs[kind][call], ours[kind][call])}
    assert different == {call for of, call in DIFFERENT if of == name}


@pytest.mark.slow
def test_the_recording_is_what_the_real_package_does():
    if not PEERS.exists():
        pytest.skip(f"{PEERS} is not there: run  make peers")
    done = subprocess.run(
        [PEERS, HERE / "mem0_contract.py", "real"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shapes"] == recording(NEW)


@pytest.fixture
def memory(tmp_path):
    with mem0.Memory(memory=memory_r1.Memory(tmp_path / "m.db", embedder=EMBEDDER)) as memory:
        yield memory


def texts(found):
    return [item["memory"] for item in found["results"]]


def add(memory, text, **ids):
    return memory.add(text, infer=False, **ids)["results"][0]["id"]


def test_a_search_sees_all_memories_that_have_the_ids(memory):
    add(memory, "Ann likes tea", user_id="ann")
    add(memory, "Ann told the bot that she plays the oboe", user_id="ann", agent_id="bot")
    add(memory, "Ann asked for the weather in this run", user_id="ann", agent_id="bot", run_id="7")
    add(memory, "Ben likes tea", user_id="ben", agent_id="bot")
    assert len(texts(memory.search("tea", user_id="ann"))) == 3
    assert len(texts(memory.search("tea", filters={"agent_id": "bot"}))) == 3
    assert texts(memory.search("tea", user_id="ben", agent_id="bot")) == ["Ben likes tea"]
    assert texts(memory.get_all(filters={"user_id": "ann", "run_id": "7"})) == [
        "Ann asked for the weather in this run"
    ]
    assert texts(memory.get_all(filters={"user_id": "ann", "run_id": "*"})) == [
        "Ann asked for the weather in this run"
    ]


def test_the_best_hit_is_found_in_whatever_bank_it_is(memory):
    """One bank's only entry has no score to stand out by; it must win all the same."""
    for number in range(30):
        add(memory, f"The invoice {number} was paid by bank transfer", user_id="ann")
    add(memory, "Ann's oboe teacher is called Miriam", user_id="ann", agent_id="bot")
    found = memory.search("Who teaches Ann the oboe?", user_id="ann", top_k=3)["results"]
    assert found[0]["memory"] == "Ann's oboe teacher is called Miriam"
    assert found[0]["agent_id"] == "bot"
    assert len(found) == 3


def test_the_score_is_a_cosine_and_the_threshold_cuts_it(memory):
    add(memory, "Ann plays the oboe", user_id="ann")
    add(memory, "Lisbon is in Portugal", user_id="ann")
    scored = memory.search("Ann plays the oboe", user_id="ann")["results"]
    assert scored[0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert 0.0 <= scored[1]["score"] < 0.5
    assert texts(memory.search("Ann plays the oboe", user_id="ann", threshold=0.9)) == [
        "Ann plays the oboe"
    ]


def test_explain_says_what_the_order_rests_on(memory):
    add(memory, "Ann plays the oboe", user_id="ann")
    add(memory, "Lisbon is in Portugal", user_id="ann")
    item = memory.search("oboe", user_id="ann", explain=True)["results"][0]
    assert {"words", "vectors"} <= item["score_details"].keys()


def test_a_memory_of_an_agent_alone_belongs_to_no_user(memory):
    known = add(memory, "The vet opens at nine", agent_id="vet")
    item = memory.get(known)
    assert "user_id" not in item
    assert item["agent_id"] == "vet"
    assert memory.memory.store.owners() == [Owner(NO_USER, "vet")]
    with pytest.raises(ValueError, match="without spaces"):
        memory.get_all(user_id=NO_USER)
    assert texts(memory.get_all(filters={"user_id": "*"})) == []


def test_metadata_cannot_move_a_memory_to_somebody_else(memory):
    memory.add("x is y", user_id="ann", infer=False, metadata={"user_id": "ben", "topic": "t"})
    item = memory.get_all(user_id="ann")["results"][0]
    assert item["metadata"] == {"topic": "t"}
    assert memory.get_all(user_id="ben")["results"] == []


def test_an_id_inside_a_condition_is_refused_with_what_to_write(memory):
    with pytest.raises(ValueError, match="beside"):
        memory.search("x", filters={"user_id": "a", "OR": [{"agent_id": "b"}, {"agent_id": "c"}]})


def test_filters_go_by_mem0s_names_of_fields(memory):
    ann = {"role": "user", "name": "Ann", "content": "I play the oboe"}
    memory.add([ann, {"role": "assistant", "content": "Lovely"}], user_id="u", infer=False)
    wanted = {"user_id": "u", "NOT": [{"actor_id": "Ann"}]}
    assert texts(memory.search("oboe", filters=wanted)) == ["Lovely"]
    assert texts(memory.search("oboe", filters={"user_id": "u", "role": "user"})) == [
        "I play the oboe"
    ]
    future = {"user_id": "u", "created_at": {"gt": "2999-01-01"}}
    assert memory.search("oboe", filters=future)["results"] == []


def test_a_memory_lives_through_its_last_day(tmp_path):
    now = datetime(2024, 5, 7, 23, 59, tzinfo=UTC)
    native = memory_r1.Memory(tmp_path / "m.db", embedder=EMBEDDER, now=lambda: now)
    memory = mem0.Memory(memory=native)
    known = memory.add("The offer ends", user_id="ann", infer=False, expiration_date="2024-05-07")[
        "results"
    ][0]["id"]
    assert texts(memory.get_all(user_id="ann")) == ["The offer ends"]
    assert memory.get(known)["expiration_date"] == "2024-05-07"
    now = datetime(2024, 5, 8, 0, 0, tzinfo=UTC)
    assert memory.get_all(user_id="ann")["results"] == []
    assert memory.search("offer", user_id="ann")["results"] == []
    assert texts(memory.search("offer", user_id="ann", show_expired=True)) == ["The offer ends"]
    memory.update(known, expiration_date=None)
    assert texts(memory.get_all(user_id="ann")) == ["The offer ends"]
    assert "expiration_date" not in memory.get(known)
    native.close()


def test_what_a_model_failed_at_is_told_and_can_be_tried_again(tmp_path):
    script = ScriptedLLM(["nonsense", "nonsense", *replies_for("Ann plays the oboe")])
    memory = mem0.Memory(memory=memory_r1.Memory(tmp_path / "m.db", embedder=EMBEDDER, llm=script))
    failed = memory.add("I play the oboe", user_id="ann")
    assert failed["results"] == []
    assert "oboe" in failed["deferred"][0]["memory"]
    assert failed["deferred"][0]["error"]
    memory.memory.retry("ann")
    assert texts(memory.get_all(user_id="ann")) == ["Ann plays the oboe"]
    memory.close()


def test_what_waits_for_approval_is_told(tmp_path):
    script = ScriptedLLM(replies_for("Ann plays the oboe"))
    native = memory_r1.Memory(
        tmp_path / "m.db", embedder=EMBEDDER, llm=script, policy="confirm_all"
    )
    with mem0.Memory(memory=native) as memory:
        added = memory.add("I play the oboe", user_id="ann")
        assert added["results"] == []
        (waiting,) = added["proposed"]
        assert (waiting["event"], waiting["memory"]) == ("ADD", "Ann plays the oboe")
        native.approve(waiting["id"], user_id="ann")
        assert texts(memory.get_all(user_id="ann")) == ["Ann plays the oboe"]


def test_editing_what_came_back_changes_nothing_that_is_kept(memory):
    memory.add("x is y", user_id="ann", infer=False, metadata={"tags": ["a"]})
    memory.get_all(user_id="ann")["results"][0]["metadata"]["tags"].append("b")
    assert memory.get_all(user_id="ann")["results"][0]["metadata"] == {"tags": ["a"]}


def replies_for(text):
    facts = {"facts": [{"text": text}]}
    return [json.dumps(facts), json.dumps({"operations": [{"op": "ADD", "text": text}]})]


def test_a_known_message_is_not_stored_twice_and_says_so(memory):
    known = add(memory, "Ann plays the oboe", user_id="ann")
    again = memory.add("Ann plays the oboe", user_id="ann", infer=False)["results"]
    assert [(item["id"], item["event"]) for item in again] == [(known, "NONE")]


def test_what_is_undone_natively_shows_in_the_history(memory):
    known = add(memory, "Ann plays the oboe", user_id="ann")
    memory.delete(known)
    memory.memory.undo(known, user_id="ann")
    assert memory.get(known)["memory"] == "Ann plays the oboe"
    events = [(row["event"], row["is_deleted"]) for row in memory.history(known)]
    assert events == [("ADD", False), ("DELETE", True), ("ADD", False)]


def test_a_timestamp_says_when_it_was_said(memory):
    add(memory, "I play the oboe", user_id="ann", timestamp="2021-05-07")
    (entry,) = memory.memory.list(user_id="ann")
    assert entry.said == datetime(2021, 5, 7, tzinfo=UTC)


def test_errors_can_be_caught_as_mem0s_or_as_ours(memory):
    for refused in (
        lambda: memory.add("x"),
        lambda: memory.search("x", user_id="a", filters={"n": {"like": 1}}),
        lambda: memory.update("nobody", "x"),
        lambda: memory.add("x", user_id="a", prompt="Extract in French"),
        lambda: memory.add("x", user_id="a", memory_type="procedural_memory"),
    ):
        with pytest.raises(ValueError):
            refused()
        with pytest.raises(MemoryR1Error):
            refused()
    with pytest.raises(mem0.ValidationError) as refusal:
        memory.add("x")
    assert refusal.value.error_code == "VALIDATION_001"


def test_many_tasks_may_use_it_at_once(tmp_path):
    async def play():
        native = memory_r1.Memory(tmp_path / "m.db", embedder=EMBEDDER)
        async with mem0.AsyncMemory(memory=native) as memory:
            texts = [f"Fact {name} about {name * 3}" for name in "abcdefgh"]
            await asyncio.gather(*(memory.add(text, user_id="ann", infer=False) for text in texts))
            return await memory.get_all(user_id="ann"), texts

    found, expected = asyncio.run(play())
    assert sorted(texts(found)) == sorted(expected)


# Configuration


def test_a_configuration_names_model_embedder_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    config = {
        "version": "v1.1",
        "llm": {"provider": "openai", "config": {"model": "gpt-4o-mini", "temperature": 0.1}},
        "embedder": {
            "provider": "ollama",
            "config": {
                "model": "nomic-embed-text",
                "ollama_base_url": "http://127.0.0.1:11434",
                "embedding_dims": 768,
            },
        },
        "vector_store": {
            "provider": "qdrant",
            "config": {"path": str(tmp_path / "qdrant"), "embedding_model_dims": 768},
        },
        "history_db_path": str(tmp_path / "history.db"),
        "reranker": None,
    }
    opened = open_memory(config)
    llm = opened.agents.manage
    assert (llm.name, llm.base_url) == ("gpt-4o-mini", "https://api.openai.com/v1")
    assert opened.embedder.name == "http://127.0.0.1:11434/v1#nomic-embed-text"
    assert (tmp_path / "qdrant" / "memory.db").exists()
    opened.close()


@pytest.mark.parametrize(
    ("provider", "settings", "url", "key"),
    [
        ("openai", {}, "https://api.openai.com/v1", "secret"),
        ("openai", {"api_key": "mine"}, "https://api.openai.com/v1", "mine"),
        ("openai", {"openai_base_url": "http://127.0.0.1:9/v1/"}, "http://127.0.0.1:9/v1", ""),
        ("vllm", {"vllm_base_url": "http://127.0.0.1:8000/v1"}, "http://127.0.0.1:8000/v1", ""),
        ("vllm", {}, "http://localhost:8000/v1", ""),
        ("lmstudio", {}, "http://localhost:1234/v1", ""),
        ("ollama", {}, "http://localhost:11434/v1", ""),
    ],
)
def test_every_provider_is_reached_where_mem0_reaches_it(
    provider, settings, url, key, tmp_path, monkeypatch
):
    """The key of the environment goes to OpenAI and to nobody else."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    opened = open_memory({"llm": {"provider": provider, "config": {"model": "m", **settings}}})
    llm = opened.agents.extract
    assert llm.base_url == url
    sent = llm._client.headers.get("authorization", "")
    assert sent == (f"Bearer {key}" if key else "")
    opened.close()


def test_any_model_of_ours_can_be_named(tmp_path):
    config = {
        "llm": {"provider": "memory-r1", "config": {"model": "rules"}},
        "embedder": {"provider": "memory-r1", "config": {"model": "wordllama"}},
        "vector_store": {"provider": "memory-r1", "config": {"path": str(tmp_path / "m.db")}},
    }
    with mem0.Memory.from_config(config) as memory:
        memory.add("I play the oboe", user_id="ann")
        assert "oboe" in memory.search("oboe", user_id="ann")["results"][0]["memory"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"llm": {"provider": "anthropic", "config": {"model": "m"}}}, "expected openai"),
        ({"llm": {"provider": "openai", "config": {}}}, "which model"),
        ({"llm": {"provider": "openai", "config": {"model": "m", "modle": 1}}}, "'modle'"),
        ({"llm": "gpt-4o"}, "'provider'"),
        ({"embedder": {"provider": "gemini", "config": {"model": "m"}}}, "'gemini'"),
        ({"vector_store": {"provider": "pinecone", "config": {"api_key": "k"}}}, "memory-r1"),
        ({"vector_store": {"provider": "qdrant", "config": {"host": "h", "port": 1}}}, "Postgres"),
        ({"reranker": {"provider": "cohere"}}, "leave it out"),
        ({"custom_instructions": "In French."}, "leave it out"),
        ({"graph_store": {"provider": "neo4j"}}, "no graph"),
        ({"vectorstore": {"provider": "qdrant"}}, "expected llm"),
        ("memory.db", "a dict"),
    ],
)
def test_a_setting_without_a_meaning_here_is_refused_with_what_to_write(config, told):
    with pytest.raises(ConfigError, match=told):
        open_memory(config)


def test_no_configuration_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with mem0.Memory() as memory:
        memory.add("I play the oboe", user_id="ann")
        assert len(memory.search("oboe", user_id="ann")["results"]) == 1
    assert os.listdir(tmp_path)[0].startswith("memory.db")

"""Memories of mem0, Letta and LangGraph come over whole, once, and say where they are from."""

import io
import json
import os
import sqlite3
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memory_r1 import Memory, transfer
from memory_r1.compat import mem0
from memory_r1.compat.banks import NO_USER
from memory_r1.compat.importers import bring
from memory_r1.compat.readers import read_langgraph, read_letta, read_mem0
from memory_r1.embed import LocalEmbedder
from memory_r1.errors import DataError
from memory_r1.llm import ScriptedLLM
from memory_r1.serve.cli import app
from memory_r1.types import Owner

EMBEDDER = LocalEmbedder()
HERE = Path(__file__).parent / "compat"
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"

MEM0 = {
    "results": [
        {
            "id": "0b5c",
            "memory": "Ann has two dogs, Buddy and Scout",
            "hash": "d41d",
            "metadata": {"topic": "pets"},
            "created_at": "2024-05-07T10:00:00-07:00",
            "updated_at": "2024-06-01T10:00:00+00:00",
            "user_id": "ann",
            "agent_id": "vet",
            "actor_id": "Ann",
            "role": "user",
            "categories": ["animals"],
            "expiration_date": "2999-12-31",
        },
        {"id": "1a2b", "memory": "The vet opens at nine", "agent_id": "vet", "metadata": None},
    ]
}


@pytest.fixture
def memory(tmp_path):
    with Memory(tmp_path / "m.db", embedder=EMBEDDER) as memory:
        yield memory


def moment(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# mem0


@pytest.mark.parametrize("form", [MEM0, MEM0["results"]], ids=["results", "list"])
def test_mem0s_memories_come_with_times_metadata_and_provenance(memory, form):
    receipt = bring(memory, read_mem0(form))
    assert (receipt.memories, receipt.known) == (2, 0)
    (entry,) = memory.list(user_id="ann", agent_id="vet")
    assert entry.text == "Ann has two dogs, Buddy and Scout"
    assert entry.said == entry.stored == moment("2024-05-07T17:00")
    assert entry.speaker == "Ann"
    assert entry.expires == moment("3000-01-01")
    assert entry.metadata == {
        "topic": "pets",
        "categories": ["animals"],
        "role": "user",
        "imported_from": "mem0",
        "imported_id": "0b5c",
    }
    assert Owner(NO_USER, "vet") in memory.store.owners()
    (row,) = memory.journal(user_id="ann", agent_id="vet")
    assert (row.op, row.reason) == ("ADD", "import from mem0")


def test_what_was_imported_reads_the_same_through_mem0s_own_calls(memory):
    bring(memory, read_mem0(MEM0))
    item = mem0.Memory(memory=memory).get_all(user_id="ann")["results"][0]
    given = MEM0["results"][0]
    for name in ("memory", "user_id", "agent_id", "actor_id", "role", "expiration_date"):
        assert item[name] == given[name]
    assert datetime.fromisoformat(item["created_at"]) == datetime.fromisoformat(given["created_at"])


def test_importing_twice_adds_nothing_twice(memory):
    bring(memory, read_mem0(MEM0))
    receipt = bring(memory, read_mem0(MEM0))
    assert (receipt.memories, receipt.known) == (0, 2)
    (entry,) = memory.list(user_id="ann", agent_id="vet")
    memory.update(entry.id, "Ann has three dogs", user_id="ann", agent_id="vet")
    bring(memory, read_mem0(MEM0))
    assert [e.text for e in memory.list(user_id="ann", agent_id="vet")] == ["Ann has three dogs"]
    memory.delete(entry.id, user_id="ann", agent_id="vet")
    bring(memory, read_mem0(MEM0))
    assert memory.list(user_id="ann", agent_id="vet") == []


def test_a_record_that_stands_twice_in_a_file_is_one(memory):
    receipt = bring(memory, read_mem0([*MEM0["results"], *MEM0["results"]]))
    assert (receipt.memories, receipt.known) == (2, 2)


def test_everything_can_become_one_users(memory):
    bring(memory, read_mem0(MEM0, user="zoe"))
    assert {owner.user_id for owner in memory.store.owners()} == {"zoe"}


def history_db(path):
    """The history of the two dogs as mem0 writes it."""
    rows = [
        ("h1", "0b5c", None, "Ann has a dog, Buddy", "ADD", "2024-05-07T10:00:00-07:00", None),
        (
            *("h2", "0b5c", "Ann has a dog, Buddy", "Ann has two dogs, Buddy and Scout", "UPDATE"),
            *("2024-05-07T10:00:00-07:00", "2024-06-01T10:00:00+00:00"),
        ),
    ]
    with sqlite3.connect(path) as file:
        file.execute(
            "CREATE TABLE history (id, memory_id, old_memory, new_memory, event, created_at, "
            "updated_at)"
        )
        file.executemany("INSERT INTO history VALUES (?,?,?,?,?,?,?)", rows)
    file.close()
    return path


def test_the_history_database_gives_the_earlier_versions(memory, tmp_path):
    bring(memory, read_mem0(MEM0, history=history_db(tmp_path / "history.db")))
    (entry,) = memory.list(user_id="ann", agent_id="vet")
    assert [
        (version.text, version.stored)
        for version in memory.history(entry.id, user_id="ann", agent_id="vet")
    ] == [
        ("Ann has a dog, Buddy", moment("2024-05-07T17:00")),
        ("Ann has two dogs, Buddy and Scout", moment("2024-06-01T10:00")),
    ]
    (hit,) = memory.search("dogs", user_id="ann", agent_id="vet", as_of="2024-05-20")
    assert hit.entry.text == "Ann has a dog, Buddy"


def test_a_file_that_is_no_history_is_refused_by_name(tmp_path):
    path = tmp_path / "history.db"
    with pytest.raises(DataError, match="not there"):
        read_mem0(MEM0, history=path)
    path.write_text("no database, but long enough to be read as one" * 50)
    with pytest.raises(DataError, match=r"history\.db"):
        read_mem0(MEM0, history=path)


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ({"memories": 3}, "get_all"),
        ("text", "get_all"),
        ([{"id": "1", "memory": "x", "user_id": "a"}, 7], "record 2"),
        ([{"id": "1", "user_id": "a"}], "record 1: expected a text as memory"),
        ([{"id": "1", "memory": " ", "user_id": "a"}], "record 1"),
        ([{"id": "1", "memory": "x"}], "record 1 names no user_id"),
        ([{"memory": "x", "user_id": "a", "created_at": "soon"}], "record 1: created_at"),
        ([{"memory": "x", "user_id": "a", "metadata": [1]}], "record 1: metadata"),
        ([{"memory": "x", "user_id": "a", "expiration_date": "soon"}], "record 1: expiration"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_number_and_nothing_is_written(memory, records, told):
    with pytest.raises(DataError, match=told):
        bring(memory, read_mem0(records))
    assert memory.store.owners() == []


def test_credentials_stay_behind(memory):
    secret = "sk-" + "a1B2" * 8
    bring(memory, read_mem0([{"id": "1", "memory": f"the key is {secret}", "user_id": "a"}]))
    assert memory.list(user_id="a")[0].text == "the key is [redacted credential]"


def test_many_records_come_in_batches_with_progress_and_a_stopped_import_goes_on(memory):
    records = [
        {"id": str(n), "memory": f"Fact number {n}", "user_id": f"u{n % 3}"} for n in range(600)
    ]

    class Stopped(Exception):
        pass

    def stop_after_the_first(done, total):
        assert total == 600
        raise Stopped

    with pytest.raises(Stopped):
        bring(memory, read_mem0(records), progress=stop_after_the_first)
    seen = []
    receipt = bring(memory, read_mem0(records), progress=lambda *where: seen.append(where))
    assert 0 < receipt.known < 600
    assert receipt.known + receipt.memories == 600
    assert seen[-1] == (receipt.memories, receipt.memories)
    assert sum(len(memory.list(user_id=f"u{n}")) for n in range(3)) == 600


@pytest.mark.slow
def test_a_real_mem0_comes_over_with_its_history(tmp_path):
    if not PEERS.exists():
        pytest.skip(f"{PEERS} is not there: run  make peers")
    done = subprocess.run(
        [PEERS, HERE / "mem0_import.py", tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {
        "from the object": [["My cat is Tom", "My cat is Felix"], ["The vet opens at nine"]],
        "from its files": [["My cat is Tom", "My cat is Felix"], ["The vet opens at nine"]],
        "again": 0,
        "metadata": {"topic": "pets", "role": "user", "imported_from": "mem0"},
        "owners": [["ann", "", "r1"], [NO_USER, "vet", ""]],
    }


# Letta

LETTA = {
    "agents": [
        {
            "name": "Sam",
            "block_ids": ["block-0", "block-1", "block-2"],
            "messages": [
                {
                    "id": "message-0",
                    "role": "system",
                    "content": [{"type": "text", "text": "You are Sam."}],
                    "created_at": "2025-10-31T22:56:56+00:00",
                },
                {
                    "id": "message-1",
                    "role": "user",
                    "content": [{"type": "text", "text": "I moved to Lisbon"}],
                    "created_at": "2025-11-01T10:00:00+00:00",
                },
                {
                    "id": "message-2",
                    "role": "assistant",
                    "content": [{"type": "text", "text": "I should be glad for them."}],
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {
                                "name": "send_message",
                                "arguments": '{"message": "How lovely!"}',
                            },
                        }
                    ],
                    "created_at": "2025-11-01T10:00:05+00:00",
                },
                {
                    "id": "message-3",
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"function": {"name": "archival_memory_search", "arguments": "{}"}}
                    ],
                    "created_at": "2025-11-01T10:00:06+00:00",
                },
                {
                    "id": "message-4",
                    "role": "user",
                    "content": '{"type": "heartbeat", "message": "wake up"}',
                    "created_at": "2025-11-01T10:00:07+00:00",
                },
                {
                    "id": "message-5",
                    "role": "user",
                    "content": '{"type": "user_message", "message": "I play the oboe"}',
                    "created_at": "2025-11-01T10:00:08+00:00",
                },
            ],
        }
    ],
    "blocks": [
        {"id": "block-0", "label": "human", "value": "\nName: Ann\nLikes: tea\n"},
        {"id": "block-1", "label": "persona", "value": "I am Sam."},
        {"id": "block-2", "label": "notes", "value": "  "},
        {"id": "block-9", "label": "of another agent", "value": "x"},
    ],
}
OLDER = {
    "name": "Sam",
    "version": "0.6.50",
    "core_memory": [
        {
            "label": "human",
            "value": "Name: Ann",
            "created_at": "2025-04-01T10:00:00+00:00",
            "updated_at": "2025-04-02T10:00:00+00:00",
        },
        {"label": "persona", "value": "I am Sam."},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "created_at": "2025-04-01"}
    ],
}
PASSAGES = [
    {
        "id": "passage-1",
        "text": "Ann's sister is called Miriam",
        "created_at": "2025-05-01T10:00:00+00:00",
        "tags": ["family"],
        "metadata": {"page": 3},
    }
]


def test_an_agent_file_brings_its_blocks_and_what_was_said(memory):
    receipt = bring(memory, read_letta(LETTA, user="ann"))
    assert (receipt.memories, receipt.messages, receipt.deferred) == (1, 3, 0)
    assert sum(receipt.skipped.values()) == 5
    block, *told = memory.list(user_id="ann")
    assert block.text == "Name: Ann\nLikes: tea"
    assert block.metadata["label"] == "human"
    assert block.metadata["agent"] == "Sam"
    assert [entry.text for entry in told] == [
        "[1 November 2025] ann: I moved to Lisbon",
        "[1 November 2025] Sam: How lovely!",
        "[1 November 2025] ann: I play the oboe",
    ]
    assert told[0].said == moment("2025-11-01T10:00")
    again = bring(memory, read_letta(LETTA, user="ann"))
    assert (again.memories, again.messages, again.known) == (0, 0, 4)


def test_the_older_agent_file_and_a_list_of_passages_are_read(memory):
    bring(memory, read_letta(OLDER, user="ann"))
    bring(memory, read_letta(PASSAGES, user="ann"))
    block, said, passage = memory.list(user_id="ann")
    assert (block.text, block.stored) == ("Name: Ann", moment("2025-04-02T10:00"))
    assert said.text == "[1 April 2025] ann: hi"
    assert passage.text == "Ann's sister is called Miriam"
    assert passage.said == moment("2025-05-01T10:00")
    assert passage.metadata["imported_id"] == "passage-1"
    assert passage.metadata["tags"] == ["family"]
    assert passage.metadata["page"] == 3


def test_a_model_that_fails_loses_no_message(tmp_path):
    script = ScriptedLLM(["nonsense", "nonsense"])
    with Memory(tmp_path / "m.db", llm=script, embedder=EMBEDDER) as memory:
        receipt = bring(memory, read_letta(OLDER, user="ann"))
        assert (receipt.messages, receipt.deferred) == (1, 1)
        assert bring(memory, read_letta(OLDER, user="ann")).messages == 0
        waiting = memory.store.messages(Owner("ann"), "deferred")
        assert [message.turn.text for message in waiting] == ["hi"]


@pytest.mark.parametrize("source", [{}, {"agent": 1}, 7, {"agents": 7}, {"agents": [7]}, [7]])
def test_what_is_no_agent_file_is_refused(source):
    with pytest.raises(DataError):
        read_letta(source, user="ann")


# LangGraph

ITEMS = [
    {
        "namespace": ["memories", "ann"],
        "key": "k1",
        "value": {"content": "Ann plays the oboe"},
        "created_at": "2024-05-07T10:00:00+00:00",
        "updated_at": "2024-06-01T10:00:00+00:00",
    },
    {
        "namespace": ["memories", "ben"],
        "key": "k1",
        "value": {"name": "Ben", "age": 7},
        "created_at": "2024-05-07T10:00:00+00:00",
        "updated_at": "2024-05-07T10:00:00+00:00",
    },
]


def test_items_stay_items_of_their_namespaces(memory):
    pytest.importorskip("langgraph.store.base", reason="langgraph-checkpoint is not installed")
    from memory_r1.compat.langgraph import MemoryStore

    receipt = bring(memory, read_langgraph(ITEMS))
    assert receipt.memories == 2
    store = MemoryStore(memory)
    assert [item.dict() | {"score": None} for item in store.search(())] == [
        {**item, "score": None} for item in ITEMS
    ]
    assert bring(memory, read_langgraph({"items": ITEMS})).memories == 0


def test_a_store_itself_can_be_read(memory):
    pytest.importorskip("langgraph.store.base", reason="langgraph-checkpoint is not installed")
    from langgraph.store.memory import InMemoryStore

    theirs = InMemoryStore()
    for number in range(25):
        theirs.put(("a", str(number % 3)), str(number), {"content": f"fact {number}"})
    assert bring(memory, read_langgraph(theirs)).memories == 25


def test_items_can_become_one_users(memory):
    bring(memory, read_langgraph(ITEMS, user="zoe"))
    first, second = memory.list(user_id="zoe")
    assert second.text == "name: Ben\nage: 7"
    assert first.metadata["namespace"] == ["memories", "ann"]
    assert first.metadata["value"] == {"content": "Ann plays the oboe"}


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{"key": "k", "value": {}}], "record 1: expected namespace"),
        ([ITEMS[0], {"namespace": ["a.b"], "key": "k", "value": {}}], "record 2: a label"),
        ([{"namespace": [], "key": "k", "value": {}}], "record 1"),
        ({"item": 1}, "a list of items"),
    ],
)
def test_what_is_no_item_is_refused(items, told):
    with pytest.raises(DataError, match=told):
        read_langgraph(items)


# The command line


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MEMORY_R1_STORE", "MEMORY_R1_USER", "MEMORY_R1_LLM", "MEMORY_R1_EMBEDDER"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def written(name, document):
    Path(name).write_text(json.dumps(document), "utf-8")
    return name


def test_a_file_is_imported_tried_out_first_and_only_once(run):
    file = written("mem0.json", MEM0)
    tried = run("import", file, "--from", "mem0", "--dry-run")
    assert tried.stdout == "would import 2 memories, 0 messages\n"
    assert run("import", file, "--from", "mem0").stdout == "imported 2 memories, 0 messages\n"
    again = run("import", file, "--from", "mem0")
    assert again.stdout == "imported 0 memories, 0 messages\n"
    assert again.stderr == "2 were imported before\n"
    told = json.loads(run("import", file, "--from", "mem0", "--json").stdout)
    assert told == {"memories": 0, "messages": 0, "known": 2, "deferred": 0, "skipped": {}}


def test_history_goes_with_mem0(run):
    history = history_db(Path("history.db"))
    done = run("import", written("m.json", MEM0), "--from", "mem0", "--history", history)
    assert done.exit_code == 0
    with Memory("memory.db", embedder=EMBEDDER) as memory:
        (entry,) = memory.list(user_id="ann", agent_id="vet")
        assert entry.version == 2
    refused = run("import", "m.json", "--from", "letta", "--history", history)
    assert (refused.exit_code, "mem0" in refused.stderr) == (1, True)


def test_an_agent_file_becomes_my_memory(run):
    done = run("import", written("sam.af", LETTA), "--from", "letta")
    assert done.stdout == "imported 1 memories, 3 messages\n"
    assert "left out: 1 x persona" in done.stderr
    assert "oboe" in run("search", "instrument").stdout


def test_items_may_come_one_per_line(run):
    Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS), "utf-8")
    done = run("import", "items.jsonl", "--from", "langgraph")
    assert done.stdout == "imported 2 memories, 0 messages\n"


def test_an_export_comes_back_whole(run):
    run("import", written("mem0.json", MEM0), "--from", "mem0")
    done = run("export", "all.jsonl")
    assert done.stdout == "all.jsonl: 2 owners, 0 message, 2 entry, 2 journal, 0 feedback\n"
    assert run("export", "all.jsonl").exit_code == 1
    tried = run("import", "all.jsonl", "--from", "jsonl", "--store", "new.db", "--dry-run")
    assert tried.stdout.startswith("would restore 2 owners")
    assert run("list", "--user", "ann", "--store", "new.db").stdout == ""
    assert run("import", "all.jsonl", "--from", "jsonl", "--store", "new.db").exit_code == 0
    again = io.StringIO()
    with Memory("new.db", embedder=EMBEDDER) as memory:
        transfer.export(memory.store, again)
    assert again.getvalue() == Path("all.jsonl").read_text("utf-8")
    assert run("export", "-", "--store", "new.db").stdout == again.getvalue()
    twice = run("import", "all.jsonl", "--from", "jsonl", "--store", "new.db")
    assert (twice.exit_code, "already" in twice.stderr) == (1, True)
    run("export", "ann.jsonl", "--user", "ann")
    assert "1 owners" in run("export", "ann.jsonl", "--user", "ann", "--force").stdout


@pytest.mark.parametrize(
    ("content", "source", "told"),
    [
        ("{", "mem0", "not JSON"),
        ('[{"memory": "x"}]', "mem0", "m.json: record 1"),
        ("[]", "zep", "expected mem0, letta, langgraph, jsonl"),
        ("{}", "jsonl", "line 1"),
        ("\xff\xfe".encode("latin-1"), "mem0", "can't be read"),
        ("\xff\xfe".encode("latin-1"), "jsonl", "can't be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(run, content, source, told):
    Path("m.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run("import", "m.json", "--from", source)
    assert done.exit_code == 1
    assert told in done.stderr
    assert "Traceback" not in done.output


def test_a_file_that_is_not_there_is_refused_in_a_sentence(run):
    done = run("import", "nowhere.json", "--from", "mem0")
    assert (done.exit_code, "nowhere.json" in done.stderr) == (1, True)


@pytest.mark.parametrize("source", ["mem0", "jsonl"])
@pytest.mark.parametrize(
    ("file", "told"),
    [
        (".", ". is a folder; expected a"),
        ("nowhere.json", "there is no file nowhere.json; expected a"),
        ("junk.db", "junk.db can't be read: it is not UTF-8 text; expected a"),
        ("empty", "empty; expected"),
    ],
)
def test_what_is_no_file_of_text_is_refused_in_words(run, source, file, told):
    Path("junk.db").write_bytes(b"SQLite format 3\0" + bytes(range(128, 256)))
    Path("empty").touch()
    done = run("import", file, "--from", source)
    assert done.exit_code == 1 and told in done.stderr
    assert "Errno" not in done.stderr and "codec" not in done.stderr


def test_a_cut_export_is_refused_by_name_and_nothing_of_it_is_kept(run):
    run("add", "I have a dog")
    run("export", "e.jsonl")
    first, *rest = Path("e.jsonl").read_text("utf-8").splitlines(keepends=True)
    for part in ([first], [first, *rest[:-1]]):
        Path("part.jsonl").write_text("".join(part), "utf-8")
        done = run("import", "part.jsonl", "--from", "jsonl", "--store", "new.db")
        assert (done.exit_code, done.stdout) == (1, "")
        assert "memory-r1: part.jsonl: the file was cut off" in done.stderr
        assert run("list", "--store", "new.db").stdout == ""
    assert run("import", "e.jsonl", "--from", "jsonl", "--store", "new.db").exit_code == 0
    again = run("import", "e.jsonl", "--from", "jsonl", "--store", "new.db")
    assert "user 'me' has memories or messages in this store already" in again.stderr
    assert "memory-r1 forget me" in again.stderr and again.exit_code == 1
    assert "refused and nothing changes" in " ".join(run("import", "--help").stdout.split())


def test_an_export_goes_through_a_link_into_its_file(run):
    run("add", "I have a dog")
    Path("folder").mkdir()
    Path("new.jsonl").symlink_to(Path("folder", "new.jsonl"))
    assert run("export", "new.jsonl").exit_code == 0
    assert run("export", "new.jsonl").exit_code == 1
    assert run("export", "new.jsonl", "--force").exit_code == 0
    assert Path("new.jsonl").is_symlink()
    assert [path.name for path in Path("folder").iterdir()] == ["new.jsonl"]
    done = run("import", "folder/new.jsonl", "--from", "jsonl", "--store", "copy.db")
    assert done.exit_code == 0


@pytest.mark.parametrize("name", ["pipe", "to_pipe", "circle"])
@pytest.mark.parametrize("force", [["--force"], []])
def test_an_export_never_takes_the_place_of_what_is_no_file(run, name, force):
    run("add", "I have a dog")
    os.mkfifo("pipe")
    Path("to_pipe").symlink_to("pipe")
    Path("circle").symlink_to("circle")
    done = run("export", name, *force)
    assert done.exit_code == 1 and "or - for standard output" in done.stderr
    assert Path("pipe").is_fifo()
    assert Path("to_pipe").is_symlink() and Path("circle").is_symlink()


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (".", "memory-r1: . is a folder; expected a file"),
        ("nodir/x", "memory-r1: nodir/x can't be written: there is no folder "),
        ("nodir/../x/y", "memory-r1: nodir/../x/y can't be written: there is no folder "),
    ],
)
def test_an_export_that_cannot_be_written_says_why_in_words(run, file, told):
    run("add", "I have a dog")
    done = run("export", file, "--force")
    assert done.exit_code == 1 and told in done.stderr
    assert "Errno" not in done.stderr and ".part" not in done.stderr


@pytest.mark.parametrize("store", ["none.db", "sqlite:///none.db?synchronous=full"])
def test_a_store_that_is_not_there_is_neither_made_nor_called_sound(run, store):
    for words in (["export", "out.jsonl"], ["export", "-"], ["check"]):
        done = run(*words, "--store", store)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "there is no store at none.db" in done.stderr
    assert list(Path().iterdir()) == []
    assert run("check", "--store", "ram:").stdout == "sound\n"

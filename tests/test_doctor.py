"""What `memory-r1 doctor` sees of endpoints that work, and of those that don't."""

import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from model_server import Server, completion
from typer.testing import CliRunner

from memory_r1 import Memory
from memory_r1.doctor import examine
from memory_r1.errors import ModelUnavailable
from memory_r1.llm import ScriptedLLM
from memory_r1.serve.cli import app
from memory_r1.store import open_store

READY = completion('{"ready": true}')
NOWHERE = "http://127.0.0.1:1/v1"


@pytest.fixture
def server():
    server = Server()
    server.respond = lambda body: (200, READY)
    yield server
    server.close()


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "memory.db"
    with Memory(path) as memory:
        memory.add("I adopted a dog.", user_id="ann")
    return str(path)


def checks(*arguments, part):
    """The checks of one part, as (status, says and mend)."""
    return [
        (check.status, f"{check.says} -> {check.mend}")
        for check in examine(*arguments)
        if check.part.startswith(part)
    ]


def test_all_is_well_without_a_model(store):
    seen = examine(store)
    assert [check.status for check in seen] == ["ok"] * 5
    assert [check.part for check in seen] == [
        *("disk", "store", "outbox", "embedder", "extract, manage, answer")
    ]
    assert "wordllama-l2-supercat-256" in seen[1].says
    assert "no message waits" in seen[2].says
    assert "256 numbers" in seen[3].says and seen[3].milliseconds is not None


def run_sql(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def test_looking_writes_nothing(store, tmp_path):
    before = run_sql(store, "SELECT * FROM meta")
    examine(store)
    assert run_sql(store, "SELECT * FROM meta") == before
    [seen] = checks(str(tmp_path / "new.db"), part="store")
    assert seen[0] == "ok" and "not there yet" in seen[1]
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("a diary"), "another kind of file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: run_sql(path, "CREATE TABLE mine (x)"), "another program"),
    ],
)
def test_a_file_that_is_no_store_is_said_to_be(tmp_path, make, says):
    make(tmp_path / "memory.db")
    [(status, said)] = checks(str(tmp_path / "memory.db"), part="store")
    assert status == "failed" and says in said


def test_a_newer_schema_and_a_missing_folder_are_named(store, tmp_path):
    run_sql(store, "PRAGMA user_version = 99")
    [(status, said)] = checks(store, part="store")
    assert status == "failed" and "schema 99" in said and "pip install --upgrade" in said
    [(status, said)] = checks(str(tmp_path / "no" / "memory.db"), part="store")
    assert status == "failed" and "can't be written to" in said and "create the folder" in said


def test_a_store_that_cannot_be_written_is_found_out(store, monkeypatch):
    opened = open_store(store)

    def full(key, value):
        opened._run("INSERT INTO nowhere VALUES (1)")

    monkeypatch.setattr(opened, "set_meta", full)
    monkeypatch.setattr("memory_r1.doctor.open_store", lambda location: opened)
    [(status, said)] = checks(store, part="store")
    assert status == "failed" and "nothing of this transaction was kept" in said


@pytest.mark.parametrize(
    ("free", "status"), [(10_000_000, "failed"), (500_000_000, "warning"), (10**12, "ok")]
)
def test_a_disk_that_fills_up_is_told_before_it_is_full(store, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, free))
    [seen] = checks(store, part="disk")
    assert seen[0] == status and ("make room" in seen[1]) == (status != "ok")


def test_an_embedder_that_is_not_the_stores_is_named_with_both_ways_out(store, server):
    name = f"{server.url}#nomic"
    [(status, said)] = checks(store, None, name, part="store")
    assert status == "failed"
    assert "'wordllama-l2-supercat-256' (256 dimensions)" in said and "3 dimensions" in said
    assert f"memory-r1 reindex --embedder {name}" in said
    assert "MEMORY_R1_EMBEDDER=wordllama-l2-supercat-256" in said


def test_an_embedder_answers_or_fails_with_the_reason(store, server, monkeypatch):
    monkeypatch.setattr("memory_r1.embed.time.sleep", lambda seconds: None)
    [(status, said)] = checks(store, None, f"{server.url}#nomic", part="embedder")
    assert status == "ok" and "3 numbers" in said
    server.embed = lambda texts: (404, {"error": "no such model"})
    for name, says in (
        (f"{server.url}#nomic", "no such model"),
        (f"{NOWHERE}#nomic", "is it running"),
        ("gpt", "unknown embedder"),
    ):
        [(status, said)] = checks(store, None, name, part="embedder")
        assert status == "failed" and says in said


def test_a_service_that_works_is_reached_asked_and_timed(store, server):
    seen = [check for check in examine(store, f"{server.url}#m") if "manage" in check.part]
    assert [check.status for check in seen] == ["ok", "ok"]
    assert seen[0].says == "serves the model"
    assert seen[1].says == "replies and follows a JSON schema"
    assert seen[1].name == f"{server.url}#m" and seen[1].milliseconds > 0
    assert server.bodies[0]["response_format"]["type"] == "json_schema"


def test_a_server_without_schemas_works_and_is_said_to_have_none(store, server):
    server.respond = lambda body: (
        (400, {"error": "unknown field"}) if "response_format" in body else (200, READY)
    )
    _, (status, said) = checks(store, f"{server.url}#m", part="extract")
    assert status == "ok" and "takes no JSON schema" in said


def test_a_model_that_ignores_the_schema_is_a_warning(store, server):
    server.respond = lambda body: (200, completion("Sure, I am ready!"))
    _, (status, said) = checks(store, f"{server.url}#m", part="extract")
    assert status == "warning" and "Sure, I am ready!" in said and "response_format" in said


def test_a_model_that_is_not_served_is_named_with_those_that_are(store, server):
    server.respond = lambda body: (404, {"error": "model 'gpt' does not exist"})
    (warned, said), (failed, why) = checks(store, f"{server.url}#gpt", part="extract")
    assert (warned, failed) == ("warning", "failed")
    assert "lists m, n; not gpt" in said and "does not exist" in why


@pytest.mark.parametrize(
    ("llm", "says"),
    [
        (f"{NOWHERE}#m", "ConnectError"),
        (NOWHERE, "which model?"),
        ("./nowhere", "no model is called"),
    ],
)
def test_a_model_that_cannot_be_had_fails_at_once_with_the_reason(store, llm, says):
    part = "extract" if "#" in llm else "models"
    [(status, said)] = checks(store, llm, part=part)
    assert status == "failed" and says in said


def test_the_models_of_a_run_are_looked_at_one_by_one(store, server, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    roles = {"manage": f"{server.url}#m", "answer": f"{server.url}#n"}
    (run / "agents.json").write_text(json.dumps(roles))
    seen = [(c.part, c.name) for c in examine(store, str(run)) if c.part in (*roles, "extract")]
    assert seen == [
        ("extract", "rules"),
        *[("manage", f"{server.url}#m")] * 2,
        *[("answer", f"{server.url}#n")] * 2,
    ]


def test_the_bundled_model_is_loaded_and_replies(store):
    pytest.importorskip("torch", reason="local models need the extra [train]")
    [seen] = checks(store, "tiny-base", part="extract")
    assert seen == ("ok", "replies -> ")


def test_messages_that_wait_are_counted_with_the_reason_and_the_way_out(store):
    failing = ScriptedLLM([ModelUnavailable("the server is down")] * 2)
    with Memory(store, llm=failing) as memory:
        memory.add("I have a cat.", user_id="zoe")
        memory.add("I have a dog.", user_id="ann")
    [(status, said)] = checks(store, part="outbox")
    assert status == "warning"
    assert "2 deferred" in said and "the server is down" in said
    assert "memory-r1 retry --user ann (and of 1 more)" in said


def test_passwords_are_not_printed(store, server):
    url = server.url.replace("://", "://me:secret@")
    seen = examine("postgresql://me:secret@127.0.0.1:1/memory", f"{url}#m", f"{url}#nomic")
    assert "secret" not in repr(seen)
    assert "me:...@" in repr(seen)
    assert seen[0].part == "store" and seen[0].status == "failed"


def run(*arguments):
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def test_the_command_prints_a_line_each_and_fails_when_something_does(store, server):
    well = run("--store", store, "--llm", f"{server.url}#m")
    assert well.exit_code == 0
    assert len(well.stdout.splitlines()) == 6 and "ok       store     " in well.stdout
    ill = run("--store", store, "--llm", f"{NOWHERE}#m", "--json")
    assert ill.exit_code == 1
    assert [check["status"] for check in json.loads(ill.stdout)] == [*["ok"] * 4, "failed"]


def test_the_command_says_what_to_do(store, server):
    ill = run("--store", store, "--embedder", f"{server.url}#nomic")
    assert ill.exit_code == 1
    assert "-> use the first with MEMORY_R1_EMBEDDER=" in ill.stdout

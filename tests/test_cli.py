"""The command line: answers on stdout, explanations on stderr, no tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memory_r1.llm.openai import OpenAILLM
from memory_r1.memory import Memory
from memory_r1.serve.cli import app
from memory_r1.types import Owner


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("USER", "STORE", "LLM", "EMBEDDER"):
        monkeypatch.delenv(f"MEMORY_R1_{name}", raising=False)

    def run(*arguments: str, code: int = 0, typed: str | None = None):
        result = CliRunner().invoke(app, arguments, input=typed)
        assert result.exit_code == code, result.output + repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return run


def test_what_was_said_is_answered_with_its_memory(run):
    added = run("add", "I adopted a dog, Rex", "--at", "2023-05-07")
    assert " ADD " in added.stdout
    asked = run("ask", "When did I adopt a dog?")
    assert asked.stdout == "7 May 2023\n"
    assert "I adopted a dog, Rex" in asked.stderr and "no language model" in asked.stderr
    assert "Rex" in run("search", "dog").stdout


def test_answers_are_json_when_asked_for(run):
    row = json.loads(run("add", "-", "--json", typed="I have a dog").stdout)["rows"][0]
    assert row["op"] == "ADD" and row["before"] is None
    assert json.loads(run("ask", "Who has a dog?", "--json").stdout)["known"] is True
    (hit,) = json.loads(run("search", "dog", "--json").stdout)
    (entry,) = json.loads(run("list", "--json").stdout)
    (version,) = json.loads(run("history", entry["id"], "--json").stdout)
    (journaled,) = json.loads(run("journal", "--json").stdout)
    assert hit["entry"]["id"] == entry["id"] == version["id"] == journaled["entry_id"]
    assert json.loads(run("undo", row["id"], "--json").stdout)[0]["op"] == "UNDO"
    assert json.loads(run("list", "--json").stdout) == []
    assert json.loads(run("retry", "--json").stdout)["rows"] == []
    assert json.loads(run("reindex", "--json").stdout) == {"vectors": 0}


def test_an_operation_is_undone_and_the_journal_shows_it(run):
    row = run("add", "I have a dog").stdout.split()[0]
    assert "UNDO" in run("undo", row).stdout
    assert run("list").stdout == "" and "empty" in run("list").stderr
    assert "(undone)" in run("journal").stdout


def test_users_are_apart_and_can_be_forgotten(run):
    run("add", "I like tea", "--user", "mia")
    assert run("list").stdout == ""
    run("forget", "mia", typed="n\n", code=1)
    assert "tea" in run("list", "--user", "mia").stdout
    assert "1 entries" in run("forget", "mia", "--yes").stdout
    assert run("journal", "--user", "mia").stdout == ""


def test_failures_are_one_sentence_on_stderr(run, tmp_path):
    (tmp_path / "text.db").write_text("this is no database " * 50)
    for arguments in (
        ["undo", "nothing"],
        ["history", "nothing"],
        ["add", "x", "--llm", "openai:"],
        ["add", "x", "--at", "soon"],
        ["list", "--store", "text.db"],
        ["list", "--store", "nowhere://x"],
        ["list", "--user", ""],
        ["reindex", "--embedder", "nonsense"],
    ):
        result = run(*arguments, code=1)
        assert result.stdout == "" and result.stderr.startswith("memory-r1: ")
        assert result.stderr.count("\n") == 1


def test_a_wrong_command_line_is_exit_code_2(run):
    for arguments in (["bogus"], ["ask"], ["search", "x", "--k", "0"], ["add", "x", "--bogus"]):
        assert run(*arguments, code=2).stdout == ""


def test_a_deferred_turn_is_told_and_kept(run, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    patience = OpenAILLM.__init__.__kwdefaults__
    monkeypatch.setitem(patience, "retries", 0)
    result = run("add", "I have a dog", "--llm", "openai:m", code=1)
    assert "deferred" in result.stderr and "127.0.0.1:9" in result.stderr
    assert "dog" in run("retry").stdout


def test_an_interrupt_ends_with_a_sentence_and_130(run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "add", interrupted)
    assert "interrupted" in run("add", "x", code=130).stderr


def test_what_was_said_to_a_slow_model_is_kept_by_an_interrupt(run, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(OpenAILLM, "complete", interrupted)
    stopped = run("add", "I have a dog", "--llm", "openai:m", code=130)
    assert "kept; `memory-r1 retry`" in stopped.stderr
    assert "dog" in run("retry").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["ask", "dog"], ["export", "-"]])
def test_an_output_that_is_full_is_a_sentence(run, command):
    run("add", "I have a dog")
    with open("/dev/full", "w") as full:
        program = [sys.executable, "-m", "memory_r1.serve.cli", *command]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "memory-r1: [Errno 28] No space left" in done.stderr


@pytest.mark.parametrize("name", ["my model", "foo/bar/baz", "ftp://x/v1#m", "a" * 200])
def test_what_can_be_no_model_is_refused_before_anything_is_kept(run, name):
    for command in (["add", "tea"], ["ask", "tea"], ["doctor"]):
        told = run(*command, "--llm", name, code=1)
        assert "can't be a Hugging Face id. Expected rules" in told.output
    assert "empty" in run("list").stderr


def test_a_store_at_home_is_there(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("add", "I have a dog", "--store", "~/mine.db")
    assert "sound" in run("check", "--store", "~/mine.db").stdout
    assert "no store at" in run("check", "--store", "sqlite:///~/no.db", code=1).stderr


def test_owners_are_named_in_words(run):
    run("add", "I have a dog")
    for command in (["undo", "999"], ["delete", "abc"], ["history", "abc"]):
        assert "of user 'me'" in run(*command, "--user", "me", code=1).stderr
    assert str(Owner("ann", run_id="7")) == "user 'ann', run '7'"


def test_the_program_runs_without_torch_and_quickly():
    code = (
        "import sys; from memory_r1.serve import cli; sys.argv = ['memory-r1', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".") == 2


def test_every_command_has_help(run):
    shown = run("--help").stdout
    for verb in ("add", "search", "ask", "list", "history", "journal", "undo", "retry", "forget"):
        assert f"  {verb} " in shown
        assert "Usage" in run(verb, "--help").stdout

"""`memory-r1 world` and `memory-r1 data`."""

import json

import pytest
from typer.testing import CliRunner

from memory_r1.serve.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output + repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return run


def test_a_world_is_written_and_looked_into(run, tmp_path):
    said = run("world", "--out", "w.json", "--seed", "7", "--dialogues", "2").stdout
    assert said.startswith("w.json: 2 dialogues, ") and "questions" in said
    shown = run("data", "w.json").stdout
    assert "world-train-7-001" in shown and "0 irregular records" in shown
    assert "accumulate: " in shown


def test_the_dials_reach_the_world(run, tmp_path):
    dials = "--dialogues 1 --sessions 2 --threads 1 --friends 0 --chat 1 --absent 7 --words unseen"
    counts = json.loads(run("world", "--out", "w.json", *dials.split(), "--json").stdout)
    assert counts["dialogues"] == 1
    (sample,) = json.loads((tmp_path / "w.json").read_text("utf-8"))
    assert sample["world"]["words"] == "unseen"
    assert "session_2" in sample["conversation"] and "session_3" not in sample["conversation"]
    told = len(sample["world"]["events"])
    assert counts["turns"] == 2 + 2 * told
    assert sum(q["phenomenon"] == "absent" for q in sample["qa"]) == 7


def test_data_as_json_counts_what_world_says_it_wrote(run):
    written = json.loads(run("world", "--out", "w.json", "--dialogues", "3", "--json").stdout)
    held = json.loads(run("data", "w.json", "--json").stdout)
    assert len(held["dialogues"]) == written["dialogues"] == 3
    assert sum(d["turns"] for d in held["dialogues"]) == written["turns"]
    assert sum(d["questions"] for d in held["dialogues"]) == written["questions"]
    assert held["irregularities"] == []


def test_a_file_is_written_over_only_when_forced(run, tmp_path):
    (tmp_path / "w.json").write_text("mine")
    refused = run("world", "--out", "w.json", code=1)
    assert "exists already" in refused.stderr and "--force" in refused.stderr
    assert (tmp_path / "w.json").read_text() == "mine"
    run("world", "--out", "w.json", "--dialogues", "1", "--force")
    assert (tmp_path / "w.json").read_text().startswith("[")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("world --out w.json --words known", "expected 'train', 'unseen' or 'mixed'"),
        ("world --out w.json --threads 21", "world.threads is 21; expected 1 to 20"),
        ("world --out w.json --friends 90 --words unseen", "fewer world.friends"),
        ("world --out nowhere/w.json", "can't be written: No such file"),
        ("data w.json", "no file w.json"),
        ("data .", "can't be read"),
    ],
)
def test_failures_are_one_sentence_on_stderr(run, tmp_path, arguments, says):
    result = run(*arguments.split(), code=1)
    assert result.stdout == "" and result.stderr.startswith("memory-r1: ")
    assert result.stderr.count("\n") == 1 and says in result.stderr
    assert not (tmp_path / "w.json").exists()


def test_a_wrong_command_line_is_exit_code_2(run):
    for arguments in (["world"], ["data"], ["world", "--out", "w.json", "--seed", "x"]):
        assert run(*arguments, code=2).stdout == ""


LONG = {
    "question_id": "q1",
    "question_type": "multi-session",
    "question": "How many?",
    "answer": 2,
    "question_date": "2023/06/02 (Fri) 10:00",
    "haystack_dates": ["2023/05/20 (Sat) 02:21"],
    "haystack_session_ids": ["answer_1"],
    "haystack_sessions": [[{"role": "user", "content": "Two cats.", "has_answer": True}]],
    "answer_session_ids": ["answer_1"],
}
MSC = {
    "metadata": {"initial_data_id": "v1"},
    "self_instruct": {"B": "What is my cat called?", "A": "Tom!"},
    "previous_dialogs": [{"dialog": [{"text": "My cat is Tom."}], "personas": ["I have a cat"]}],
    "dialog": None,
}


@pytest.mark.parametrize(("format", "record"), [("longmemeval", LONG), ("msc", MSC)])
def test_every_benchmark_is_looked_into_and_rewritten(run, tmp_path, format, record):
    (tmp_path / "x.json").write_text(json.dumps(record), "utf-8")
    shown = run("data", "x.json", "--format", format).stdout
    assert "test: 1 in 1 dialogues" in shown and "questions by group:  " in shown
    facts = json.loads(run("data", "x.json", "--json").stdout)
    assert facts["format"] == format and len(facts["dialogues"]) == 1
    said = run("data", "x.json", "--to-jsonl", "x.jsonl").stdout
    assert said.startswith("x.jsonl: 1 dialogues, 1 turns, 1 questions, ")
    again = json.loads(run("data", "x.jsonl", "--format", format, "--json").stdout)
    assert again["groups"] == facts["groups"] and again["dialogues"] == facts["dialogues"]


def test_many_irregular_records_are_listed_only_when_asked_for(run, tmp_path):
    many = [{**LONG, "question_id": f"q{i}"} for i in range(30)]
    (tmp_path / "x.json").write_text(json.dumps(many), "utf-8")
    short, long = (run("data", "x.json", *more).stdout for more in ((), ("--all",)))
    assert "30 irregular records" in short and "... 10 more like the last" in short
    assert "q29" not in short and long.count("the answer 2 is not a text") == 30
    complete = json.loads(run("data", "x.json", "--json").stdout)
    assert len(complete["irregularities"]) == len(complete["dialogues"]) == 30


def test_a_file_of_another_benchmark_is_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([LONG]), "utf-8")
    said = run("data", "x.json", "--format", "locomo", code=1).stderr
    assert said.startswith("memory-r1: x.json is a LongMemEval file, not LoCoMo; LoCoMo is ")
    assert (
        "did you mean 'longmemeval'" in run("data", "x.json", "--format", "longmem", code=1).stderr
    )

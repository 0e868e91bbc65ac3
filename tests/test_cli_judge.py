"""`memory-r1 judge`, against a real HTTP server that plays the judge."""

import json

import pytest
from model_server import Server, completion
from typer.testing import CliRunner

from memory_r1.bench.folder import RunFolder
from memory_r1.bench.score import Prediction, compare, groups, measures
from memory_r1.data import Question
from memory_r1.grading import instruction_hash
from memory_r1.serve.cli import app
from memory_r1.types import Answer

ANSWERS = {"q1": "in Porto", "q2": "Lisbon", "q3": "She lives in Porto now", "q4": ""}


@pytest.fixture
def server(monkeypatch):
    for name in ("RPM", "TPM"):
        monkeypatch.delenv(f"MEMORY_R1_{name}", raising=False)
    made = Server()
    made.respond = grade
    yield made
    made.close()


def grade(body):
    """Says CORRECT where the answer names Porto; the lenient one takes any city."""
    graded = body["messages"][-1]["content"].rpartition("Answer to grade: ")[2]
    right = "Porto" in graded or body["model"] == "lenient"
    verdict = {"reason": "by the city", "verdict": "CORRECT" if right else "WRONG"}
    return 200, completion(json.dumps(verdict))


@pytest.fixture
def run(tmp_path):
    """A finished run of four answers."""
    folder = RunFolder(tmp_path / "run", {"benchmark": "locomo", "version": "x"})
    rows = [
        compare(
            Question(id, "d1", "Which city?", "Porto", (), 4, groups=("4 single-hop",)),
            Answer(said),
        )
        for id, said in ANSWERS.items()
    ]
    folder.add_predictions(rows)
    folder.write_scores(
        {
            "system": "rules",
            "n": 4,
            "overall": measures(rows),
            "groups": groups(rows),
            "judge": None,
        }
    )
    return folder.path


def command(*arguments, code=0):
    result = CliRunner().invoke(app, ["judge", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_a_run_is_judged_by_a_service(run, server):
    shown = command(run, "--judge", f"{server.url}#strict")
    instruction = instruction_hash("locomo")
    assert shown.stdout.splitlines() == [
        f"J 50.0 (95%: 0.0 to 100.0), 0.0% unscored, by strict, instruction {instruction}",
        "F1 25.0, 2.0 words per answer, 4 answers",
    ]
    assert len(server.bodies) == 3  # an empty answer asks nobody
    assert {body["temperature"] for body in server.bodies} == {0.0}
    assert server.bodies[0]["response_format"]["type"] == "json_schema"
    scores = json.loads((run / "scores.json").read_text())
    assert scores["overall"]["judge"] == scores["groups"]["4 single-hop"]["judge"] == 50.0
    assert scores["judge"] == {"name": "strict", "prompt_hash": instruction, "unscored": 0.0}
    assert scores["system"] == "rules"


def test_a_second_judge_shows_how_far_the_two_agree(run, server):
    shown = command(
        run, "--judge", f"{server.url}#strict", "--second", f"{server.url}#lenient", "--json"
    )
    found = json.loads(shown.stdout)
    assert found["judge"]["name"] == "strict" and found["overall"]["judge"] == 50.0
    assert found["second"]["judge"]["name"] == "lenient"
    assert found["second"]["overall"]["judge"] == 75.0
    assert found["agreement"]["agreed"] == 75.0 and found["agreement"]["kappa"] == 0.5
    assert json.loads((run / "scores.json").read_text())["judge"]["name"] == "strict"
    again = command(run, "--judge", f"{server.url}#strict", "--second", f"{server.url}#lenient")
    assert "agreement 75.0% of 4 that both scored, Cohen's kappa 0.50" in again.stdout
    assert len(server.bodies) == 6  # 3 each, and none for the second command


def test_a_judge_that_rambles_leaves_answers_unscored(run, server):
    server.respond = lambda body: (200, completion("Who can say?"))
    shown = command(run, "--judge", f"{server.url}#mumbler")
    assert shown.stdout.startswith("J 0.0 (95%: 0.0 to 0.0), 75.0% unscored")


def test_a_judge_that_goes_away_says_what_is_kept(run, server):
    server.respond = lambda body: (404, {"error": "no such model"})
    failed = command(run, "--judge", f"{server.url}#gone", code=1)
    assert "1 of 4 answers are judged, and kept" in failed.stderr
    assert json.loads((run / "scores.json").read_text())["judge"] is None
    server.respond = grade
    assert command(run, "--judge", f"{server.url}#gone").stdout.startswith("J 50.0")


def test_an_unfinished_run_is_judged_and_says_that_it_is_unfinished(run, server):
    (run / "scores.json").unlink()
    shown = command(run, "--judge", f"{server.url}#strict")
    assert shown.stdout.startswith("J 50.0") and "not finished" in shown.stderr
    assert not (run / "scores.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--judge", "rules"), "rules is none"),
        (("--judge", "openai:"), "which model?"),
        (("--judge", "http://127.0.0.1:9/v1#a", "--second", "http://localhost:9/v1#a"), "same"),
    ],
)
def test_judges_that_cannot_be_meant_are_refused(run, arguments, said):
    assert said in command(run, *arguments, code=1).stderr
    assert not (run / "judgements.jsonl").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    failed = command(tmp_path, "--judge", "http://127.0.0.1:9/v1#a", code=1)
    assert "is no folder of a benchmark run" in failed.stderr


def test_what_is_judged_is_a_prediction_as_it_was_written(run):
    (row, *_) = (json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines())
    assert Prediction(**row).as_json() == row

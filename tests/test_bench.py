"""The benchmark's way from a file of dialogues to scores, with resuming and refusals."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from memory_r1.bench.baselines import System, fingerprint, open_system
from memory_r1.bench.run import Plan, run
from memory_r1.errors import ConfigError, DataError, MemoryR1Error, ModelUnavailable
from memory_r1.llm import Agents
from memory_r1.llm.scripted import ScriptedLLM
from memory_r1.serve import commands_bench
from memory_r1.store import open_store
from memory_r1.types import Owner

RULES = System("rules", Agents())


def dialogue(sample_id="talk-1", name="Ines"):
    return {
        "sample_id": sample_id,
        "conversation": {
            "speaker_a": name,
            "speaker_b": "Olaf",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": name, "dia_id": "D1:1", "text": f"{name} keeps bees on the roof."},
                {"speaker": "Olaf", "dia_id": "D1:2", "text": "I paint ships."},
            ],
            "session_2_date_time": "9:10 am on 2 June, 2023",
            "session_2": [
                {"speaker": name, "dia_id": "D2:1", "text": "The honey was sold in Porto."}
            ],
        },
        "qa": [
            {
                "question": f"What does {name} keep on the roof?",
                "answer": "bees",
                "evidence": ["D1:1"],
                "category": 4,
            },
            {
                "question": "Where was the honey sold?",
                "answer": "Porto",
                "evidence": ["D2:1"],
                "category": 4,
            },
            {
                "question": "What does Olaf paint?",
                "answer": "ships",
                "evidence": ["D1:2"],
                "category": 1,
            },
        ],
    }


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([dialogue(), dialogue("talk-2", "Vera")]))
    return path


@pytest.fixture
def plan(data, tmp_path):
    def make(**fields):
        return Plan(**({"benchmark": "locomo", "data": data, "out": tmp_path / "run"} | fields))

    return make


def predictions(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def answering(prompt):
    """A model that extracts the message, adds the fact, and answers 'bees' to everything."""
    system, user = prompt.text.split("\n\n", 1)
    if 'Reply with JSON only: {"facts"' in prompt.text:
        return json.dumps({"facts": [{"text": user[-60:], "quote": ""}]})
    if "New facts:" in user:
        return json.dumps({"operations": [{"op": "ADD", "text": user[-60:]}]})
    return "Memories: 0\n**Answer:** bees"


def modelled(llm):
    return System("scripted", Agents(llm, llm, llm))


def test_rules_play_a_benchmark_from_file_to_scores(plan):
    scores = run(plan(), RULES)
    rows = predictions(plan().out)
    assert scores == json.loads((plan().out / "scores.json").read_text())
    assert scores["n"] == len(rows) == 6
    assert scores["overall"]["recall@60"] == 100.0
    assert scores["bank"]["operations"] == {"ADD": 6}
    assert set(scores["groups"]) == {
        "1 multi-hop (paper: single-hop)",
        "4 single-hop (paper: open-domain)",
    }
    assert set(scores["latency"]) == {"manager", "search", "answer"}
    assert {"question_id", "gold", "prediction", "retrieved", "used", "em", "f1"} <= rows[0].keys()
    assert {"latency", "tokens", "prompt_hash", "category", "dialogue_id"} <= rows[0].keys()
    assert rows[0]["retrieved"][0]["source_turns"] == ["D1:1"]


def test_a_model_plays_all_roles_in_batches(plan):
    llm = ScriptedLLM(answering)
    scores = run(plan(), modelled(llm))
    assert scores["players"] == {"extract": "scripted", "manage": "scripted", "answer": "scripted"}
    assert scores["overall"]["em"] == 33.3
    assert len(llm.prompts) == 6 + 6 + 6
    assert predictions(plan().out)[0]["prompt_hash"]


def test_a_dialogue_never_sees_the_memories_of_another(plan):
    run(plan(), RULES)
    for name in ("talk-1", "talk-2"):
        store = open_store(plan().out / "banks" / f"{name}.db")
        assert len(store.entries(Owner(name))) == 3
        assert [owner.user_id for owner in store.owners()] == [name]
        store.close()


def test_a_finished_run_is_not_played_again(plan):
    first = run(plan(), modelled(ScriptedLLM(answering)))
    silent = ScriptedLLM([])
    assert run(plan(), modelled(silent)) == first
    assert not silent.prompts


def test_a_run_that_lost_its_model_goes_on_where_it_was(plan):
    calls = 0

    def dying(prompt):
        nonlocal calls
        calls += 1
        if calls > 7:
            raise ModelUnavailable("the server went away")
        return answering(prompt)

    with pytest.raises(ModelUnavailable):
        run(plan(batch=2), modelled(ScriptedLLM(dying)))
    scores = run(plan(batch=2), modelled(ScriptedLLM(answering)))
    assert scores["bank"]["deferred_turns"] == 0
    assert scores["bank"]["operations"] == {"ADD": 6}
    fresh = run(plan(batch=2, out=plan().out.with_name("fresh")), modelled(ScriptedLLM(answering)))
    assert scores["overall"] == fresh["overall"]


def test_a_run_killed_among_the_questions_keeps_those_it_had(plan):
    done = 0

    def progress(stage, count, total):
        nonlocal done
        if stage == "answer" and count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(batch=2), modelled(ScriptedLLM(answering)), progress=progress)
    kept = predictions(plan().out)
    assert len(kept) == 4
    llm = ScriptedLLM(answering)
    run(plan(batch=2), modelled(llm))
    assert len(llm.prompts) == 2
    assert predictions(plan().out)[:4] == kept


def test_a_torn_last_line_is_asked_again(plan):
    before = run(plan(), RULES)
    path = plan().out / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    after = run(plan(), RULES)
    assert len(predictions(plan().out)) == 6
    assert after["overall"] == before["overall"]


def test_a_broken_line_inside_is_refused_by_its_number(plan):
    run(plan(), RULES)
    path = plan().out / "predictions.jsonl"
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(DataError, match="line 1 is not JSON"):
        run(plan(), RULES)


def test_lost_banks_are_built_again(plan):
    before = run(plan(), RULES)
    for path in (plan().out / "banks").iterdir():
        path.unlink()
    assert run(plan(), RULES)["bank"] == before["bank"]


def test_a_larger_limit_goes_on_with_the_same_folder(plan):
    assert run(plan(limit=2), RULES)["n"] == 2
    assert run(plan(limit=4), RULES)["n"] == 4
    assert len(predictions(plan().out)) == 4


@pytest.mark.parametrize("change", [{"system": "tiny"}, {"k": 7}, {"split": "all"}])
def test_another_run_in_the_same_folder_is_refused(plan, change):
    run(plan(), RULES)
    with pytest.raises(ConfigError, match=f"{next(iter(change))} was .* and is now"):
        run(plan(**change), RULES)


def test_changed_data_in_the_same_folder_is_refused(plan, data):
    run(plan(), RULES)
    data.write_text(json.dumps([dialogue("talk-3")]))
    with pytest.raises(ConfigError, match="data_sha256 was"):
        run(plan(), RULES)


def test_a_retrained_model_is_another_system(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"more": 1}')
    assert fingerprint(str(tmp_path)) != before
    assert str(tmp_path) not in before


def test_a_manager_that_talks_nonsense_is_counted_and_the_run_finishes(plan):
    def nonsense(prompt):
        return (
            "as an assistant I would rather not"
            if "New facts:" in prompt.text
            else answering(prompt)
        )

    scores = run(plan(), modelled(ScriptedLLM(nonsense)))
    assert scores["bank"]["deferred_turns"] == 6
    assert scores["n"] == 6


def test_operations_are_compared_with_the_worlds_labels(tmp_path, plan):
    path = tmp_path / "world.json"
    event = {"dia_id": "D1:1", "phenomenon": "new", "op": "ADD", "target": "", "text": "A"}
    other = {
        "dia_id": "D2:1",
        "phenomenon": "overwrite",
        "op": "UPDATE",
        "target": "A",
        "text": "B",
    }
    path.write_text(json.dumps([dialogue() | {"world": {"events": [event, other]}}]))
    scores = run(plan(benchmark="world", data=path), RULES)
    assert scores["bank"]["by_phenomenon"] == {
        "new": {"n": 1, "right": 100.0, "right_entry": None, "operations": {"ADD": 1}},
        "overwrite": {"n": 1, "right": 0.0, "right_entry": None, "operations": {"ADD": 1}},
    }
    assert scores["bank"]["right_entry"] is None


def test_the_full_context_shows_every_turn(plan):
    llm = ScriptedLLM(answering)
    scores = run(plan(system="full"), System("full", Agents(answer=llm), k=1_000_000))
    assert scores["bank"]["operations"] == {"ADD": 6}
    assert all(len(row["retrieved"]) == 3 for row in predictions(plan().out))


@pytest.mark.parametrize("name", ["rag", "full"])
def test_a_baseline_that_reads_needs_a_reader(name):
    with pytest.raises(ConfigError, match="--answer"):
        open_system(name)


def test_manager_and_answer_replace_a_part_of_the_system():
    url = "http://localhost:9/v1#"
    system = open_system("rules", manager=f"{url}keeper", answer=f"{url}speaker")
    assert [system.players[role] for role in ("extract", "manage", "answer")] == [
        system.agents.manage.name,
        system.agents.manage.name,
        system.agents.answer.name,
    ]
    assert "speaker" in system.players["answer"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": 0}, "--limit is 0"),
        ({"batch": 0}, "--batch is 0"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"benchmark": "squad"}, "unknown benchmark 'squad'"),
        ({"k": 0}, "'k' is 0"),
        ({"data": Path("nowhere.json")}, "no file nowhere.json"),
        ({"split": "train"}, "no dialogue in split 'train'"),
    ],
)
def test_a_plan_that_cannot_be_played_says_why(plan, fields, message):
    with pytest.raises(MemoryR1Error, match=message):
        run(plan(**fields), RULES)
    assert not plan().out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversation": {"speaker_a": "A", "speaker_b": "B"}}, "'talk-1' is empty"),
        ({"qa": []}, "asks no question"),
    ],
)
def test_an_empty_dialogue_says_so(tmp_path, plan, change, message):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([dialogue() | {"qa": []} | change]))
    with pytest.raises(DataError, match=message):
        run(plan(data=path), RULES)


@pytest.fixture
def command():
    app = typer.Typer()
    commands_bench.register(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_tables(command, data, tmp_path):
    result = command("locomo", "--data", data, "--out", tmp_path / "o")
    assert result.exit_code == 0
    assert "single-hop (open-domain)" in result.stdout
    assert "recall" not in result.stderr


def test_the_command_prints_the_scores_as_json(command, data, tmp_path):
    result = command("locomo", "--data", data, "--out", tmp_path / "o", "--json", "--limit", "1")
    assert json.loads(result.stdout) == json.loads((tmp_path / "o" / "scores.json").read_text())


def test_an_interrupted_command_says_how_to_go_on(command, data, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("memory_r1.bench.run.run", interrupted)
    result = command("locomo", "--data", data, "--out", tmp_path / "o")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


@pytest.mark.data
def test_rules_keep_their_recall_on_a_real_dialogue(tmp_path):
    """One LoCoMo dialogue (validation); the whole test split is a run file's business."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEMORY_R1_DATA", default))
    path = folder / "locomo10.json"
    if not path.exists():
        pytest.skip(f"no locomo10.json in {folder}; set MEMORY_R1_DATA")
    scores = run(Plan("locomo", path, tmp_path / "o", split="validation"), RULES)
    assert scores["n"] == 81
    assert scores["overall"]["recall@60"] > 80

"""The benchmark's way from a file of dialogues to scores, with resuming and refusals."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from model_server import Server, completion
from typer.testing import CliRunner

from memory_r1.bench.plan import Plan
from memory_r1.bench.rehearsal import rehearse
from memory_r1.bench.run import Prices, run
from memory_r1.bench.systems import Options, System, open_system
from memory_r1.errors import ConfigError, DataError, MemoryR1Error, ModelUnavailable
from memory_r1.llm import Agents
from memory_r1.llm.open import fingerprint
from memory_r1.llm.scripted import ScriptedLLM
from memory_r1.serve import commands_bench
from memory_r1.store import open_store
from memory_r1.types import Owner, Prompt

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


def test_a_run_stopped_among_the_questions_keeps_those_it_had(plan):
    def progress(stage, count, total, note):
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


def test_manager_and_answer_replace_a_part_of_the_system():
    url = "http://localhost:9/v1#"
    system = open_system("rules", Options(manager=f"{url}keeper", answer=f"{url}speaker"))
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
        ({"protocol": "live"}, "unknown protocol 'live'"),
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


class Paid(ScriptedLLM):
    """A model whose replies may be kept; what it was asked is in `prompts`."""

    identity = "paid"

    def __init__(self, reply=answering):
        super().__init__(reply, name="paid")

    def complete(self, prompts, **how):
        return [
            replace(reply, prompt_tokens=100, completion_tokens=10)
            for reply in super().complete(prompts, **how)
        ]


def test_another_run_pays_for_nothing_that_is_known(plan, tmp_path):
    cache = tmp_path / "cache"
    first = run(plan(), modelled(Paid()), cache=cache)
    again = Paid()
    second = run(plan(out=tmp_path / "second"), modelled(again), cache=cache)
    assert not again.prompts
    assert [first[part] for part in ("overall", "bank", "cost")] == [
        second[part] for part in ("overall", "bank", "cost")
    ]
    assert second["latency"]["manager"] == first["latency"]["manager"]
    assert len(list((cache / "banks").glob("*.db"))) == 2


def test_another_reader_pays_only_for_its_answers(plan, tmp_path):
    cache = tmp_path / "cache"
    keeper = Paid()
    run(plan(), System("a", Agents(keeper, keeper, keeper)), cache=cache)
    reader = Paid()
    reader.identity = "reader"
    other = System("b", Agents(silent := Paid(), silent, reader))
    scores = run(plan(out=tmp_path / "second"), other, cache=cache)
    assert not silent.prompts
    assert len(reader.prompts) == 6
    assert scores["bank"]["operations"] == {"ADD": 6}


def test_a_changed_dialogue_is_built_anew(plan, data, tmp_path):
    cache = tmp_path / "cache"
    run(plan(), modelled(Paid()), cache=cache)
    talks = json.loads(data.read_text())
    talks[1]["conversation"]["session_1"][0]["text"] = "Vera keeps goats on the roof."
    data.write_text(json.dumps(talks))
    llm = Paid()
    run(plan(out=tmp_path / "second"), modelled(llm), cache=cache)
    assert 0 < len(llm.prompts) < 18
    assert all("goats" in prompt.text or "Vera" in prompt.text for prompt in llm.prompts)


def test_the_cost_is_what_the_run_takes_also_after_a_stop(plan):
    def stop(stage, done, total, note):
        if stage == "remember" and done == 4:
            raise KeyboardInterrupt

    notes = []
    prices = Prices(1.0, 10.0)
    with pytest.raises(KeyboardInterrupt):
        run(plan(), modelled(Paid()), prices=prices, progress=stop)
    scores = run(
        plan(), modelled(Paid()), prices=prices, progress=lambda *seen: notes.append(seen[3])
    )
    assert scores["cost"] == {
        "calls": 18,
        "prompt_tokens": 1800,
        "completion_tokens": 180,
        "dollars": 0.0036,
    }
    assert notes[-1] == "18 calls, 1,980 tokens, $0.00"


@pytest.fixture
def service():
    """A real server that answers as `answering` does."""
    server = Server()

    def respond(body):
        text = "\n\n".join(message["content"] for message in body["messages"])
        return 200, completion(answering(Prompt((("user", text),))))

    server.respond = respond
    yield server
    server.close()


def test_a_service_is_asked_by_several_threads_with_the_same_result(plan, service, tmp_path):
    system = f"{service.url}#m"
    together = run(plan(system=system), open_system(system))
    alone = run(plan(system=system, jobs=1, out=tmp_path / "alone"), open_system(system))
    assert together["overall"] == alone["overall"]
    assert together["bank"]["operations"] == alone["bank"]["operations"] == {"ADD": 6}
    assert len(service.bodies) == 36


def test_a_failing_service_stops_all_threads_and_the_run_goes_on_later(plan, service):
    system = f"{service.url}#m"
    answers, served = service.respond, iter(range(100))
    service.respond = lambda body: answers(body) if next(served) < 9 else (401, {"error": "no"})
    with pytest.raises(ModelUnavailable, match="401"):
        run(plan(system=system), open_system(system))
    service.respond = answers
    scores = run(plan(system=system), open_system(system))
    assert scores["bank"]["operations"] == {"ADD": 6}
    assert scores["n"] == 6
    assert len(predictions(plan().out)) == 6


def test_streaming_shows_what_was_known_after_each_session(plan):
    scores = run(plan(protocol="stream", every=1), RULES)
    rows = predictions(plan().out)
    assert [(row["question_id"], row["sessions"]) for row in rows[:2]] == [
        ("talk-1#0", 1),
        ("talk-1#2", 1),
    ]
    assert [point["sessions"] for point in scores["curve"]] == [1, 2]
    assert [point["n"] for point in scores["curve"]] == [4, 6]
    assert [point["memories"] for point in scores["curve"]] == [2.0, 3.0]
    assert (scores["n"], len(rows)) == (6, 10)


def test_a_bank_that_is_asked_early_does_not_know_the_end(plan):
    run(plan(protocol="stream", every=1), RULES)
    early = [row for row in predictions(plan().out) if row["sessions"] == 1]
    shown = {turn for row in early for entry in row["retrieved"] for turn in entry["source_turns"]}
    assert shown == {"D1:1", "D1:2"}


def test_what_was_right_and_is_wrong_later_is_forgotten(plan):
    """The model loses what it knew when the second session comes."""

    def forgetful(prompt):
        if "**Answer:**" in prompt.text:
            return f"**Answer:** {'nothing' if 'honey' in prompt.text else 'bees'}"
        return answering(prompt)

    keeper = System("forgetful", Agents(answer=ScriptedLLM(forgetful)))
    first, last = run(plan(protocol="stream", every=1), keeper)["curve"]
    assert (first["em"], first["kept"]) == (50.0, None)
    assert (last["em"], last["kept"]) == (0.0, 0.0)


def test_a_streaming_run_goes_on_where_it_was(plan):
    def stop(stage, done, total, note):
        if stage == "answer" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(protocol="stream", every=1, batch=1), RULES, progress=stop)
    scores = run(plan(protocol="stream", every=1, batch=1), RULES)
    fresh = run(plan(protocol="stream", every=1, out=plan().out.with_name("fresh")), RULES)
    assert scores["curve"] == fresh["curve"]
    assert len(predictions(plan().out)) == 10
    with pytest.raises(ConfigError, match="limit was None"):
        run(plan(protocol="stream", every=1, batch=1, limit=2), RULES)


@pytest.mark.parametrize("style", ["instruct", "compact"])
def test_a_dry_run_says_what_is_needed_and_asks_nobody(plan, style):
    llm = ScriptedLLM([], style=style)
    needed = rehearse(plan(), modelled(llm), prices=Prices(1.0, 1.0), judged=True)
    calls = {role: row["calls"] for role, row in needed["needed"].items()}
    # A compact manager isn't asked about the first fact of an empty bank.
    manager = 6 if style == "instruct" else 4
    assert calls == {"extract": 6, "manage": manager, "answer": 6, "judge": 6}
    assert needed["total"]["calls"] == 18 + manager
    assert needed["dollars"] > 0
    assert not plan().out.exists()


def test_a_dry_run_comes_near_to_what_the_run_takes(plan):
    class Counting(ScriptedLLM):
        def complete(self, prompts, **how):
            return [
                replace(reply, prompt_tokens=len(prompt.text) // 4)
                for prompt, reply in zip(prompts, super().complete(prompts, **how), strict=True)
            ]

    needed = rehearse(plan(), modelled(ScriptedLLM([])))["total"]
    took = run(plan(), modelled(Counting(answering)))["cost"]
    assert needed["calls"] == took["calls"]
    assert abs(needed["prompt_tokens"] / took["prompt_tokens"] - 1) < 0.1


def test_a_judge_grades_and_its_verdicts_are_kept(plan, tmp_path):
    judge = Paid(lambda prompt: '{"verdict": "CORRECT"}')
    scores = run(plan(), RULES, judged_by=judge, cache=tmp_path / "cache")
    assert scores["overall"]["judge"] == 100.0
    assert scores["judge"]["name"] == "paid"
    assert len(judge.prompts) == 4  # two questions get the same answer in both talks
    again = Paid()
    run(plan(out=tmp_path / "second"), RULES, judged_by=again, cache=tmp_path / "cache")
    assert not again.prompts


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(plan, data, tmp_path):
    """SIGKILL at a random moment, as often as it takes to finish."""
    talks = [dialogue(f"talk-{i}", "Vera") for i in range(40)]
    data.write_text(json.dumps(talks))
    command = [sys.executable, "-m", "memory_r1.serve.cli", "bench", "locomo", "--data", str(data)]
    chance, kills = random.Random(0), 0
    for wait in [chance.uniform(0.3, 1.2) for _ in range(6)] + [60]:
        child = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed"), "--batch", "4"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
    assert kills
    scores = json.loads((tmp_path / "killed" / "scores.json").read_text())
    fresh = run(plan(out=tmp_path / "fresh", batch=4), RULES)
    assert scores["overall"] == fresh["overall"]
    assert scores["bank"] == fresh["bank"]
    rows = predictions(tmp_path / "killed")
    assert len({row["question_id"] for row in rows}) == len(rows) == 120


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

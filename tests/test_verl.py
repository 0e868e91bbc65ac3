"""The engine for clusters, as far as no cluster is needed: samples, rewards, settings, the script.

What needs verl itself is in tests/verl (`make test-verl`).
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_verl import chat_model, locomo

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.embed import open_embedder
from memory_r1.errors import ConfigError, DataError, ModelUnavailable
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.store.ram import RamStore
from memory_r1.train.episodes import AnswerEpisode, ManagerEpisode, Situation, Task
from memory_r1.train.runfile import load_run
from memory_r1.train.verl import reward, samples
from memory_r1.train.verl.launch import launch, missing, prepare
from memory_r1.train.verl.overrides import _hydra, overrides
from memory_r1.types import Add, Completion, Fact, Owner, Turn

RUNS = sorted(Path("runs").glob("verl_*.toml"))
SERVED = "verl.answerer=http://gpu1:8000/v1?concurrency=64#m"
DAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)


def made(text):
    return Turn("Ann", text, DAY, "D1:2")


def question(text="Where did Ann move?", answer="Ann moved to Lima", **more):
    return Question("q1", "d", text, answer, ("D1:1", "D1:2"), 4, **more)


def filled(*texts):
    bank = Bank(RamStore(), open_embedder(), Owner("d"))
    for i, text in enumerate(texts):
        bank.apply([Add(text)], turn=Turn("Ann", text, DAY, f"D1:{i}"))
    return bank


def situation(right=None):
    told = ((made("I moved to Lima."), (Fact("Ann moved to Lima", "moved", (DAY, DAY)),)),)
    asked = (question(), question("Cat?", "Felix", accepted=("Ann has a cat, Felix",)))
    bank = filled("Ann lives in Rome", "Ann has a cat, Felix")
    return Situation("d/D1:2", bank, told, () if right else asked, right)


def task():
    bank = filled("Ann lives in Rome", "Ann has a cat, Felix")
    return Task("d/q1", bank, question("Cat?", "Felix", asked=DAY, groups=("4",)))


def row_of(start, **more):
    [row] = samples.rows([start], split="train", agent=samples.ONE_REPLY, **more)
    return json.loads(json.dumps(row))  # what a file and Ray make of it


def scored(start, reply, **more):
    row = row_of(start)
    return reward.compute_score(
        row["data_source"], reply, row["reward_model"]["ground_truth"], row["extra_info"], **more
    )


def op(name, **fields):
    return {"op": name, **fields}


def reply(*ops):
    return json.dumps({"operations": ops})


OPS = st.one_of(
    st.builds(lambda t: op("ADD", text=t), st.sampled_from(["Ann moved to Lima", "x", ""])),
    st.builds(
        lambda i, t: op("UPDATE", id=i, text=t),
        st.integers(0, 3),
        st.sampled_from(["Ann moved to Lima", "Ann moved to Lima from Rome"]),
    ),
    st.builds(lambda i: op("DELETE", id=i), st.integers(0, 2)),
    st.just(op("NOOP")),
)
REPLIES = st.one_of(
    st.lists(OPS, max_size=3).map(lambda ops: reply(*ops)),
    st.text(max_size=30),
    st.sampled_from(["0, 1\n**Answer:** Felix", "**Answer:** Rome", "**Answer:**", "Felix"]),
)


SITUATIONS = (situation(), situation(right=("Ann has a cat, Felix", "Ann lives in Rome")))
TASK = task()


def played(episode, text, frozen):
    """The reward on one machine, of a policy that always says the same."""
    while not episode.done:
        episode.step(Completion(text))
    return drive([episode.judge()], frozen)[0].reward


@settings(max_examples=25)
@given(REPLIES)
def test_a_cluster_pays_a_manager_what_one_machine_pays(text):
    policy = ScriptedLLM([])
    for start in SITUATIONS:
        here = played(ManagerEpisode(start, policy, Agents(), Settings()), text, Agents())
        assert scored(start, text)["score"] == here


@settings(max_examples=25)
@given(REPLIES)
def test_a_cluster_pays_an_answer_what_one_machine_pays(text):
    here = played(AnswerEpisode(TASK, ScriptedLLM([]), Settings()), text, Agents())
    assert scored(TASK, text)["score"] == here


def test_a_decision_is_paid_by_the_questions_it_lets_be_answered():
    right, wrong = reply(op("UPDATE", id=0, text="Ann moved to Lima")), reply(op("NOOP"))
    lost = reply(op("DELETE", id=0), op("DELETE", id=1))
    start = situation()
    shown = row_of(start)["prompt"][-1]["content"]
    if "[0]" in shown and shown.index("Rome") > shown.index("Felix"):
        right = right.replace('"id": 0', '"id": 1')
    assert scored(start, right)["score"] == 1.0
    assert scored(start, wrong)["score"] == 0.5
    assert scored(start, lost)["score"] == 0.0


def test_a_malformed_reply_leaves_the_bank_and_is_counted():
    unreadable = scored(situation(), "I would rather not.")
    noop = scored(situation(), reply(op("NOOP")))
    assert unreadable == {**noop, "malformed": 1.0}
    # Where the right memories are those that are there, saying nothing must not be right.
    left = ("Ann has a cat, Felix", "Ann lives in Rome")
    assert scored(situation(right=left), "I would rather not.")["score"] == 0.0
    assert scored(situation(right=left), reply(op("NOOP")))["score"] == 1.0


def test_an_absent_answerer_raises_and_is_no_reward(monkeypatch):
    away = Agents(answer=ScriptedLLM([ModelUnavailable("no route")]))
    monkeypatch.setattr(reward, "frozen_agents", lambda answerer, judge: away)
    with pytest.raises(ModelUnavailable):
        scored(situation(), reply(op("NOOP")), answerer="http://gpu1:8000/v1#m")


def test_the_answerer_is_asked_what_serving_would_ask(monkeypatch):
    answerer = ScriptedLLM(lambda prompt: "0\n**Answer:** Felix")
    monkeypatch.setattr(reward, "frozen_agents", lambda a, j: Agents(answer=answerer))
    assert scored(situation(), reply(op("NOOP")))["score"] == 0.5
    here = ScriptedLLM(lambda prompt: "0\n**Answer:** Felix")
    episode = ManagerEpisode(situation(), ScriptedLLM([]), Agents(answer=here), Settings())
    played(episode, reply(op("NOOP")), Agents(answer=here))
    assert [p.text for p in answerer.prompts] == [p.text for p in here.prompts]


@pytest.mark.parametrize(
    "start",
    [situation(), situation(right=("a",)), task()],
    ids=["questions", "right operations", "a question"],
)
def test_a_row_holds_all_that_its_episode_starts_from(start):
    row = row_of(start, settings=Settings(per_speaker=1), reward="f1")
    again = samples.start_of(row["extra_info"])
    assert again.bank.entries() == start.bank.entries()
    assert again.id == start.id
    if isinstance(start, Task):
        assert again.question == start.question
    else:
        assert (again.turns, again.questions, again.right) == (
            start.turns,
            start.questions,
            start.right,
        )
    episode = samples.begin_row(row["extra_info"], Agents())
    prompt = [{"role": role, "content": text} for role, text in episode.prompt().messages]
    assert prompt == row["prompt"]


def test_a_row_pays_by_the_reward_of_the_run():
    row = row_of(task(), reward="f1")
    half = reward.compute_score("", "**Answer:** Felix Cat", "", row["extra_info"])
    assert half["em"] == 0.0 and 0 < half["score"] == half["f1"] < 1


def test_a_decision_that_is_not_asked_is_no_sample():
    known = ((made("again"), (Fact("Ann lives in Rome"),)),)
    start = Situation("d/D1:9", filled("Ann lives in Rome"), known, (question(),))
    assert samples.rows([start], split="train", agent=samples.ONE_REPLY) == []


def test_a_foreign_row_is_refused():
    with pytest.raises(DataError, match="extra_info"):
        reward.compute_score("openai/gsm8k", "42", "42", {"index": 0, "split": "train"})


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
        ("http://h:1/v1?rpm=2#m", "'http://h:1/v1?rpm=2#m'"),
        ("it's", "'it\\'s'"),
        ("null", "'null'"),
        ("3", "'3'"),
        (True, "True"),
        (None, "null"),
        (1e-06, "1e-06"),
    ],
)
def test_values_are_written_in_hydras_grammar(value, written):
    assert _hydra(value) == written


def told(run):
    return dict(line.split("=", 1) for line in overrides(run))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_papers_settings_are_what_verl_is_told(path):
    named = told(load_run(path, [SERVED]))
    assert named["data.train_batch_size"] == "128"
    assert named["data.max_prompt_length"] == "4096"
    assert named["data.max_response_length"] == "2048"
    assert named["actor_rollout_ref.actor.optim.lr"] == "1e-06"
    assert named["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == "2"
    assert named["actor_rollout_ref.rollout.temperature"] == "1.0"
    assert named["actor_rollout_ref.rollout.val_kwargs.do_sample"] == "False"
    assert named["trainer.n_gpus_per_node"] == "4"
    if "grpo" in path.stem:
        assert named["algorithm.adv_estimator"] == "grpo"
        assert named["actor_rollout_ref.rollout.n"] == "8"
        assert named["actor_rollout_ref.actor.use_kl_loss"] == "True"
        assert not any(name.startswith("critic.") for name in named)
    else:
        assert named["algorithm.adv_estimator"] == "gae"
        assert named["actor_rollout_ref.rollout.n"] == "1"
        assert named["critic.optim.lr"] == "1e-05"
        assert named["algorithm.use_kl_in_reward"] == "True"
        assert named["critic.model.path"] == named["actor_rollout_ref.model.path"]


def test_there_are_run_files_for_both_agents_and_both_algorithms():
    assert [path.stem for path in RUNS] == [
        "verl_answer_grpo",
        "verl_answer_ppo",
        "verl_manager_grpo",
        "verl_manager_ppo",
    ]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_reward_goes_where_verl_looks_for_it(path):
    """verl ignores the old name of this setting without a word."""
    named = told(load_run(path, [SERVED]))
    assert named["reward.custom_reward_function.path"] == "'pkg://memory_r1.train.verl.reward'"
    assert named["reward.custom_reward_function.name"] == "compute_score"
    assert not any(name.startswith("custom_reward_function") for name in named)
    served = "'http://gpu1:8000/v1?concurrency=64#m'" if "manager" in path.stem else "null"
    assert named["+reward.custom_reward_function.reward_kwargs.answerer"] == served


def test_what_a_run_file_overrides_wins():
    other = [SERVED, 'verl.overrides={"trainer.logger" = "[console,wandb]", "+a.b" = "2"}']
    named = told(load_run("runs/verl_manager_grpo.toml", other))
    assert named["trainer.logger"] == "[console,wandb]" and named["+a.b"] == "2"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], "verl.answerer"),
        ([SERVED, "model=tiny-base"], "chat model"),
        ([SERVED, "model=http://h/v1#m"], "no weights"),
        ([SERVED, "rollout.turns=4"], "verl.level"),
        ([SERVED, "grpo.minibatches=3"], "divides"),
        ([SERVED, "grpo.dual_clip=none"], "dual_clip"),
        ([SERVED, "rollout.resample=1"], "filter_groups"),
    ],
)
def test_what_verl_cannot_do_is_said_at_once(changes, says):
    with pytest.raises(ConfigError, match=says):
        overrides(load_run("runs/verl_manager_grpo.toml", changes))


def test_a_warm_start_stays_on_one_machine():
    with pytest.raises(ConfigError, match="locally"):
        load_run("runs/tiny_base.toml", ["engine=verl"])


@pytest.fixture
def small(tmp_path):
    """A run file's changes to what can be prepared here without a model."""
    data, model = locomo(tmp_path / "locomo.json"), chat_model(tmp_path / "chat")
    return [
        f"data.path={data}",
        f"model={model}",
        "verl.answerer=rules",
        "rollout.prompts=4",
        "eval.questions=2",
    ]


def read_rows(folder, split):
    """Without pyarrow the same rows are JSON lines."""
    if (folder / f"{split}.jsonl").exists():
        text = (folder / f"{split}.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]
    from pyarrow import parquet

    return parquet.read_table(folder / f"{split}.parquet").to_pylist()


@pytest.mark.parametrize("level", ["a", "b"])
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_folder_holds_all_that_verl_needs(path, level, small, tmp_path):
    run = load_run(path, [*small, f"verl.level={level}"])
    folder = prepare(run, tmp_path / "out")
    train, val = read_rows(folder, "train"), read_rows(folder, "val")
    # Twice a step's prompts, so that verl's epochs hold at least one step.
    assert len(train) >= 8 and len(val) == 2
    assert {r["extra_info"]["id"].split("/")[0] for r in train} == {"conv-26"}
    assert {r["extra_info"]["id"].split("/")[0] for r in val} == {"conv-30"}
    assert {r["agent_name"] for r in train} == {samples.ONE_REPLY if level == "a" else "memory_r1"}
    assert {r["data_source"] for r in train} == {f"memory_r1/{run.kind}"}
    right = {"answer": "**Answer:** Felix", "manager": reply(op("ADD", text="I moved to Lima."))}
    paid = [reward.compute_score("", right[run.kind], "", r["extra_info"])["score"] for r in train]
    assert max(paid) == 1.0
    script = (folder / "launch.sh").read_text()
    assert subprocess.run(["bash", "-n", str(folder / "launch.sh")], check=False).returncode == 0
    assert '"$python" -m verl.trainer.main_ppo "${settings[@]}" "$@"' in script
    assert str(tmp_path) not in script  # the folder may be copied to the cluster
    assert ("VERL_USE_EXTERNAL_MODULES" in script) == (level == "b")
    assert (folder / "agent_loop.yaml").exists() == (level == "b")
    players = json.loads((folder / "agents.json").read_text())
    assert players["manage" if run.kind == "manager" else "answer"] == "model"
    assert load_run(tmp_path / "out" / "config.toml") == run


def test_without_a_cluster_it_says_what_is_missing_and_where_to_go_on(small, tmp_path):
    assert "a GPU" in missing()
    command = [sys.executable, "-m", "memory_r1.serve.cli", "train", "runs/verl_manager_grpo.toml"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), *small],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "missing on this machine" in done.stderr and "launch.sh" in done.stderr
    assert (tmp_path / "out" / "verl" / "overrides.txt").is_file()


def test_the_package_imports_without_verl():
    code = (
        "import sys, memory_r1.train.learn, memory_r1.train.verl.reward, "
        "memory_r1.train.verl.launch; "
        "assert not {'verl', 'ray', 'hydra', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_is_not_written_over(small, tmp_path):
    run = load_run("runs/verl_answer_grpo.toml", small)
    (tmp_path / "out" / "verl" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--resume"):
        launch(run, tmp_path / "out")


@pytest.mark.slow
def test_verl_itself_takes_it():
    """Composition, data, reward and rollouts, in the environment that `make test-verl` makes."""
    python = Path(".venv-verl/bin/python")
    if not python.exists():
        pytest.skip("verl's environment is absent; `make test-verl` makes it")
    command = [str(python), "-m", "pytest", "-q", "-W", "ignore", "tests/verl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

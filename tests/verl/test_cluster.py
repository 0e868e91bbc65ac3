"""What needs verl 0.9.1 and no GPU: its settings, its data, its reward, its rollouts on Ray.

Run by `make test-verl`, in an environment of its own. Actor and critic updates need GPUs.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A folder of this name lies beside these tests, so that its bare name says nothing.
pytest.importorskip("verl.trainer", reason="verl is absent; `make test-verl` brings it")

from made_verl import Client, chat_model, locomo  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from memory_r1.errors import ConfigError  # noqa: E402
from memory_r1.train.runfile import load_run  # noqa: E402
from memory_r1.train.verl import reward  # noqa: E402
from memory_r1.train.verl.check import check  # noqa: E402
from memory_r1.train.verl.launch import prepare  # noqa: E402
from memory_r1.train.verl.overrides import TRAINER, overrides  # noqa: E402

SMALL_QUEUE = "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"
RUNS = sorted(Path("runs").glob("verl_*.toml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return locomo(tmp_path_factory.mktemp("data") / "locomo.json")


def run_of(path, model, data, *more):
    small = [f"data.path={data}", f"model={model}", "rollout.prompts=4", "eval.questions=2"]
    return load_run(path, [*small, "verl.answerer=rules", *more])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_verl_composes_and_validates_every_run_file(path, model):
    served = "http://gpu1:8000/v1?concurrency=64#meta-llama/Llama-3.1-8B-Instruct"
    run = load_run(path, [f"model={model}", f"verl.answerer={served}"])
    config = check(overrides(run))
    actor = config.actor_rollout_ref.actor
    assert config.data.train_batch_size == actor.ppo_mini_batch_size == 128
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 2048)
    assert (actor.optim.lr, actor.optim.lr_scheduler_type) == (1e-6, "constant")
    assert list(actor.optim.betas) == [0.9, 0.999]
    assert actor.ppo_micro_batch_size_per_gpu == 2 and actor.loss_agg_mode == "token-mean"
    assert config.actor_rollout_ref.rollout.n == (8 if run.algorithm == "grpo" else 1)
    assert actor.use_kl_loss == (run.algorithm == "grpo")
    assert config.algorithm.use_kl_in_reward == (run.algorithm == "ppo")
    assert config.algorithm.adv_estimator == {"grpo": "grpo", "ppo": "gae"}[run.algorithm]
    assert config.critic.optim.lr == 1e-5
    assert config.trainer.v1.sampler.sync_refill_failed_groups
    assert config.reward.custom_reward_function.reward_kwargs.answerer == (
        served if run.kind == "manager" else None
    )


@pytest.mark.parametrize("size", [("4", "3B"), ("4", "7B"), ("8", "14B")])
def test_the_papers_other_sizes_are_changes_to_the_same_files(size, model):
    gpus, _ = size
    run = load_run(
        "runs/verl_manager_grpo.toml",
        [f"model={model}", f"verl.gpus={gpus}", "verl.answerer=http://h:8000/v1#m"],
    )
    assert check(overrides(run)).trainer.n_gpus_per_node == int(gpus)


def test_a_reward_under_the_old_name_is_noticed(model):
    """verl takes the old name without a word and scores with its own rules for school maths."""
    run = load_run("runs/verl_manager_grpo.toml", [f"model={model}", "verl.answerer=rules"])
    old = [s for s in overrides(run) if "custom_reward_function" not in s]
    with pytest.raises(ConfigError, match="compute_score"):
        check([*old, "custom_reward_function.path=pkg://memory_r1.train.verl.reward"])


def test_the_trainer_of_episodes_is_loaded_by_verl(model, data):
    """As on the cluster: named in the environment before verl is imported."""
    run = run_of("runs/verl_manager_grpo.toml", model, data, "verl.level=b")
    code = "import sys; from memory_r1.train.verl.check import check; check(sys.argv[1:])"
    command = [sys.executable, "-c", code, *overrides(run)]
    named = subprocess.run(
        command,
        env={**os.environ, "VERL_USE_EXTERNAL_MODULES": TRAINER},
        capture_output=True,
        text=True,
    )
    assert named.returncode == 0, named.stderr[-3000:]
    unnamed = subprocess.run(command, capture_output=True, text=True)
    assert unnamed.returncode != 0 and "VERL_USE_EXTERNAL_MODULES" in unnamed.stderr


def test_the_script_checks_before_it_trains(model, data, tmp_path):
    """No GPU is here: the check passes, and verl is stopped before it asks for one."""
    folder = prepare(run_of("runs/verl_answer_grpo.toml", model, data), tmp_path / "out")
    fake = tmp_path / "python"
    fake.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$2" in *check) exec {sys.executable} "$@";; *main_ppo) echo "MAIN $*"; exit 7;; '
        "esac\n"
    )
    fake.chmod(0o755)
    command = ["bash", str(folder / "launch.sh"), "trainer.resume_mode=disable"]
    env = {**os.environ, "PYTHON": str(fake)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr[-3000:]
    main = done.stdout[done.stdout.index("MAIN") :]
    assert f"data.train_files='{folder}/train.parquet'" in main
    assert "trainer.resume_mode=disable" in main
    assert "All configuration checks passed" in done.stdout
    broken = subprocess.run([*command, "data.train_batch_size=x"], env=env, capture_output=True)
    assert broken.returncode not in (0, 7)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_verls_dataset_reads_our_rows(form, model, data, tmp_path, monkeypatch):
    from verl.utils.dataset.rl_dataset import RLHFDataset

    run = run_of("runs/verl_manager_grpo.toml", model, data)
    config = check(overrides(run)).data
    if form == "jsonl":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder = prepare(run, tmp_path / "out")
    monkeypatch.undo()
    tokenizer = AutoTokenizer.from_pretrained(model)
    dataset = RLHFDataset(str(folder / f"train.{form}"), tokenizer, config)
    assert len(dataset) >= 8
    row = dataset[0]
    assert row["agent_name"] == "single_turn_agent"
    assert [m["role"] for m in row["raw_prompt"]] == ["system", "user"]
    assert reward.compute_score("", "{}", "", row["extra_info"])["malformed"] == 1.0
    # What is too long is left out, never cut.
    config.max_prompt_length = 10
    assert len(RLHFDataset(str(folder / f"train.{form}"), tokenizer, config)) == 0


@pytest.mark.parametrize(
    ("path", "reply", "score"),
    [
        ("runs/verl_answer_ppo.toml", "**Answer:** Felix", {0.0, 1.0}),
        (
            "runs/verl_manager_grpo.toml",
            json.dumps({"operations": [{"op": "ADD", "text": "I moved to Lima."}]}),
            {1.0},
        ),
    ],
)
def test_verls_own_loader_loads_our_reward_and_scores(path, reply, score, model, data, tmp_path):
    """Through the reward loop's manager, with the ids of a sampled reply."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.utils.dataset.rl_dataset import RLHFDataset

    run = run_of(path, model, data)
    config = check(overrides(run))
    folder = prepare(run, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(model)
    dataset = RLHFDataset(str(folder / "train.parquet"), tokenizer, config.data)
    ids = torch.tensor([[*tokenizer.encode(reply), tokenizer.eos_token_id]])
    seen = set()

    async def score_all():
        manager = load_reward_manager(config, tokenizer)
        for row in dataset:
            batch = TensorDict(
                {"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1
            )
            fields = ("data_source", "reward_model", "extra_info")
            one = {name: np.array([row[name]], dtype=object) for name in fields}
            paid = await manager.run_single(DataProto(batch, one))
            assert paid["reward_extra_info"]["malformed"] == 0.0
            seen.add(paid["reward_score"])

    asyncio.run(score_all())
    assert max(seen) == max(score) and seen <= {0.0, 0.5, 1.0}


@pytest.fixture(scope="module")
def cluster():
    import ray

    # The workers import the stand-in for the model from the folder above.
    tests = str(Path(__file__).parents[1])
    env = {"env_vars": {"TRANSFER_QUEUE_ENABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}}
    ray.init(
        num_cpus=8,  # of its own counting: every actor takes one
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        _node_ip_address="127.0.0.1",
        runtime_env=env,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


def rollouts(config, client, folder, tokenizer, cluster, *, handles):
    """The rollout half of a training step, as `PPOTrainer` runs it: all tags."""
    import time
    from uuid import uuid4

    import numpy as np
    import transfer_queue as tq
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ
    from verl.utils import tensordict_utils as tu
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    dataset = RLHFDataset(str(folder / "train.parquet"), tokenizer, config.data)
    chosen = collate_fn([dataset[i] for i in range(config.data.train_batch_size)])
    # Of this call alone: the queue is shared by the tests. verl splits keys at underscores.
    uids = [f"{uuid4().hex}-{i}" for i in range(config.data.train_batch_size)]
    chosen["uid"] = np.array(uids, dtype=object)
    batch = tu.get_tensordict(chosen)
    tu.assign_non_tensor_data(batch, "global_steps", 1)
    manager = AgentLoopManagerTQ.create(
        config=config,
        llm_client=client,
        teacher_client=None,
        reward_loop_worker_handles=handles,
    )
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 1} for _ in uids]
    tq.kv_batch_put(keys=uids, partition_id="train", tags=tags)
    manager.generate_sequences(batch)
    deadline = time.monotonic() + 400  # actors start slowly where cores are shared
    while time.monotonic() < deadline:
        everything = tq.kv_list(partition_id="train")["train"]
        listed = {key: tag for key, tag in everything.items() if key.split("_")[0] in uids}
        if all(listed[uid]["status"] in ("finished", "failure") for uid in uids):
            return listed
        time.sleep(0.2)
    raise AssertionError("the rollouts did not end")


@pytest.fixture(scope="module")
def queue(cluster, model):
    import transfer_queue as tq

    run = load_run("runs/verl_manager_grpo.toml", [f"model={model}", "verl.answerer=rules"])
    config = check([*overrides(run), SMALL_QUEUE])
    tq.init(config.transfer_queue)
    yield tq
    tq.close()


@pytest.mark.parametrize("level", ["a", "b"])
def test_episodes_are_played_on_ray_and_paid(level, model, data, tmp_path, cluster, queue):
    import ray
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    run = run_of(
        "runs/verl_manager_grpo.toml",
        model,
        data,
        f"verl.level={level}",
        "rollout.turns=4" if level == "b" else "rollout.turns=1",
        "rollout.group_size=2",
        "rollout.prompts=2",
        "rollout.max_tokens=256",
    )
    folder = prepare(run, tmp_path / "out")
    settings = [s for s in overrides(run) if "trainer_mode" not in s]
    settings += ["actor_rollout_ref.rollout.agent.num_workers=1", "data.max_prompt_length=8192"]
    if level == "b":
        path = folder / "agent_loop.yaml"
        settings.append(f"actor_rollout_ref.rollout.agent.agent_loop_config_path='{path}'")
    config = check(settings)
    worker = ray.remote(RewardLoopWorker).remote(config)
    handles = [worker] if level == "a" else None
    tokenizer = AutoTokenizer.from_pretrained(model)
    listed = rollouts(config, Client(model), folder, tokenizer, cluster, handles=handles)
    uids = [key for key in listed if "_" not in key]
    assert [listed[uid]["status"] for uid in uids] == ["finished"] * 2
    keys = sorted(key for key in listed if key.count("_") == 2)
    rows = queue.kv_batch_get(keys=keys, partition_id="train")
    episodes = {}
    for i, key in enumerate(keys):
        uid, session, _ = key.split("_")
        episodes.setdefault((uid, session), []).append(i)
    assert set(episodes) == {(uid, session) for uid in uids for session in "01"}
    paid = {name: [float(rows["rm_scores"][i].sum()) for i in of] for name, of in episodes.items()}
    said = [
        tokenizer.decode(rows["responses"][i], skip_special_tokens=True) for i in range(len(keys))
    ]
    shown = [tokenizer.decode(rows["prompts"][i]) for i in range(len(keys))]
    assert all("You keep the long-term memory" in prompt for prompt in shown)
    assert all(set(rows["response_mask"][i].tolist()) == {1} for i in range(len(keys)))
    assert all(len(set(scores)) == 1 for scores in paid.values())
    if level == "a":
        assert all(len(of) == 1 for of in episodes.values())
    else:
        assert max(len(of) for of in episodes.values()) >= 3
        assert "hm, no JSON" in said and any("cannot be used" in prompt for prompt in shown)
    assert max(max(scores) for scores in paid.values()) == 1.0
    os.environ.pop("VERL_USE_EXTERNAL_MODULES", None)


def test_an_absent_answerer_fails_the_group(model, data, tmp_path, cluster, queue):
    """So that verl draws other prompts in its place; nothing is learned from it."""
    import ray
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    away = "verl.answerer=http://127.0.0.1:9/v1#m"
    few = ["rollout.prompts=1", "rollout.group_size=4"]
    run = run_of("runs/verl_manager_grpo.toml", model, data, *few, away)
    built = run_of("runs/verl_manager_grpo.toml", model, data, *few)
    folder = prepare(built, tmp_path / "out")
    one = "actor_rollout_ref.rollout.agent.num_workers=1"
    config = check([*overrides(run), one])
    worker = ray.remote(RewardLoopWorker).remote(config)
    tokenizer = AutoTokenizer.from_pretrained(model)
    listed = rollouts(config, Client(model), folder, tokenizer, cluster, handles=[worker])
    [tag] = listed.values()  # no rollout beside the prompt
    assert tag["status"] == "failure"


@pytest.mark.parametrize(("rows", "minibatches", "update"), [(8, 1, 8), (24, 1, 24), (24, 2, 12)])
def test_episodes_of_many_decisions_make_no_more_updates(
    rows, minibatches, update, model, monkeypatch
):
    """4 prompts, 2 rollouts each: 8 rows, and 24 where episodes have 3 decisions."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    from memory_r1.train.verl.trainer import EpisodeTrainer

    run = load_run(
        "runs/verl_manager_grpo.toml",
        [
            f"model={model}",
            "verl.answerer=rules",
            "rollout.prompts=4",
            "rollout.group_size=2",
            f"grpo.minibatches={minibatches}",
        ],
    )
    trainer = object.__new__(EpisodeTrainer)
    trainer.config, trainer.use_critic, trainer.global_steps = check(overrides(run)), False, 1
    updates = []

    def update_actor(self, batch, metrics):
        actor = self.config.actor_rollout_ref.actor
        updates.append(actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n)

    monkeypatch.setattr(PPOTrainer, "_update_actor", update_actor)
    trainer._update_actor(range(rows), {})
    assert updates == [update]  # rows of one update
    assert trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size == 4 // minibatches
    # What the batch is filled up to can be cut into the step's updates.
    assert trainer._get_required_batch_multiple(4) % 8 == 0

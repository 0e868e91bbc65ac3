"""Several processes come to what one comes to: the same metrics, the same weights."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from memory_r1.errors import MemoryR1Error, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents  # noqa: E402
from memory_r1.llm.sampler import sample  # noqa: E402
from memory_r1.serve.commands_train import _without_processes  # noqa: E402
from memory_r1.train.processes import Processes, joined, present  # noqa: E402
from memory_r1.types import Completion, Prompt  # noqa: E402

ROOT = Path(__file__).parents[1]
FILES = {path.stem for path in (ROOT / "runs").glob("*.toml")}
CLI = "memory_r1.serve.cli"
SMALL = [
    "world.dialogues=1",
    "rollout.prompts=6",
    "rollout.group_size=4",
    "steps.total=3",
    "steps.micro_batch_tokens=1500",  # several micro-batches, not as many in each process
    "eval.questions=4",
    "eval.every=2",
]
LOGO = ["world.sessions=2", "rollout.prompts=2", "eval.questions=1", "grpo.kl=0.01"]
RUNS = {
    "grpo": ("tiny_manager_grpo", ["grpo.kl=0.01"]),
    "grpo with an adapter": ("tiny_answer_grpo", ["grpo.kl=0.01", "lora.rank=4"]),
    "ppo": ("tiny_manager_ppo", ["ppo.kl=0.01", "ppo.value_warmup=1", "ppo.epochs=2"]),
    "logo": ("tiny_logo", LOGO),
    "imitation": ("imitation", ["teacher.keep=all"]),
}
IMITATION = """
kind = "sft"
model = "tiny-base"
world.seed = 1
teacher.model = "tiny"
optimizer.lr = 1e-4
"""
ROUNDING = ("logp_difference",)
"""Measures the rounding itself, which is another where batches are others."""


class Threads(Processes):
    """Processes that are threads, for what needs no tensors."""

    def __init__(self, rank, number, meeting):
        super().__init__(rank, number)
        self._barrier, self._told = meeting

    def gather(self, value):
        self._told[self.rank] = value
        self._barrier.wait()
        found = [self._told[rank] for rank in range(self.number)]
        self._barrier.wait()
        return found


def together(number, do):
    """What `do(processes)` came to in each of so many; an error is a result."""
    meeting, results = (threading.Barrier(number, timeout=20), {}), {}

    def one(rank):
        try:
            results[rank] = do(Threads(rank, number, meeting))
        except MemoryR1Error as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(number)]


# --- shares


@given(st.lists(st.integers(1, 5000)), st.integers(1, 8))
def test_shares_cover_everything_once_and_none_is_larger_by_more_than_one_piece(sizes, number):
    shares = [Processes(rank, number).share(sizes) for rank in range(number)]
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_the_largest_pieces_go_to_different_processes():
    shares = [Processes(rank, 2).share([10, 9, 1, 2]) for rank in range(2)]
    assert shares == [[0, 2], [1, 3]]


def test_a_process_alone_sends_nothing_and_does_everything():
    alone = present()
    assert (alone.first, alone.number) == (True, 1)
    assert alone.share([3, 1, 2]) == [0, 1, 2]
    assert alone.put_together({0: "a", 1: "b"}, of=1) == ["a", "b"]
    agents = Agents(answer=open_agents("tiny-base").answer)
    assert alone.split_agents(agents) is agents


def test_parts_come_together_in_order():
    def do(processes):
        mine = processes.share([5, 1, 4, 1])
        return processes.put_together({i: f"part {i}" for i in mine}, of=7)

    assert together(2, do) == [["part 0", "part 1", "part 2", "part 3"]] * 2


def test_processes_that_play_different_episodes_stop():
    found = together(
        2, lambda processes: processes.put_together({processes.rank: 0}, of=processes.rank)
    )
    assert all("no longer do the same" in str(error) for error in found)


def test_sums_are_over_all_names():
    found = together(2, lambda p: p.add({"loss": 1.0 + p.rank} | ({"kl": 0.5} if p.rank else {})))
    assert found == [{"loss": 3.0, "kl": 0.5}] * 2


class Echo:
    """Says what it is asked, and refuses what it is told to refuse."""

    name, style = "echo", "instruct"

    def __init__(self):
        self.asked = []

    def complete(self, prompts, *, max_tokens=512, temperature=0.0, schema=None):
        self.asked += [prompt.text for prompt in prompts]
        if any("refuse" in prompt.text for prompt in prompts):
            raise ModelUnavailable("refused")
        return [Completion(prompt.text) for prompt in prompts]


def prompts_of(texts):
    return [Prompt((("user", text),)) for text in texts]


def test_a_frozen_agent_is_asked_once_for_each_prompt_by_the_same_process_each_time():
    texts = [f"question {i}" for i in range(12)] + ["question 3"]
    echoes = [Echo(), Echo()]

    def do(processes):
        agents = processes.split_agents(Agents(answer=echoes[processes.rank]))
        for _ in range(2):
            replies = agents.answer.complete(prompts_of(texts))
        return [reply.text.split("\n")[-1] for reply in replies]

    assert together(2, do) == [[prompt.text for prompt in prompts_of(texts)]] * 2
    once = [set(echo.asked) for echo in echoes]
    assert not once[0] & once[1] and all(once)
    assert len(echoes[0].asked) + len(echoes[1].asked) == 2 * len(texts)


def test_what_one_process_is_refused_all_are_refused():
    texts = [f"question {i}" for i in range(6)] + ["refuse this"]

    def do(processes):
        return processes.split_agents(Agents(judge=Echo())).judge.complete(prompts_of(texts))

    assert [type(found) for found in together(3, do)] == [ModelUnavailable] * 3


def test_what_is_drawn_for_a_prompt_does_not_depend_on_who_else_is_there():
    llm = LocalLLM(ROOT / "memory_r1/models/tiny-base")
    texts = ["Otto's dog is", "Ann moved to", "Ben has", "Otto's dog is", "Lisbon"]
    prompts = [llm.encode(Prompt((("user", text),))) for text in texts]
    same = {"max_tokens": 12, "end": llm.end_ids, "seed": 5}
    with llm.active() as model:
        whole = sample(model, prompts, **same)
        part = sample(model, [prompts[i] for i in (1, 3, 4)], places=(1, 3, 4), **same)
        assert sample(model, [], places=(), **same) == []
    assert [[one.ids for one in of] for of in part] == [
        [one.ids for one in whole[i]] for i in (1, 3, 4)
    ]
    assert whole[0][0].ids != whole[3][0].ids  # the same prompt, in another place


def test_processes_are_started_without_the_option_that_starts_them():
    given = ["train", "run.toml", "--processes", "2", "--out", "x", "--processes=3", "seed=1"]
    assert _without_processes(given) == ["train", "run.toml", "--out", "x", "seed=1"]


def test_sharding_is_reckoned_with():
    from memory_r1.train.estimate import KNOWN, check_fits, need
    from memory_r1.train.runfile import load_run

    settings = ["processes.sharding=full", "model=Qwen/Qwen2.5-7B-Instruct"]
    run = load_run(ROOT / "runs/locomo_manager_grpo.toml", settings)
    shape = KNOWN[run.model]
    one, four = need(run, shape), need(run, shape, processes=4)
    assert four.kept["optimizer"] == one.kept["optimizer"] / 4
    assert four.updating["gradients"] == one.updating["gradients"] / 4
    assert four.sampling["gathered weights"] == 4 * shape.parameters  # float32, whole
    with pytest.raises(MemoryR1Error, match="needs about"):
        check_fits(run, 120)
    check_fits(run, 120, processes=4)


def test_what_accelerate_is_asked_for_and_is_not_done_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(MemoryR1Error, match="ask for deepspeed"), joined():
        pass


# --- whole runs through the command


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    (folder / "imitation.toml").write_text(IMITATION)
    return folder


def environment(home, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    caches = {"HF_HOME": str(home / "hf"), "MEMORY_R1_CACHE": str(home / "cache")}
    return kept | caches | {"OMP_NUM_THREADS": "1", "MEMORY_R1_THREADS": "1"} | more


def command(launcher, run, out, settings):
    """One process, ours, accelerate's or torch's launcher of two."""
    folder = ROOT / "runs" if run in FILES else out.parent
    train = ["train", str(folder / f"{run}.toml"), "--out", str(out), *SMALL, *settings]
    match launcher:
        case "one":
            return ["-m", CLI, *train]
        case "ours":
            return ["-m", CLI, *train, "--processes", "2"]
        case "torchrun":
            where = ["--nproc_per_node", "2", "--standalone"]
            return ["-m", "torch.distributed.run", *where, "-m", CLI, *train]
        case "accelerate with fsdp":
            kind = ["--use_fsdp", "--fsdp_version", "2", "--main_process_port", "0"]
            launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", *kind]
            return [*launch, "--module", CLI, *train]


def play(home, launcher, run, out, *settings, code=0, **more):
    done = subprocess.run(
        [sys.executable, *command(launcher, run, out, settings)],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=600,
        cwd=home,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def alone(home):
    """The run folder of one process, made once per kind of run."""

    def made(name):
        run, settings = RUNS[name]
        out = home / f"{name} alone"
        if not out.exists():
            play(home, "one", run, out, *settings)
        return out

    return made


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same(out, expected):
    found, wanted = rows(out), rows(expected)
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for row, like in zip(found, wanted, strict=True):
        for name, value in like.items():
            if "second" in name or value is None:
                assert "second" in name or row[name] is None
            elif name in ROUNDING:
                assert row[name] < 1e-3
            else:
                assert math.isclose(row[name], value, rel_tol=1e-5, abs_tol=1e-5), (name, like)


def weights(out):
    from safetensors.torch import load_file

    [file] = (out / "model").glob("*.safetensors")
    return load_file(file)


def assert_same_weights(out, expected):
    found, wanted = weights(out), weights(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_come_to_what_one_comes_to(home, alone, name):
    run, settings = RUNS[name]
    out = home / f"{name} of two"
    said = play(home, "ours", run, out, *settings)
    assert said.count("2 processes, the weights in each of them") == 1
    assert said.count("the run is in") == 1
    assert_same(out, alone(name))
    assert_same_weights(out, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo with an adapter", "ppo"])
def test_sharded_weights_come_to_the_same(home, alone, name):
    run, settings = RUNS[name]
    out = home / f"{name} sharded"
    said = play(home, "ours", run, out, *settings, "processes.sharding=full")
    assert "2 processes, the weights spread over them" in said
    assert_same(out, alone(name))
    assert_same_weights(out, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate with fsdp"])
def test_any_launcher_will_do(home, alone, launcher):
    run, settings = RUNS["grpo"]
    out = home / launcher
    said = play(home, launcher, run, out, *settings)
    spread = "spread over them" if "fsdp" in launcher else "in each of them"
    assert f"2 processes, the weights {spread}" in said
    assert_same(out, alone("grpo"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo"])
def test_a_run_goes_on_in_another_number_of_processes(home, alone, name):
    run, settings = RUNS[name]
    out = home / f"{name} elastic"
    play(home, "ours", run, out, *settings, "steps.total=1", "processes.sharding=full")
    play(home, "one", run, out, *settings, "steps.total=2", "--resume")
    play(home, "ours", run, out, *settings, "--resume", "processes.sharding=full")
    last, expected = rows(out)[-1], rows(alone(name))[-1]
    assert last["step"] == 3
    assert math.isclose(last["loss"], expected["loss"], abs_tol=1e-5)
    assert_same_weights(out, alone(name))


BROKEN = """
import os, signal
from memory_r1.errors import MemoryR1Error

def reward(question, answer, golds):
    if os.environ.get("RANK") == "1":
        if os.environ["HOW"] == "raise":
            raise MemoryR1Error("the reward of process 1 is broken")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, said", [("raise", "memory-r1: the reward of process 1 is broken"), ("kill", "SIGKILL")]
)
def test_a_process_that_fails_ends_the_run_and_says_why_once(home, how, said):
    (home / "broken.py").write_text(BROKEN)
    error = play(
        home,
        "ours",
        "tiny_answer_grpo",
        home / f"broken by {how}",
        "reward.name=broken:reward",
        code=1,
        PYTHONPATH=str(home),
        HOW=how,
    )
    assert error.count(said) == 1 and "Traceback" not in error


@pytest.mark.slow
def test_an_interrupt_ends_all_processes(home):
    out = home / "interrupted"
    running = subprocess.Popen(
        [sys.executable, *command("ours", "tiny_answer_grpo", out, ["steps.total=5000"])],
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(900):
            if (out / "metrics.jsonl").exists() and len(rows(out)) > 1:
                break
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        try:
            os.killpg(running.pid, signal.SIGKILL)
            survived = True
        except ProcessLookupError:
            survived = False
    assert not survived
    assert running.returncode == 130
    assert said.count("interrupted; what was finished before is kept") == 1
    assert "Traceback" not in said
    assert len(rows(out)) > 1

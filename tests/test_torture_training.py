"""Training that is killed, poisoned, starved, without room: in short, and that it would notice."""

import errno
import io
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from made_models import random_tiny  # noqa: E402
from rich.console import Console  # noqa: E402
from test_training import make_run, make_stage  # noqa: E402
from torture import training, training_faults  # noqa: E402

from memory_r1.errors import (  # noqa: E402
    ConfigError,
    MemoryR1Error,
    ModelUnavailable,
    ModelUnreachable,
)
from memory_r1.llm import Agents, ScriptedLLM  # noqa: E402
from memory_r1.train import checkpoint, players, runlog  # noqa: E402
from memory_r1.train import learn as learning  # noqa: E402
from memory_r1.train.players import PAUSES, GaveUp, Patient, patient  # noqa: E402
from memory_r1.train.ppo import Ppo  # noqa: E402
from memory_r1.train.runfile import Steps  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402

ASKED = [Prompt((("user", "right?"),))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def learn(folder, tmp_path, monkeypatch):
    """Plays a run of four steps, each with its checkpoint, in a folder of this name."""
    monkeypatch.setattr(learning, "prepare", lambda run, say: make_stage(folder, run))
    monkeypatch.setattr(runlog, "plot_curves", lambda folder: None)  # it takes a second
    run = make_run(steps=Steps(total=4, checkpoint_every=1))

    def play(name, run=run, **options):
        quiet = Console(file=io.StringIO())
        learning.learn(run, tmp_path / name, console=quiet, **options)
        return tmp_path / name

    play.run = run
    return play


def same(one, other):
    return training.differences(one, other) == []


# --- a gradient that is no number


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_the_run_and_leaves_what_was_good(
    learn, tmp_path, monkeypatch, number
):
    whole, clip, calls = learn("whole"), torch.nn.utils.clip_grad_norm_, iter("123")

    def poisoned(parameters, *arguments):
        parameters = list(parameters)
        if next(calls) == "3":
            parameters[0].grad.view(-1)[0] = number
        return clip(parameters, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned)
        with pytest.raises(MemoryR1Error, match=r"gradient became (nan|inf).*--resume"):
            learn("run")
    latest = checkpoint.load(checkpoint.latest(tmp_path / "run" / checkpoint.FOLDER))
    assert latest.step == 2
    assert all(weights.isfinite().all() for weights in latest.states["model"].values())
    assert "gradient became" in json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]
    slower = shutil.copytree(tmp_path / "run", tmp_path / "slower")
    assert same(whole, learn("run", resume=True))
    mended = replace(learn.run, optimizer=replace(learn.run.optimizer, lr=1e-3))
    learn("slower", mended, resume=True)
    (resumed,) = json.loads((slower / "run.json").read_text())["resumed"]
    assert resumed["from_step"] == 2 and resumed["changed"] == {"optimizer.lr": [0.02, 0.001]}
    rates = [row["lr"] for row in training.told(slower)[1:]]
    assert rates == [0.02, 0.02, 0.001, 0.001]


def test_a_critic_goes_on_at_the_rate_of_the_resumed_run(folder):
    run = make_run(algorithm="ppo")
    state = Ppo(make_stage(folder, run)).state()
    slower = Ppo(make_stage(folder, replace(run, ppo=replace(run.ppo, critic_lr=1e-5))))
    slower.restore(state)
    assert [group["lr"] for group in slower.critic_optimizer.param_groups] == [1e-5]


def test_a_resumed_run_is_otherwise_what_it_was(learn):
    learn("run", replace(learn.run, steps=replace(learn.run.steps, total=1)))
    other = replace(learn.run, grpo=replace(learn.run.grpo, clip=0.3))
    with pytest.raises(ConfigError, match="started with grpo.clip"):
        learn("run", other, resume=True)


# --- a server that the reward needs


def away(times, kind=ModelUnreachable):
    """A judge that is away so often, then says yes."""
    left = iter(range(times))

    def say(prompt):
        if next(left, None) is not None:
            raise kind("the judge is away.")
        return "yes"

    return ScriptedLLM(say)


def waiting_for(llm):
    said, slept = [], []
    return Patient(llm, said.append, slept.append), said, slept


def test_a_server_that_is_away_is_waited_for_and_it_is_said():
    judge, said, slept = waiting_for(away(3))
    assert [reply.text for reply in judge.complete(ASKED)] == ["yes"]
    assert slept == [10, 20, 40]
    assert said[0] == "paused: the judge is away. Trying again in 10 seconds" and len(said) == 3


def test_after_an_hour_the_run_ends_and_says_how_to_go_on():
    judge, said, slept = waiting_for(away(1000))
    with pytest.raises(GaveUp, match=r"waited \d\d minutes .* go on with --resume"):
        judge.complete(ASKED)
    assert 3600 <= sum(slept) <= 4200 and len(said) == len(PAUSES)
    # It must not pass for an episode that nobody could pay for, which is dropped.
    assert not issubclass(GaveUp, ModelUnavailable)


def test_what_a_server_refuses_is_not_waited_for():
    judge, said, slept = waiting_for(away(1, ModelUnavailable))
    with pytest.raises(ModelUnavailable):
        judge.complete(ASKED)
    assert said == slept == []


def test_models_on_this_machine_are_asked_as_they_are():
    tiny, judge = ScriptedLLM([], style="compact"), ScriptedLLM([])
    found = patient(Agents(None, tiny, tiny, judge), print)
    assert found.answer is tiny and isinstance(found.judge, Patient) and found.extract is None


def test_a_run_that_gave_up_keeps_its_last_step_and_ends_as_if_nothing_had_been(
    learn, tmp_path, monkeypatch
):
    """Also between two checkpoints."""
    run = replace(learn.run, steps=Steps(total=4, checkpoint_every=3))
    whole, rollouts = learn("whole", run), training_stage_rollouts()

    def gone(self, step):
        if step == 2:
            raise GaveUp("the judge did not come back")
        return rollouts(self, step)

    with monkeypatch.context() as patch:
        patch.setattr("memory_r1.train.stage.Stage.rollouts", gone)
        with pytest.raises(GaveUp):
            learn("run", run)
    assert checkpoint.latest(tmp_path / "run" / checkpoint.FOLDER).name == "step-00000002"
    assert same(whole, learn("run", run, resume=True))


def training_stage_rollouts():
    from memory_r1.train.stage import Stage

    return Stage.rollouts


# --- a full disk


@pytest.mark.parametrize("at", ["weights", "state"])
def test_a_full_disk_leaves_the_checkpoint_before(learn, tmp_path, monkeypatch, at):
    whole, save, saves = learn("whole"), torch.save, iter("123")

    def full(*arguments):
        if next(saves) == "3":
            Path(arguments[1]).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*arguments)

    def no_room(self, to, *arguments, **options):
        if to.name == "step-00000003.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, to, *arguments, **options)

    from memory_r1.train.policy import Policy

    write = Policy.save
    with monkeypatch.context() as patch:
        if at == "state":
            patch.setattr(torch, "save", full)
        else:
            patch.setattr(Policy, "save", no_room)
        with pytest.raises(MemoryR1Error, match=r"No space left.*step-00000002, before it, is wh"):
            learn("run")
    left = sorted(path.name for path in (tmp_path / "run" / checkpoint.FOLDER).iterdir())
    assert left == ["step-00000001", "step-00000002"]
    assert same(whole, learn("run", resume=True))


def test_a_full_disk_under_the_metrics_says_so_too(learn, tmp_path, monkeypatch):
    whole, log = learn("whole"), runlog.RunLog.log

    def full(self, step, metrics):
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        log(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(runlog.RunLog, "log", full)
        with pytest.raises(MemoryR1Error, match=r"could not be written .*No space.*--resume"):
            learn("run")
    assert same(whole, learn("run", resume=True))


def test_another_failure_to_write_is_not_taken_for_a_full_disk(learn, monkeypatch):
    def broken(self, step, metrics):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runlog.RunLog, "log", broken)
    with pytest.raises(PermissionError):
        learn("run")


def test_a_start_that_was_killed_can_be_started_again(learn, tmp_path, monkeypatch):
    """Before there is a configuration there is nothing to resume, and nothing to lose."""

    class Killed(BaseException):
        pass

    def die(path, to):
        if to.name == "config.toml":
            raise Killed
        return rename(path, to)

    rename = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            learn("run")
    assert list((tmp_path / "run").iterdir())
    assert same(learn("run"), learn("whole"))


# --- the real command, in processes of its own


@pytest.mark.slow
@pytest.mark.parametrize("name", training.RUNS)
def test_a_run_killed_and_resumed_ends_as_the_one_left_alone(name):
    figures = training.kill_training(name, 1, seed=1)  # `make torture` kills them more often
    assert figures.counts["kills"] == 1 and figures.counts["runs"] and not figures.wrong


@pytest.mark.slow
def test_a_run_goes_on_after_poison_and_a_full_disk(tmp_path):
    name = "answer, GRPO"
    assert training.train(training.RUNS[name], tmp_path / "whole").code == 0
    assert not training_faults.poison_training(name, tmp_path / "whole", seed=1).wrong
    assert not training_faults.fill_disk(name, tmp_path / "whole").wrong


@pytest.mark.slow
def test_a_run_whose_judge_leaves_learns_from_no_reward_that_nobody_gave():
    figures = training_faults.starve_training("manager, GRPO", seed=1)
    assert not figures.wrong and figures.counts["rewards_missing"] == 0


# --- that it would notice


def test_a_difference_in_one_weight_or_one_metric_is_noticed(learn, tmp_path):
    one = learn("one")
    for place in ("model/model.safetensors", "metrics.jsonl", "checkpoints/step-00000004/state.pt"):
        other = shutil.copytree(one, tmp_path / place.replace("/", "-"))
        assert same(one, other)
        if place.endswith("jsonl"):
            file = other / place
            file.write_text(file.read_text().replace('"reward_mean": ', '"reward_mean": 1'))
        elif place.endswith("pt"):
            state = torch.load(other / place, weights_only=True)
            next(iter(state["states"]["optimizer"]["state"].values()))["exp_avg"].view(-1)[0] += 1
            torch.save(state, other / place)
        else:
            data = bytearray((other / place).read_bytes())
            data[-1] ^= 1
            (other / place).write_bytes(data)
        assert not same(one, other)


def test_a_checkpoint_by_half_is_noticed(learn):
    out = learn("run")
    assert training.unsound(out) == []
    state = out / "checkpoints" / "step-00000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    assert any("not a whole checkpoint" in line for line in training.unsound(out))


def test_the_judge_leaves_and_comes_back_where_it_was():
    judge = training_faults.Judge()
    try:
        llm = partial(players.open_llm, f"{judge.url}#judge")()
        llm._sleep = lambda seconds: None
        assert "WRONG" in llm.complete(ASKED)[0].text
        judge.leave_after(0)
        with pytest.raises(ModelUnreachable):
            llm.complete(ASKED)
        judge.leave()
        judge.come_back()
        assert "WRONG" in llm.complete(ASKED)[0].text
    finally:
        judge.close()

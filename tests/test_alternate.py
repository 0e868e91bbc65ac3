"""Stages of one run, and groups that are made up for: loops around the algorithms, no model."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from rich.console import Console

pytest.importorskip("torch")

from memory_r1.config import Settings  # noqa: E402
from memory_r1.errors import ConfigError, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents  # noqa: E402
from memory_r1.train import learn as learning  # noqa: E402
from memory_r1.train.alternate import alternate, stage_of  # noqa: E402
from memory_r1.train.episodes import Outcome  # noqa: E402
from memory_r1.train.learn import Learned  # noqa: E402
from memory_r1.train.rollout import Step  # noqa: E402
from memory_r1.train.runfile import Rollout, Run, Stages, World, dump, load_run  # noqa: E402
from memory_r1.train.stage import Stage, alive  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402

ORDER = ("manager", "answer", "manager")


def run_of(**changes):
    settings = {"kind": "manager", "model": "base", "world": World(), "stages": Stages(ORDER)}
    return Run(**{**settings, **changes})


# --- stages


class Trainer:
    """Stands in for `learn`: leaves what a finished run leaves, or stops in the middle."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, run, out, *, resume, command, watch, console):
        self.seen.append((out.name, run.kind, run.model, run.manager, run.answer, resume))
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.json").write_text("{}")
        if len(self.seen) == self.fail_at:
            raise ModelUnavailable("the service is away")
        (out / "model").mkdir()
        mine, other = ("manage", "answer") if run.kind == "manager" else ("answer", "manage")
        partner = run.answer if run.kind == "manager" else run.manager
        players = {
            mine: "model",
            other: f"../{partner.split('/')[-1]}/model" if partner else "base",
        }
        (out / "agents.json").write_text(json.dumps(players | {"extract": "base"}))
        n = len(self.seen)
        return Learned(out, {"eval_em": n / 10}, {"eval_em": n / 10 + 0.05})


@pytest.fixture
def play(monkeypatch, tmp_path):
    def start(trainer, run=None, resume=False):
        monkeypatch.setattr(learning, "learn", trainer)
        console = Console(record=True, width=200, file=open("/dev/null", "w"))
        with console.file:
            learned = alternate(run or run_of(), tmp_path / "out", resume=resume, console=console)
        return learned, console.export_text().splitlines()

    return start


def test_each_stage_has_the_partner_that_was_trained_last(play, tmp_path):
    trainer, out = Trainer(), tmp_path / "out"
    learned, shown = play(trainer, run_of(answer="first-partner"))
    one, two = str(out / "1-manager"), str(out / "2-answer")
    assert trainer.seen == [
        ("1-manager", "manager", "base", None, "first-partner", False),
        ("2-answer", "answer", "base", one, None, False),
        ("3-manager", "manager", one, None, two, False),
    ]
    assert [line.partition(",")[0] for line in shown] == [
        f"stage {n} of 3: {kind}" for n, kind in enumerate(ORDER, 1)
    ]
    assert (learned.before["eval_em"], learned.after["eval_em"]) == (0.1, 0.35)
    assert json.loads((out / "agents.json").read_text()) == {
        "manage": "3-manager/model",
        "answer": "2-answer/model",
        "extract": "base",
    }


def test_a_run_that_stopped_goes_on_with_its_stage(play, tmp_path):
    with pytest.raises(ModelUnavailable):
        play(Trainer(fail_at=2))
    with pytest.raises(ConfigError, match="not empty"):
        play(Trainer())
    again = Trainer()
    _, shown = play(again, resume=True)
    assert [(name, resume) for name, *_, resume in again.seen] == [
        ("2-answer", True),
        ("3-manager", False),
    ]
    assert shown[0].endswith("1-manager: finished before")
    assert play(Trainer(), resume=True)[0] is None


def test_a_resumed_run_is_the_run_that_was_begun(play, tmp_path):
    with pytest.raises(ConfigError, match="no run to resume"):
        play(Trainer(), resume=True)
    play(Trainer())
    with pytest.raises(ConfigError, match="was started with seed = 0, not 1"):
        play(Trainer(), run_of(seed=1), resume=True)
    play(Trainer(), resume=True)


def test_a_stage_is_an_ordinary_run(tmp_path):
    stage = stage_of(run_of(), "answer", {"manager": tmp_path})
    (tmp_path / "run.toml").write_text(dump(stage))
    assert load_run(tmp_path / "run.toml") == stage and stage.stages is None


# --- resampling


@dataclass
class Coin:
    """Pays what its start says: a number for all rollouts, or a different one for each."""

    start: str
    number: int
    about: str = ""
    malformed: int = 0
    steps: int = 0

    @property
    def done(self):
        return self.steps == 1

    def prompt(self):
        return Prompt((("user", self.start),))

    def step(self, completion):
        self.steps += 1

    @property
    def key(self):
        return (self.start, self.number)

    def judge(self):
        if self.start == "away":
            raise ModelUnavailable("nobody")
        paid = float(self.number % 2) if self.start.startswith("live") else 0.0
        return Outcome(paid, paid, paid)
        yield


class Coins(Stage):
    begun = 0

    def begin(self, start):
        self.begun += 1
        return Coin(start, self.begun)


def stage(practice, **rollout):
    def generate(prompts, seed):
        return [Step((1,), (2,), (0.0,), "", prompt.text, True) for prompt in prompts]

    run = run_of(stages=None, rollout=Rollout(prompts=4, group_size=2, **rollout))
    policy = SimpleNamespace(generate=generate)
    return Coins(run, policy, Agents(), Settings(), practice, [], {})


def groups_of(played, groups):
    return {g: r.episode.start for r, g in zip(played, groups, strict=True)}


MIXED = [f"live {i}" for i in range(6)] + [f"tied {i}" for i in range(10)]


def test_tied_groups_are_made_up_for_by_other_episodes():
    plain = stage(MIXED).rollouts(0)
    assert len(set(plain[1])) == 4
    played, groups = stage(MIXED, resample=9).rollouts(0)
    found = groups_of(played, groups)
    assert alive(played, groups) >= 4 and len(found) > 4
    assert len(set(found.values())) == len(found)  # no episode twice in one step
    assert [groups.count(g) for g in found] == [2] * len(found)
    assert groups_of(*plain) == {g: found[g] for g in range(4)}


def test_further_draws_are_bounded():
    played, groups = stage(MIXED[6:], resample=1).rollouts(0)
    assert alive(played, groups) == 0 and len(set(groups)) == 8
    few = stage(["tied"] * 5, resample=3).rollouts(0)
    assert len(set(few[1])) == 5  # there is no sixth


def test_the_same_step_draws_the_same_episodes_after_a_resume():
    first, again = stage(MIXED, resample=2), stage(MIXED, resample=2)
    first.rollouts(0)
    assert groups_of(*first.rollouts(1)) == groups_of(*again.rollouts(1))


def test_a_step_for_which_nobody_can_pay_stops_the_run():
    with pytest.raises(ModelUnavailable, match="no rollout of step 3 could be paid for"):
        stage(["away"] * 4).rollouts(2)
    played, groups = stage(["away", "live", "tied", "tied too"]).rollouts(0)
    assert sum(r.outcome is None for r in played) == 2 and alive(played, groups) == 1

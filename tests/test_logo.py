"""LoGo-GRPO is tested by learning: whole plays and redone sessions each move the policy."""

from dataclasses import dataclass, replace
from functools import partial

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from made_models import random_tiny  # noqa: E402

from memory_r1.config import Settings  # noqa: E402
from memory_r1.data import Dialogue, Question, Session  # noqa: E402
from memory_r1.embed import open_embedder  # noqa: E402
from memory_r1.errors import ConfigError  # noqa: E402
from memory_r1.llm import Agents  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.train import logo as algorithm  # noqa: E402
from memory_r1.train import logo_stage  # noqa: E402
from memory_r1.train.credit import Unit  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.logo import Logo, compare  # noqa: E402
from memory_r1.train.logo_stage import LogoStage, horizon  # noqa: E402
from memory_r1.train.policy import Policy  # noqa: E402
from memory_r1.train.rewards import Measured  # noqa: E402
from memory_r1.train.runfile import Grpo as GrpoSettings  # noqa: E402
from memory_r1.train.runfile import Logo as LogoSettings  # noqa: E402
from memory_r1.train.runfile import Optimizer, Rollout, Run, Steps, World  # noqa: E402
from memory_r1.train.sessions import Mark, Players, Size, Verdict  # noqa: E402
from memory_r1.types import Turn  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("model") / "tiny")


def dialogue(name):
    """Three sessions of two turns, and a question on each session."""
    sessions = [
        tuple(Turn(name, f"I like {w}.", id=f"D{s}:{t}") for t, w in enumerate(("tea", "snow"), 1))
        for s in (1, 2, 3)
    ]
    asked = [Question(f"{name}/{s}", name, "What?", "tea", (f"D{s}:1",), 4) for s in (1, 2, 3)]
    told = [Session(s, None, turns) for s, turns in enumerate(sessions, 1)]
    return Dialogue(name, (name,), tuple(told), tuple(asked))


def make_run(**changes):
    settings = {
        "kind": "manager",
        "model": "x",
        "algorithm": "logo",
        "world": World(),
        "rollout": Rollout(prompts=2, group_size=4, max_tokens=2),
        "grpo": GrpoSettings(kl=0.0),
        "optimizer": Optimizer(lr=3e-2),
        "steps": Steps(total=4, checkpoint_every=2),
    }
    return Run(**{**settings, **changes})


def make_stage(folder, run):
    rollout = run.rollout
    llm = LocalLLM(str(folder)).copy()
    policy = Policy(llm, temperature=rollout.temperature, max_tokens=rollout.max_tokens)
    players = Players(policy, Agents(), Settings(), Measured("em"), Size())
    return LogoStage(run, policy, players, open_embedder(), list(map(dialogue, "AB")), [], {})


@dataclass(frozen=True)
class Capitals:
    """Judges by what was read: each of a session's replies that begins with a capital pays.

    whole: what plays of more than one session are paid of that.
    """

    whole: float = 1.0

    def __call__(self, plays, players):
        return [self.verdict(play) for play in plays]

    def verdict(self, play):
        course = play.start.course
        paid = self.whole if len(play.start.sessions) > 1 else 1.0
        marks = []
        for question in play.start.questions:
            (session,) = course.rests_on[course.questions.index(question)]
            read = [told.step.text for told in play.told if told.session == session]
            share = paid * sum(text[:1].isupper() for text in read) / max(1, len(read))
            marks.append(Mark(question, "", share, share, share, ()))
        mean = sum(mark.paid for mark in marks) / len(marks)
        return Verdict(mean, mean, mean, {}, tuple(marks))


def weights(stage):
    return {name: t.clone() for name, t in stage.policy.model.state_dict().items()}


def moved(stage, before):
    return not all(
        torch.equal(t, before[name]) for name, t in stage.policy.model.state_dict().items()
    )


@pytest.mark.parametrize("credit", ["dialogue", "evidence"])
def test_logo_learns_what_is_rewarded(folder, monkeypatch, credit):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals())
    run = make_run(logo=LogoSettings(credit=credit))
    logo = Logo(make_stage(folder, run))
    rewards = [logo.step(n)[0]["reward_mean"] for n in range(24)]
    assert sum(rewards[:2]) / 2 < 0.5
    assert sum(rewards[-2:]) / 2 > 0.75


def test_redone_sessions_alone_teach_too(folder, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals(whole=0.0))
    logo = Logo(make_stage(folder, make_run(logo=LogoSettings(local=1.0))))

    def capitals(plays):
        read = [told.step.text for play in plays for told in play.told]
        return sum(text[:1].isupper() for text in read) / len(read)

    stage = logo.stage
    starts = [stage.start(course, "test") for course in stage.draw(0)] * 8
    before = capitals(stage.play(starts, "test"))
    for number in range(20):
        metrics, _ = logo.step(number)
        assert metrics["frac_zero_std"] == 1.0  # the ends of dialogues say nothing
    assert capitals(stage.play(starts, "test")) > before + 0.3


def test_without_a_local_term_tied_ends_move_nothing(folder, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals(whole=0.0))
    stage = make_stage(folder, make_run(logo=LogoSettings(local=0.0)))
    before = weights(stage)
    metrics, _ = Logo(stage).step(0)
    assert metrics["rows"] == 0
    assert "rerollout_distinct" not in metrics
    assert not moved(stage, before)


def test_rerollouts_differ_and_greedy_ones_are_found_out(folder, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals(whole=0.0))
    run = make_run(logo=LogoSettings(local=1.0))
    metrics, _ = Logo(make_stage(folder, run)).step(0)
    assert metrics["rerollout_distinct"] > 0.8
    assert metrics["advantage_local"] == 1.0

    stage = make_stage(folder, run)
    stage.policy.generate = partial(
        lambda f, prompts, seed: f(prompts, seed=None), stage.policy.generate
    )
    before = weights(stage)
    metrics, _ = Logo(stage).step(0)
    assert metrics["rerollout_distinct"] == 0.0
    assert metrics["frac_zero_std_local"] == 1.0
    assert not moved(stage, before)


def test_the_branch_of_noops_says_what_a_session_was_worth(folder, monkeypatch):
    def judge(plays, players):  # what is written is worth 1, all alike
        return [
            replace(Capitals().verdict(play), reward=float(not play.start.silent)) for play in plays
        ]

    monkeypatch.setattr(algorithm, "judge_plays", judge)
    branched = make_run(logo=LogoSettings(local=1.0, credit="dialogue", noop_branch=True))
    metrics, _ = Logo(make_stage(folder, branched)).step(0)
    assert metrics["utility"] == 1.0
    assert metrics["frac_zero_std_local"] == 0.0

    plain = make_run(logo=LogoSettings(local=1.0, credit="dialogue"))
    metrics, _ = Logo(make_stage(folder, plain)).step(0)
    assert "utility" not in metrics
    assert metrics["frac_zero_std_local"] == 1.0


def test_a_verdict_that_is_missing_is_never_paid(folder, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", lambda plays, players: [None] * len(plays))
    stage = make_stage(folder, make_run())
    before = weights(stage)
    metrics, _ = Logo(stage).step(0)
    assert metrics["infra_failures"] == 8
    assert metrics["rows"] == 0
    assert not moved(stage, before)


@pytest.mark.parametrize("ratio", ["turn", "token"])
def test_sampled_and_recomputed_log_probs_agree(folder, monkeypatch, ratio):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals())
    run = make_run(
        rollout=Rollout(prompts=2, group_size=4, max_tokens=5, temperature=0.7),
        logo=LogoSettings(ratio=ratio),
        grpo=GrpoSettings(kl=0.01, epochs=2, minibatches=2),
    )
    metrics, _ = Logo(make_stage(folder, run)).step(0)
    assert metrics["logp_difference"] < 1e-4
    assert metrics["kl"] > 0  # the second pass has left the reference


def test_units_are_compared_within_their_group_and_no_other():
    def unit(group, reward):
        return Unit((group,), reward, (f"by {group}",))

    units = [unit("a", 1.0), unit("b", 5.0), unit("a", 0.0), unit("b", 5.0), unit("c", 9.0)]
    found = compare(units, scale_by_std=False)
    assert found.told == [(("a",), "by a", 0.5), (("a",), "by a", -0.5)]
    assert found.tied == pytest.approx(2 / 3)  # all alike in b, alone in c


def test_the_curriculum_follows_the_step():
    settings = LogoSettings(curriculum=(4, 8, 16), stage_steps=(2, 3))
    assert [horizon(settings, step) for step in range(7)] == [4, 4, 8, 8, 8, 16, 16]
    assert horizon(LogoSettings(), 5) == 0


def test_a_stage_plays_only_its_sessions(folder, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals())
    run = make_run(logo=LogoSettings(curriculum=(1, 3), stage_steps=(1,)))
    logo = Logo(make_stage(folder, run))
    assert [logo.step(n)[0]["sessions"] for n in range(2)] == [1.0, 3.0]


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(algorithm, "judge_plays", Capitals())
    monkeypatch.setattr(logo_stage, "prepare", lambda run, say: make_stage(folder, run))
    run = make_run(
        logo=LogoSettings(curriculum=(1, 2, 3), stage_steps=(1, 2)),
        grpo=GrpoSettings(kl=0.001, epochs=2, minibatches=2),
    )
    learn(run, tmp_path / "whole")
    learn(replace(run, steps=replace(run.steps, total=2)), tmp_path / "parts")
    learn(run, tmp_path / "parts", resume=True)

    def trained(out):
        return LocalLLM(str(out / "model")).model.state_dict()

    def last_row(out):
        return (out / "metrics.jsonl").read_text("utf-8").splitlines()[-1]

    one, other = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert all(torch.equal(one[key], other[key]) for key in one)
    begun = LocalLLM(str(folder)).model.state_dict()
    assert not all(torch.equal(one[key], begun[key]) for key in one)
    tokens = [
        row.partition('"sampled_tokens": ')[2].partition(",")[0]
        for row in map(last_row, (tmp_path / "whole", tmp_path / "parts"))
    ]
    assert tokens[0] == tokens[1] != ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "answer"}, 'kind = "manager"'),
        ({"rollout": Rollout(group_size=1)}, "needs at least 2"),
    ],
)
def test_a_run_that_cannot_be_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        make_run(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"curriculum": (4, 8)}, "one for every stage but the last"),
        ({"rerollouts": 1}, "compared with another"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        LogoSettings(**changes)

"""Training is tested by learning: a policy must come to do what is rewarded."""

from dataclasses import dataclass, replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from made_models import random_tiny  # noqa: E402

from memory_r1.config import Settings  # noqa: E402
from memory_r1.errors import ConfigError, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.train import learn as learning  # noqa: E402
from memory_r1.train.episodes import Outcome  # noqa: E402
from memory_r1.train.grpo import Grpo  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.policy import Policy, Row, micro_batches, sampled_logps, score  # noqa: E402
from memory_r1.train.ppo import Ppo  # noqa: E402
from memory_r1.train.runfile import Grpo as GrpoSettings  # noqa: E402
from memory_r1.train.runfile import Optimizer, Rollout, Run, Steps, World  # noqa: E402
from memory_r1.train.runfile import Ppo as PpoSettings  # noqa: E402
from memory_r1.train.stage import Stage  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("model") / "tiny")


@dataclass
class Capitals:
    """Pays for a reply that begins with a capital: one in four of a random policy's."""

    about: str
    policy: Policy
    turns: int = 1
    malformed: int = 0
    steps: int = 0
    reachable: bool = True

    def __post_init__(self):
        self.said = []

    @property
    def done(self):
        return self.steps == self.turns

    def prompt(self):
        return Prompt((("user", f"question {self.about} {' '.join(self.said[-1:])} =>"),))

    def step(self, completion):
        self.steps += 1
        self.said.append(completion.text)

    @property
    def key(self):
        return (self.about, *self.said)

    def judge(self):
        if not self.reachable:
            raise ModelUnavailable("the judge is away")
        paid = sum(text[:1].isupper() for text in self.said) / len(self.said)
        return Outcome(paid, paid, paid)
        yield


class Practice(Stage):
    turns = 1

    def begin(self, start):
        return Capitals(start, self.policy, self.turns)


def make_run(**changes):
    settings = {
        "kind": "manager",
        "model": "x",
        "world": World(),
        "rollout": Rollout(prompts=4, group_size=8, max_tokens=2),
        "grpo": GrpoSettings(kl=0.0),
        "ppo": PpoSettings(kl=0.0, critic_lr=1e-2),
        "optimizer": Optimizer(lr=2e-2),
        "steps": Steps(total=4, checkpoint_every=2),
    }
    return Run(**{**settings, **changes})


def make_stage(folder, run):
    policy = Policy(
        LocalLLM(str(folder)).copy(),
        temperature=run.rollout.temperature,
        max_tokens=run.rollout.max_tokens,
    )
    starts = ["Andrew", "Buddy", "Scout", "a dog"]
    return Practice(run, policy, Agents(), Settings(), starts, [], {})


def reward(algorithm, steps):
    return [algorithm.step(n)[0]["reward_mean"] for n in range(steps)]


def test_grpo_learns_what_is_rewarded(folder):
    rewards = reward(Grpo(make_stage(folder, make_run())), 35)
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > 0.8


def test_ppo_learns_what_is_rewarded(folder):
    rewards = reward(Ppo(make_stage(folder, make_run(algorithm="ppo"))), 30)
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > 0.8


def test_episodes_of_several_steps_learn_too(folder):
    stage = make_stage(folder, make_run(algorithm="ppo"))
    stage.turns = 2
    rewards = reward(Ppo(stage), 25)
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3


@pytest.mark.parametrize("algorithm", [Grpo, Ppo])
def test_sampled_and_recomputed_log_probs_agree(folder, algorithm):
    run = make_run(rollout=Rollout(prompts=4, group_size=8, max_tokens=6, temperature=0.7))
    metrics, _ = algorithm(make_stage(folder, run)).step(0)
    assert metrics["logp_difference"] < 1e-4


def gradient(stage, rows, budget):
    from memory_r1.train.algorithms import loss_denominator, policy_loss

    model = stage.policy.model
    model.zero_grad()
    batches = list(micro_batches(rows, budget, stage.policy.llm.pad_id, model.device))
    n = sum(loss_denominator(b.mask) for b in batches)
    for batch in batches:
        advantages = torch.tensor([rows[i].advantage for i in batch.rows])
        scored = score(model, batch, 1.0)
        policy_loss(
            scored.logp, sampled_logps(rows, batch), advantages, batch.mask, denominator=n
        ).loss.backward()
    return len(batches), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_gradient_does_not_depend_on_micro_batches_or_on_sharing_prompts(folder):
    stage = make_stage(folder, make_run())
    played, _ = stage.rollouts(0)
    rows = [Row(r.steps[0], i, float(i % 3 - 1)) for i, r in enumerate(played)]
    whole, together = gradient(stage, rows, 100_000)
    many, apart = gradient(stage, rows, 1)
    # A prompt that differs in nothing but its place: no two rows share a tree any more.
    lone = [(n, g) for n, g in (gradient(stage, [row], 100_000) for row in rows)]
    tokens = sum(len(row.step.ids) for row in rows)
    unshared = sum(g * len(r.step.ids) for (_, g), r in zip(lone, rows, strict=True)) / tokens
    assert (whole, many) == (1, 32)
    assert together.abs().max() > 1e-4
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(unshared, together, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(learning, "prepare", lambda run, say: make_stage(folder, run))

    def weights(out):
        return LocalLLM(str(out / "model")).model.state_dict()

    run = make_run(algorithm=name)
    learn(run, tmp_path / "whole")
    half = replace(run, steps=replace(run.steps, total=2))
    learn(half, tmp_path / "parts")
    learn(run, tmp_path / "parts", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[key], other[key]) for key in one)
    begun = LocalLLM(str(folder)).model.state_dict()
    assert not all(torch.equal(one[key], begun[key]) for key in one)


def test_an_unreachable_judge_is_no_reward(folder):
    stage = make_stage(folder, make_run())
    begin = stage.begin
    stage.begin = lambda start: replace(begin(start), reachable=start != "Buddy")
    algorithm = Grpo(stage)
    metrics, played = algorithm.step(0)
    assert metrics["infra_failures"] == 8
    assert all((r.outcome is None) == (r.episode.about == "Buddy") for r in played)


def test_a_run_folder_is_not_overwritten_and_needs_to_exist_to_be_resumed(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(learning, "prepare", lambda run, say: make_stage(folder, run))
    run = make_run(steps=Steps(total=1))
    learn(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        learn(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="no run to resume"):
        learn(run, tmp_path / "nowhere", resume=True)

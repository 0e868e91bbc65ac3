"""The learning maths against other implementations, on random ragged batches, to 1e-6.

The first half is written anew with loops over plain numbers, so that it shares no formula on
tensors with the code. The second half is verl's and TRL's own code, where these are installed:

    python -m pytest tests/test_numerics.py        in an environment with verl 0.9.1 or trl 1.16

Two differences are meant: a group whose rewards are all equal, and a group of one, get an advantage
of exactly 0 here. verl gives a single rollout its reward as its advantage, and both give a tied
group what rounding leaves, divided by almost nothing.
"""

import math
import random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from memory_r1.train.algorithms import (  # noqa: E402
    aggregate,
    gae,
    grpo_advantages,
    kl,
    policy_loss,
    value_loss,
)

SEEDS = range(8)
BUDGET = 9
"""Of "dr_grpo": the width of the batches, so that all agree on it."""


class Batch:
    """Random log-probs, rewards and values of rows of different lengths, with holes inside."""

    def __init__(self, seed):
        rng = random.Random(seed)
        rows = rng.randint(2, 7)
        self.mask = torch.zeros(rows, BUDGET, dtype=torch.bool)
        for row in range(rows):
            for t in range(rng.randint(1, BUDGET)):
                self.mask[row, t] = t == 0 or rng.random() < 0.85
        generator = torch.Generator().manual_seed(seed)

        def noise(scale=1.0):
            return scale * torch.randn(rows, BUDGET, generator=generator, dtype=torch.float64)

        self.old = -noise().abs()
        self.logp = self.old + noise(0.6)
        self.ref = self.old + noise(0.6)
        self.values, self.values_old, self.returns = noise(), noise(), noise()
        self.rewards = noise() * (torch.rand(rows, BUDGET, generator=generator) < 0.3)
        self.advantages = noise()
        groups = [rng.randint(0, 2) for _ in range(rows)]
        self.outcomes = torch.tensor([rng.choice([0.0, 0.25, 1.0]) for _ in groups]).double()
        self.groups = torch.tensor(groups)

    def tokens(self, row):
        return [t for t in range(BUDGET) if self.mask[row, t]]

    @property
    def rows(self):
        return range(len(self.mask))


def averaged(batch, number, mode):
    """number(row, t) over the valid tokens, averaged as `mode` says."""
    sums = [sum(number(row, t) for t in batch.tokens(row)) for row in batch.rows]
    lengths = [len(batch.tokens(row)) for row in batch.rows]
    match mode:
        case "token":
            return sum(sums) / sum(lengths)
        case "sequence":
            return sum(s / n for s, n in zip(sums, lengths, strict=True)) / len(sums)
        case "dr_grpo":
            return sum(sums) / (len(sums) * BUDGET)


MODES = ["token", "sequence", "dr_grpo"]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_advantages_are_those_of_plain_numbers(seed, scale):
    batch = Batch(seed)
    found = grpo_advantages(batch.outcomes, batch.groups, scale_by_std=scale).tolist()
    for i, group in enumerate(batch.groups.tolist()):
        of = [
            r
            for r, g in zip(batch.outcomes.tolist(), batch.groups.tolist(), strict=True)
            if g == group
        ]
        wanted = 0.0
        if len(set(of)) > 1:
            mean = math.fsum(of) / len(of)
            wanted = batch.outcomes[i].item() - mean
            if scale:
                wanted /= math.sqrt(math.fsum((r - mean) ** 2 for r in of) / (len(of) - 1)) + 1e-6
        assert found[i] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_policy_loss_is_that_of_plain_numbers(seed, dual, mode):
    batch = Batch(seed)

    def one(row, t):
        a = batch.advantages[row, t].item()
        ratio = math.exp(batch.logp[row, t].item() - batch.old[row, t].item())
        if a >= 0:
            return -a * min(ratio, 1.28)
        grown = max(ratio, 0.8)
        return -a * (grown if dual is None else min(grown, dual))

    found = policy_loss(
        batch.logp,
        batch.old,
        batch.advantages,
        batch.mask,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual,
        aggregate=mode,
    )
    assert found.loss.item() == pytest.approx(averaged(batch, one, mode), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_estimates_are_those_of_plain_numbers(seed):
    batch = Batch(seed)
    ways = {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "k3": lambda p, q: math.exp(q) / math.exp(p) - 1 - (q - p),
    }
    for kind, way in ways.items():
        found = aggregate(kl(batch.logp, batch.ref, kind), batch.mask)
        wanted = averaged(
            batch, lambda r, t, w=way: w(batch.logp[r, t].item(), batch.ref[r, t].item()), "token"
        )
        assert found.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_is_the_sum_of_discounted_surprises(seed):
    """By its definition: A_t is the sum over k of (gamma lambda)^k delta_{t+k}."""
    batch, gamma, lam = Batch(seed), 0.97, 0.9
    found = gae(batch.rewards, batch.values, batch.mask, gamma=gamma, lam=lam)
    raw = {}
    for row in batch.rows:
        tokens = batch.tokens(row)
        rewards = [batch.rewards[row, t].item() for t in tokens]
        values = [batch.values[row, t].item() for t in tokens] + [0.0]
        deltas = [r + gamma * values[k + 1] - values[k] for k, r in enumerate(rewards)]
        for k, t in enumerate(tokens):
            later = range(len(tokens) - k)
            raw[row, t] = math.fsum((gamma * lam) ** n * deltas[k + n] for n in later)
            assert found.returns[row, t].item() == pytest.approx(raw[row, t] + values[k], abs=1e-6)
    mean = math.fsum(raw.values()) / len(raw)
    spread = math.fsum((a - mean) ** 2 for a in raw.values()) / (len(raw) - 1)
    for (row, t), a in raw.items():
        wanted = (a - mean) / math.sqrt(spread + 1e-8)
        assert found.advantages[row, t].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_value_loss_is_that_of_plain_numbers(seed, mode):
    batch = Batch(seed)

    def one(row, t):
        v, old, target = (x[row, t].item() for x in (batch.values, batch.values_old, batch.returns))
        near = old + max(-0.3, min(0.3, v - old))
        return max((v - target) ** 2, (near - target) ** 2) / 2

    found = value_loss(
        batch.values, batch.values_old, batch.returns, batch.mask, clip=0.3, aggregate=mode
    )
    assert found.item() == pytest.approx(averaged(batch, one, mode), abs=1e-6)


# --- verl


@pytest.fixture
def verl():
    reason = "verl is not installed here (docs/verl.md makes an environment for it)"
    return pytest.importorskip("verl.trainer.ppo.core_algos", reason=reason)


VERL_MODES = {
    "token": "token-mean",
    "sequence": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}


@pytest.mark.parametrize("scale", [True, False])
def test_grpo_advantages_are_verls_where_a_group_has_something_to_say(verl, scale):
    for batch in map(Batch, SEEDS):
        paid = torch.zeros_like(batch.values)
        paid[:, 0] = batch.outcomes
        theirs, _ = verl.compute_grpo_outcome_advantage(
            paid, batch.mask.double(), batch.groups.numpy(), norm_adv_by_std_in_grpo=scale
        )
        ours = grpo_advantages(batch.outcomes, batch.groups, scale_by_std=scale)
        for row, group in enumerate(batch.groups):
            if len(set(batch.outcomes[batch.groups == group].tolist())) > 1:
                assert ours[row].item() == pytest.approx(theirs[row, 0].item(), abs=1e-6)
            else:
                assert ours[row] == 0  # theirs: the reward itself, or what rounding leaves


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_the_losses_are_verls(verl, mode):
    for batch in map(Batch, SEEDS):
        mask = batch.mask.double()
        theirs, *_ = verl.compute_policy_loss(
            batch.old,
            batch.logp,
            batch.advantages,
            mask,
            cliprange_low=0.2,
            cliprange_high=0.28,
            clip_ratio_c=1.5,
            loss_agg_mode=VERL_MODES[mode],
        )
        ours = policy_loss(
            batch.logp,
            batch.old,
            batch.advantages,
            batch.mask,
            clip_low=0.2,
            clip_high=0.28,
            dual_clip=1.5,
            aggregate=mode,
        )
        assert ours.loss.item() == pytest.approx(theirs.item(), abs=1e-6)
        theirs, _ = verl.compute_value_loss(
            batch.values, batch.returns, batch.values_old, mask, 0.3, VERL_MODES[mode]
        )
        ours = value_loss(
            batch.values, batch.values_old, batch.returns, batch.mask, clip=0.3, aggregate=mode
        )
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_gae_and_kl_are_verls(verl):
    for batch in map(Batch, SEEDS):
        advantages, returns = verl.compute_gae_advantage_return(
            batch.rewards, batch.values, batch.mask.double(), 0.97, 0.9
        )
        ours = gae(batch.rewards, batch.values, batch.mask, gamma=0.97, lam=0.9)
        for found, wanted in ((ours.advantages, advantages), (ours.returns, returns)):
            torch.testing.assert_close(found[batch.mask], wanted[batch.mask], atol=1e-6, rtol=0)
        for kind in ("k1", "k2", "k3"):
            wanted = verl.kl_penalty(batch.logp, batch.ref, kind)
            torch.testing.assert_close(kl(batch.logp, batch.ref, kind), wanted, atol=1e-6, rtol=0)


# --- TRL


@pytest.fixture
def trl():
    return pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed here")


TRL_MODES = {"token": "bnpo", "sequence": "grpo", "dr_grpo": "dr_grpo"}


def trainer_of(batch, mode, beta, delta):
    """As much of a GRPOTrainer as its loss looks at."""
    scored = batch.logp, torch.zeros_like(batch.logp), None
    metrics = {"eval": {}}

    class Lists(dict):
        def __missing__(self, name):
            return self.setdefault(name, [])

    metrics["eval"] = Lists()
    same = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: scored,
        _entropy_bonus_enabled=False,
        _metrics=metrics,
        accelerator=same,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        beta=beta,
        epsilon_high=0.28,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type=TRL_MODES[mode],
        max_completion_length=BUDGET,
        model=SimpleNamespace(training=False),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delta", [None, 1.5])
def test_the_policy_loss_with_its_kl_is_trls(trl, delta, mode):
    for batch in map(Batch, SEEDS):
        beta = 0.1
        ids = torch.ones_like(batch.mask).long()
        inputs = {
            "prompt_ids": ids,
            "prompt_mask": ids,
            "completion_ids": ids,
            "completion_mask": batch.mask.double(),
            "advantages": batch.advantages,
            "old_per_token_logps": batch.old,
            "ref_per_token_logps": batch.ref,
        }
        trainer = trainer_of(batch, mode, beta, delta)
        theirs = trl.GRPOTrainer._compute_loss(trainer, None, inputs).item()
        ours = policy_loss(
            batch.logp,
            batch.old,
            batch.advantages,
            batch.mask,
            clip_low=0.2,
            clip_high=0.28,
            dual_clip=delta,
            aggregate=mode,
        ).loss
        drift = aggregate(kl(batch.logp, batch.ref, "k3"), batch.mask, mode)
        assert (ours + beta * drift).item() == pytest.approx(theirs, abs=1e-6)

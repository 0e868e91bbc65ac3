"""Expected numbers are worked by hand (or by another method), never by the formula under test."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.errors import ConfigError
from memory_r1.train.algorithms import (
    adaptive_kl,
    aggregate,
    explained_variance,
    gae,
    grpo_advantages,
    kl,
    loss_denominator,
    policy_loss,
    tied,
    value_loss,
    whiten,
)

MODES = ["token", "sequence", "dr_grpo"]


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def ones(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def close(actual: torch.Tensor, expected: object, atol: float = 5e-6) -> None:
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0
    )


# --- GRPO advantages


def test_a_rollout_is_scored_in_standard_deviations_from_its_groups_mean():
    rewards = torch.tensor([1.0, 0.0, 0.0])
    close(grpo_advantages(rewards, torch.zeros(3)), [1.1546985, -0.5773493, -0.5773493], 1e-6)
    coarse = grpo_advantages(rewards, torch.zeros(3), eps=1e-4)
    close(coarse, [1.1545005, -0.5772503, -0.5772503], 1e-6)


def test_without_the_std_a_rollout_is_scored_by_its_distance_from_the_mean():
    advantages = grpo_advantages(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), scale_by_std=False)
    close(advantages, [0.667, -0.333, -0.333], 5e-4)


def test_a_rollout_is_scored_against_its_own_group_wherever_it_stands():
    rewards, groups = torch.tensor([1.0, 5.0, 0.0, 5.0]), torch.tensor([7, 1, 7, 1])
    expected = torch.tensor([0.5, 0.0, -0.5, 0.0])
    assert torch.equal(grpo_advantages(rewards, groups, scale_by_std=False), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_a_tied_group_gives_no_gradient(reward, size):
    rewards, groups = torch.full((size,), reward), torch.zeros(size)
    assert not grpo_advantages(rewards, groups).any()
    assert tied(rewards, groups).all()


def test_only_whole_groups_of_one_reward_are_tied():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5])
    groups = torch.tensor([0, 1, 1, 2, 0])
    assert tied(rewards, groups).tolist() == [False, False, False, True, False]


graded = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4).map(lambda n: n / 4)), min_size=1, max_size=24
)


@given(graded, st.integers(-8, 8), st.randoms(use_true_random=False))
def test_shifting_all_rewards_or_reordering_rollouts_changes_no_advantage(pairs, shift, random):
    def advantages(of: list[tuple[int, float]], by: float = 0.0) -> torch.Tensor:
        groups = torch.tensor([g for g, _ in of])
        return grpo_advantages(torch.tensor([r + by for _, r in of]).double(), groups)

    plain = advantages(pairs)
    close(advantages(pairs, shift), plain.tolist())
    order = random.sample(range(len(pairs)), len(pairs))
    close(advantages([pairs[i] for i in order]), plain[order].tolist())


@given(graded)
def test_the_advantages_of_a_group_balance(pairs):
    groups, rewards = torch.tensor([g for g, _ in pairs]), torch.tensor([r for _, r in pairs])
    advantages = grpo_advantages(rewards.double(), groups)
    for group in groups.unique():
        assert abs(advantages[groups == group].sum()) < 1e-9


# --- GAE


def test_gae_credits_earlier_tokens_through_the_critic():
    rewards, values = row(0, 0, 1), row(0.1, 0.2, 0.3)
    advantages, returns = gae(rewards, values, ones(values), gamma=1.0, lam=0.95)
    close(returns, [[0.92675, 0.965, 1.0]], 1e-9)
    close(advantages, [[0.99134, 0.01709, -1.00844]])


def test_without_discount_every_token_is_credited_with_the_whole_outcome():
    values = row(0.3, -2.0, 0.9)
    result = gae(row(0, 0, 1), values, ones(values), gamma=1.0, lam=1.0)
    close(result.returns, [[1.0, 1.0, 1.0]])


def test_masked_tokens_in_the_middle_of_a_row_are_stepped_over():
    garbage = float("nan")
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    advantages, returns = gae(
        row(garbage, 0, garbage, 9, 0, 1, garbage),
        row(garbage, 0.1, 7, garbage, 0.2, 0.3, -7),
        mask,
        gamma=1.0,
        lam=0.95,
    )
    close(returns, [[0, 0.92675, 0, 0, 0.965, 1.0, 0]], 1e-9)
    close(advantages, [[0, 0.99134, 0, 0, 0.01709, -1.00844, 0]])


numbers = st.floats(-3, 3, width=32)


@given(
    st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_gaps_and_padding_change_neither_advantages_nor_returns(rows, gamma, lam, random):
    """The same tokens pushed apart at random in wider rows, garbage between them."""

    def run(width: int, places: list[list[int]]) -> tuple[list[float], list[float]]:
        rewards = torch.full((len(rows), width), 99.0, dtype=torch.float64)
        values = torch.full_like(rewards, float("inf"))
        mask = torch.zeros_like(rewards, dtype=torch.bool)
        for i, (tokens, at) in enumerate(zip(rows, places, strict=True)):
            rewards[i, at] = torch.tensor([r for r, _ in tokens]).double()
            values[i, at] = torch.tensor([v for _, v in tokens]).double()
            mask[i, at] = True
        advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
        assert not advantages[~mask].any() and not returns[~mask].any()
        return advantages[mask].tolist(), returns[mask].tolist()

    dense = run(6, [list(range(len(tokens))) for tokens in rows])
    gappy = run(11, [sorted(random.sample(range(11), len(tokens))) for tokens in rows])
    for a, b in zip(dense, gappy, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


# --- whitening


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_whitened_values_have_mean_zero_and_variance_one(values):
    tensor = row(*values)
    white = whiten(tensor, ones(tensor))
    assert white.mean().item() == pytest.approx(0, abs=1e-9)
    assert white.var().item() == pytest.approx(1, abs=1e-6)


def test_a_single_token_whitens_to_zero():
    assert whiten(row(5.0, 3.0), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]


def test_processes_that_share_a_batch_whiten_it_as_one():
    whole = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    others_sums = iter([torch.tensor([56.0, 3.0]).double(), None])

    def all_sum(mine: torch.Tensor) -> torch.Tensor:
        theirs = next(others_sums)
        if theirs is None:  # sum of squares round the common mean, 59 / 5
            theirs = sum((torch.tensor(x) - 59 / 5) ** 2 for x in (8.0, 16.0, 32.0))
        return mine + theirs

    close(whiten(whole[:1], mask[:1], all_sum=all_sum), whiten(whole, mask)[:1].tolist())


# --- averaging


def test_the_three_ways_to_average():
    values = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 7.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    assert aggregate(values, mask).item() == pytest.approx(17 / 5)
    assert aggregate(values, mask, "sequence").item() == pytest.approx((3 + 5) / 2)
    assert aggregate(values, mask, "dr_grpo").item() == pytest.approx((12 + 5) / (2 * 4))


def test_rows_without_tokens_are_padding_and_dont_count():
    values, mask = torch.ones(3, 4), torch.zeros(3, 4)
    mask[0] = 1
    assert [aggregate(values, mask, mode).item() for mode in MODES] == [1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_average_is_zero(mode):
    assert aggregate(torch.full((2, 3), float("nan")), torch.zeros(2, 3), mode).item() == 0


def test_an_unknown_mode_or_kl_estimate_is_refused_by_name():
    with pytest.raises(ConfigError, match="'tokens'.*'token'"):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), "tokens")
    with pytest.raises(ConfigError, match="'k4'.*'k3'"):
        kl(torch.ones(1), torch.ones(1), "k4")


def batch(seed: int, lengths: list[int], width: int) -> dict[str, torch.Tensor]:
    """Rows that depend on (seed, row, token) alone, with garbage in the padding."""
    random = torch.Generator().manual_seed(seed)
    names = ["logp", "logp_old", "values", "values_old", "returns"]
    dense = {n: torch.randn(len(lengths), 12, generator=random).double() for n in names}
    made = {n: torch.full((len(lengths), width), 1e6).double() for n in names}
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, length in enumerate(lengths):
        mask[i, :length] = True
        for name in names:
            made[name][i, :length] = dense[name][i, :length]
    advantages = torch.randn(len(lengths), generator=random).double()
    return {**made, "advantages": advantages, "mask": mask}


@settings(max_examples=60)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 8), min_size=2, max_size=8),
    st.integers(1, 4),
    st.sampled_from(MODES),
)
def test_a_step_does_not_depend_on_how_it_is_split_or_padded(seed, lengths, size, mode):
    """Loss, gauges and gradients of one optimizer step: at once, or in padded micro-batches."""

    def step(micro_batch: int, width: int) -> tuple[list[float], list[torch.Tensor]]:
        rows = batch(seed, lengths, width)
        weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in (0.3, 0.7)]
        parts = [
            {name: tensor[i : i + micro_batch] for name, tensor in rows.items()}
            for i in range(0, len(lengths), micro_batch)
        ]
        total = sum(loss_denominator(part["mask"], mode, max_tokens=8) for part in parts)
        sums = [0.0] * 4
        for part in parts:
            mask = part["mask"]
            common = {"aggregate": mode, "denominator": total}
            policy = policy_loss(
                part["logp"] * weights[0],
                part["logp_old"],
                part["advantages"],
                mask,
                clip_low=0.2,
                clip_high=0.3,
                dual_clip=3.0,
                **common,
            )
            values = part["values"] * weights[1]
            critic = value_loss(
                values, part["values_old"], part["returns"], mask, clip=0.2, **common
            )
            (policy.loss + critic).backward()
            gauges = policy.loss.item(), policy.clip_fraction, policy.approx_kl, critic.item()
            sums = [a + b for a, b in zip(sums, gauges, strict=True)]
        return sums, [weight.grad for weight in weights]

    whole, gradients = step(len(lengths), 8)
    split, split_gradients = step(size, 12)
    assert whole == pytest.approx(split, abs=1e-9)
    close(torch.stack(gradients), torch.stack(split_gradients).tolist(), 1e-9)


# --- policy loss


def loss_at(ratios: list[float], advantage: float, **settings: float) -> float:
    logp = row(*ratios).log()
    defaults = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    one = policy_loss(
        logp,
        torch.zeros_like(logp),
        torch.tensor([advantage]).double(),
        ones(logp),
        **{**defaults, **settings},
    )
    return one.loss.item()


def test_the_clip_takes_the_pessimistic_side():
    ratios = [1, 1.3, 0.6, 1.9, 0.04]
    assert loss_at(ratios, 1.0) == pytest.approx(-0.808)
    assert loss_at(ratios, -1.0) == pytest.approx(1.16)


def test_the_dual_clip_bounds_what_a_bad_token_can_cost():
    assert loss_at([5, 9], -1.0, dual_clip=3.0) == pytest.approx(3.0)
    assert loss_at([5, 9], -1.0) == pytest.approx(7.0)
    assert loss_at([5, 9], 1.0, dual_clip=3.0) == pytest.approx(-1.2)


def test_the_upper_side_can_be_wider_than_the_lower():
    assert loss_at([1.9, 1.25], 1.0, clip_high=0.3) == pytest.approx(-(1.3 + 1.25) / 2)


def test_the_gauges_count_clipped_tokens_and_measure_the_drift():
    logp = row(1.0, 1.3, 0.6, 1.9).log()
    result = policy_loss(logp, torch.zeros_like(logp), torch.ones(1).double(), ones(logp))
    assert result.clip_fraction == pytest.approx(2 / 4)  # 0.6 is not clipped: it should rise
    expected = [0.0, 0.0376357, 0.1108256, 0.2581461]  # r - 1 - ln r, by a table of logarithms
    assert result.approx_kl == pytest.approx(sum(expected) / 4, abs=1e-6)


def test_clipped_tokens_pass_no_gradient_on():
    logp = row(1.0, 1.9, 9.0).log().requires_grad_()
    advantages = row(1, 1, -1)
    policy_loss(logp, torch.zeros(1, 3), advantages, torch.ones(1, 3)).loss.backward()
    close(logp.grad, [[-1 / 3, 0, 0]])


def test_one_advantage_per_row_is_that_advantage_at_each_token():
    logp, old = row(-1, -2, -3), row(-1.1, -1.7, -3.2)
    a = policy_loss(logp, old, torch.tensor([0.5]).double(), ones(logp))
    b = policy_loss(logp, old, row(0.5, 0.5, 0.5), ones(logp))
    assert a == b


def test_extreme_ratios_stay_finite():
    logp = torch.tensor([[0.0, -900.0]], requires_grad=True)
    old = torch.tensor([[-900.0, 0.0]])
    for advantage in (1.0, -1.0):
        result = policy_loss(logp, old, torch.tensor([advantage]), torch.ones(1, 2))
        result.loss.backward()
        assert math.isfinite(result.loss.item()) and math.isfinite(result.approx_kl)
    assert torch.isfinite(logp.grad).all()


def test_whatever_stands_in_the_padding_gets_no_gradient():
    nan, mask = float("nan"), torch.tensor([[True, False, False]])
    logp = torch.tensor([[-1.0, nan, -float("inf")]], requires_grad=True)
    values = torch.tensor([[0.5, nan, nan]], requires_grad=True)
    other = torch.tensor([[-1.1, nan, 3.0]])
    loss = policy_loss(logp, other, torch.tensor([[1.0, nan, nan]]), mask).loss
    (loss + value_loss(values, other, other, mask, clip=0.2)).backward()
    for leaf in (logp, values):
        assert leaf.grad[0, 0] != 0 and leaf.grad[0, 1:].tolist() == [0, 0]


# --- value loss


def test_the_value_loss_takes_the_worse_of_the_free_and_the_clipped_error():
    values = row(0, 1, 2)
    loss = value_loss(
        values, torch.full_like(values, 0.5), torch.ones_like(values), ones(values), clip=0.2
    )
    assert loss.item() == pytest.approx(0.3483333, abs=1e-7)


def test_explained_variance_is_one_for_an_oracle_and_zero_for_the_mean():
    returns, mask = row(1, 2, 6, 99), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) < 0
    assert math.isnan(explained_variance(returns, row(1, 1, 1, 99), mask))


# --- KL


def test_the_three_estimates_of_the_kl():
    logp, ref = row(-1, -2, -0.5), row(-1.5, -1, -0.5)
    close(kl(logp, ref, "k3"), [[0.1065307, 0.7182818, 0]], 1e-7)
    close(kl(logp, ref, "k1"), [[0.5, -1, 0]])
    close(kl(logp, ref, "k2"), [[0.125, 0.5, 0]])


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_k1_and_k3_average_to_the_true_kl_under_the_policy(weights, random):
    policy = torch.tensor(weights).double()
    policy = policy / policy.sum()
    other = torch.tensor(random.sample(weights, len(weights))).double()
    other = other / other.sum()
    true = torch.nn.functional.kl_div(other.log(), policy, reduction="sum").item()
    for kind in ("k1", "k3"):
        mean = (policy * kl(policy.log(), other.log(), kind)).sum().item()
        assert mean == pytest.approx(true, abs=1e-9)
    assert (kl(policy.log(), other.log(), "k3") >= 0).all()


def test_the_kl_weight_follows_the_measured_kl_by_at_most_a_fifth_per_horizon():
    assert adaptive_kl(0.1, 0.06, target=0.06, n=128, horizon=1280) == pytest.approx(0.1)
    assert adaptive_kl(0.1, 9.0, target=0.06, n=128, horizon=1280) == pytest.approx(0.102)
    assert adaptive_kl(0.1, 0.0, target=0.06, n=128, horizon=1280) == pytest.approx(0.098)
    assert adaptive_kl(0.1, 0.066, target=0.06, n=1280, horizon=1280) == pytest.approx(0.11)


# --- it must learn: with a flipped sign, a shuffled group or a dead critic these fail


def test_grpo_learns_the_rewarded_action():
    """The cheapest honest RL test: a 4-armed bandit must learn its one paying arm."""
    torch.manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(50):
        policy = torch.distributions.Categorical(logits=logits)
        arms = policy.sample((16,))  # (rollouts,)
        advantages = grpo_advantages((arms == 2).float(), torch.zeros(16))  # (rollouts,)
        logp = policy.log_prob(arms)[:, None]  # (rollouts, tokens = 1)
        policy_loss(logp, logp.detach(), advantages, torch.ones(16, 1)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert logits.softmax(-1)[2] > 0.9


def test_ppo_learns_the_rewarded_second_word_and_its_critic_foresees_it():
    """Two words per answer, the reward only at the end, several epochs per batch."""
    torch.manual_seed(0)
    logits = torch.zeros(2, 4, requires_grad=True)  # (word, choices)
    critic = torch.zeros(2, requires_grad=True)  # a value per position
    optimizer = torch.optim.SGD([{"params": [logits], "lr": 0.5}, {"params": [critic], "lr": 0.2}])
    mask = torch.ones(16, 2)
    for _ in range(60):
        policy = torch.distributions.Categorical(logits=logits.detach())
        words = policy.sample((16,))  # (rollouts, tokens = 2)
        logp_old = policy.log_prob(words)
        rewards = torch.stack([torch.zeros(16), (words[:, 1] == 3).float()], dim=1)
        values_old = critic.detach().expand(16, 2)
        advantages, returns = gae(rewards, values_old, mask, gamma=1.0, lam=0.95)
        for _ in range(2):
            logp = torch.distributions.Categorical(logits=logits).log_prob(words)
            loss = policy_loss(logp, logp_old, advantages, mask).loss
            loss = loss + value_loss(critic.expand(16, 2), values_old, returns, mask, clip=0.2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert logits[1].softmax(-1)[3] > 0.9
    assert logits[0].softmax(-1).max() < 0.9  # the first word does not matter
    assert (critic > 0.7).all()

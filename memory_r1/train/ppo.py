"""Proximal policy optimisation: a critic says what was to be expected, token by token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from memory_r1.train.algorithms import (
    adaptive_kl,
    aggregate,
    explained_variance,
    gae,
    kl,
    loss_denominator,
    policy_loss,
    value_loss,
)
from memory_r1.train.policy import Critic, MicroBatch, Row, sampled_logps, score, values
from memory_r1.train.rollout import Rollout
from memory_r1.train.stage import Stage, describe
from memory_r1.train.update import (
    Clock,
    adamw,
    finish_step,
    in_parts,
    logp_difference,
    rows_of,
    set_rate,
    split,
)


class Ppo:
    """The state of a PPO training; `step` is the whole algorithm, top to bottom."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.settings = stage.run.ppo
        model = stage.policy.model
        self.optimizer = adamw(model.parameters(), stage.run.optimizer, stage.run.optimizer.lr)
        self.critic = Critic(model.model, model.config.hidden_size).to(model.device)
        self.critic_optimizer = adamw(
            self.critic.parameters(), stage.run.optimizer, self.settings.critic_lr
        )
        self.kl_weight = self.settings.kl
        # With a weight of 0 the reference is never run, so it need not exist.
        self.reference: Any = copy.deepcopy(model).eval() if self.settings.kl else None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the model files."""
        return {
            "model": self.stage.policy.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "kl_weight": self.kl_weight,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.stage.policy.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic.load_state_dict(state["critic"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.kl_weight = state["kl_weight"]

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Sample, judge, credit tokens, update policy and critic; returns metrics and rollouts."""
        clock, run = Clock(), self.stage.run
        played, _ = self.stage.rollouts(number)
        clock.lap("sample")
        metrics = describe(played)
        judged = [rollout for rollout in played if rollout.outcome is not None and rollout.steps]
        rows = rows_of(judged, [0.0] * len(judged))
        metrics["lr"] = set_rate(
            self.optimizer,
            run.optimizer.lr,
            max(0, number - self.settings.value_warmup),  # until then the policy waits
            run.optimizer.warmup_steps,
        )
        if rows:
            rewards = [rollout.outcome.reward for rollout in judged if rollout.outcome]
            metrics |= self._update(rows, rewards, number)
        clock.lap("update")
        tokens = sum(len(step.ids) for rollout in played for step in rollout.steps)
        metrics["tokens_per_second"] = tokens / sum(clock.seconds.values())
        return metrics | clock.seconds, played

    def _credit(self, rows: list[Row], rewards: list[float]) -> tuple[_Ledger, dict[str, float]]:
        """Old values, advantages and returns of every token, before anything is updated."""
        policy = self.stage.policy
        batches = split(rows, policy, self.stage.run)
        ledger = _Ledger(rows, policy.model.device)
        metrics = {"logp_difference": logp_difference(policy, rows, batches)}
        with torch.no_grad():
            for batch in batches:
                ledger.write("values", batch, values(self.critic, batch))
                if self.reference is not None:
                    anchor = score(self.reference, batch, policy.temperature)
                    drift = kl(sampled_logps(rows, batch), anchor.logp, "k1")
                    ledger.write("drift", batch, drift.masked_fill(~batch.mask, 0.0))
        paid = -self.kl_weight * ledger.drift
        for episode, reward in enumerate(rewards):
            paid[episode, ledger.lengths[episode] - 1] += reward
        credit = gae(
            paid, ledger.values, ledger.mask, gamma=self.settings.gamma, lam=self.settings.lam
        )
        ledger.advantages, ledger.returns = credit.advantages, credit.returns
        variance = explained_variance(ledger.values, ledger.returns, ledger.mask)
        metrics["explained_variance"] = variance
        if self.reference is not None:
            metrics["kl"] = float(ledger.drift.sum() / ledger.mask.sum())
            if self.settings.kl_target is not None:
                self.kl_weight = adaptive_kl(
                    self.kl_weight,
                    metrics["kl"],
                    target=self.settings.kl_target,
                    n=len(rewards),
                    horizon=self.settings.kl_horizon,
                )
        return ledger, metrics

    def _update(self, rows: list[Row], rewards: list[float], number: int) -> dict[str, float]:
        policy, settings, run = self.stage.policy, self.settings, self.stage.run
        ledger, metrics = self._credit(rows, rewards)
        passes: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for part in in_parts(rows, settings.minibatches, seed=number * 1000 + epoch):
                chosen = [rows[i] for i in part]
                batches = split(chosen, policy, run)
                n = sum(
                    loss_denominator(b.mask, settings.average, max_tokens=policy.max_tokens)
                    for b in batches
                )
                names = ("loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
                totals = dict.fromkeys(names, 0.0)
                for batch in batches:
                    whole = batch._replace(rows=[part[i] for i in batch.rows])
                    scored = score(policy.model, batch, policy.temperature)
                    result = policy_loss(
                        scored.logp,
                        sampled_logps(chosen, batch),
                        ledger.read("advantages", whole),
                        batch.mask,
                        clip_low=settings.clip,
                        clip_high=settings.clip,
                        dual_clip=settings.dual_clip,
                        aggregate=settings.average,
                        denominator=n,
                    )
                    error = value_loss(
                        values(self.critic, batch),
                        ledger.read("values", whole),
                        ledger.read("returns", whole),
                        batch.mask,
                        clip=settings.value_clip,
                        aggregate=settings.average,
                        denominator=n,
                    )
                    # In its first steps the critic knows nothing and the policy waits.
                    learns = number >= settings.value_warmup
                    loss = error + result.loss if learns else error
                    loss.backward()  # type: ignore[no-untyped-call]
                    totals["loss"] += float(result.loss.detach())
                    totals["value_loss"] += float(error.detach())
                    totals["approx_kl"] += result.approx_kl
                    totals["clip_fraction"] += result.clip_fraction
                    totals["entropy"] += float(
                        aggregate(scored.entropy, batch.mask, settings.average, denominator=n)
                    )
                finish_step(self.critic, self.critic_optimizer, run.optimizer.grad_clip)
                if number >= settings.value_warmup:
                    totals["grad_norm"] = finish_step(
                        policy.model, self.optimizer, run.optimizer.grad_clip
                    )
                passes.append(totals)
        return metrics | {name: sum(p[name] for p in passes) / len(passes) for name in passes[0]}


class _Ledger:
    """Per-token numbers of whole episodes: (episodes, tokens), completions side by side.

    GAE runs over an episode's tokens in order, however its completions are batched.
    """

    values: Tensor
    drift: Tensor
    advantages: Tensor
    returns: Tensor

    def __init__(self, rows: list[Row], device: torch.device) -> None:
        self.lengths = [0] * (rows[-1].episode + 1)
        self._where: list[tuple[int, int, int]] = []
        for row in rows:
            begin = self.lengths[row.episode]
            self.lengths[row.episode] = begin + len(row.step.ids)
            self._where.append((row.episode, begin, self.lengths[row.episode]))
        shape = (len(self.lengths), max(self.lengths))
        lengths = torch.tensor(self.lengths, device=device)
        self.mask = torch.arange(shape[1], device=device)[None] < lengths[:, None]
        self.values = torch.zeros(shape, device=device)
        self.drift = torch.zeros(shape, device=device)

    def write(self, name: str, batch: MicroBatch, numbers: Tensor) -> None:
        """Put (rows, tokens) of a micro-batch where its episodes are."""
        table: Tensor = getattr(self, name)
        for k, i in enumerate(batch.rows):
            episode, begin, end = self._where[i]
            table[episode, begin:end] = numbers[k, : end - begin]

    def read(self, name: str, batch: MicroBatch) -> Tensor:
        """The numbers of a micro-batch's rows, (rows, tokens), zero outside the mask."""
        table: Tensor = getattr(self, name)
        numbers = torch.zeros(batch.mask.shape, device=table.device)
        for k, i in enumerate(batch.rows):
            episode, begin, end = self._where[i]
            numbers[k, : end - begin] = table[episode, begin:end]
        return numbers

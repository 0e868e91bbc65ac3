"""Proximal policy optimisation: a critic says what was to be expected, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memory_r1.train.adapters import open_critic
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
from memory_r1.train.policy import MicroBatch, Row, sampled_logps, values
from memory_r1.train.rollout import Rollout
from memory_r1.train.sharding import load_optimizer, spread, whole
from memory_r1.train.stage import Stage, describe
from memory_r1.train.update import (
    Clock,
    adamw,
    apart,
    finish_step,
    in_parts,
    rows_of,
    set_rate,
    split,
)


class Ppo:
    """The state of a PPO training; `step` is the whole algorithm, top to bottom."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.settings = stage.run.ppo
        settings = stage.run.optimizer
        self.kl_weight = self.settings.kl
        # With a weight of 0 the reference is never run, so it need not exist.
        self.reference = stage.policy.reference() if self.settings.kl else None
        self.critic = open_critic(stage.policy, stage.run)
        stage.policy.shard()
        self.optimizer = adamw(stage.policy.parameters(), settings, settings.lr)
        self.critic_optimizer = adamw(self.critic.parameters(), settings, self.settings.critic_lr)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the model files."""
        first = self.stage.policy.processes.first
        return {
            "model": self.stage.policy.state(),
            "optimizer": whole(self.optimizer.state_dict(), first),
            "critic": whole(dict(self.critic.state_dict()), first),
            "critic_optimizer": whole(self.critic_optimizer.state_dict(), first),
            "kl_weight": self.kl_weight,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.stage.policy.restore(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.critic.load_state_dict(spread(state["critic"], self.critic.state_dict()))
        load_optimizer(self.critic_optimizer, state["critic_optimizer"])
        for group in self.critic_optimizer.param_groups:
            group["lr"] = self.settings.critic_lr  # a resumed run may have another
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
        """Old values, advantages and returns of every token, before anything is updated.

        With one pass, one minibatch and episodes of one completion the critic's loss needs nothing
        that is not known here, so its gradient is added at once: its forward pass is spared.
        """
        settings, batches = self.settings, split(rows, self.stage.policy, self.stage.run)
        processes = self.stage.policy.processes
        ledger = _Ledger(rows, self.stage.policy.model.device)
        metrics: dict[str, float] = {}
        ledger.settled = (settings.epochs, settings.minibatches) == (1, 1) and all(
            row.episode == i for i, row in enumerate(rows)
        )
        if self.reference is not None:
            for batch in batches:
                drift = kl(sampled_logps(rows, batch), self.reference(batch), "k1")
                ledger.write("drift", batch, drift.masked_fill(~batch.mask, 0.0))
            processes.add_tensor(ledger.drift)
        ledger.paid = -self.kl_weight * ledger.drift
        for episode, reward in enumerate(rewards):
            ledger.paid[episode, ledger.lengths[episode] - 1] += reward
        n = self._denominator(batches)
        if ledger.settled:
            metrics["value_loss"] = 0.0
        for batch in batches:
            if ledger.settled:
                metrics["value_loss"] += self._value_loss(batch, ledger, n)
            else:
                with torch.no_grad(), self.stage.policy.computing():
                    ledger.write("values", batch, values(self.critic, batch))
        metrics = processes.add(metrics)
        processes.add_tensor(ledger.values)
        credit = gae(
            ledger.paid, ledger.values, ledger.mask, gamma=settings.gamma, lam=settings.lam
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
        # In its first steps the critic knows nothing and the policy waits.
        learns = number >= settings.value_warmup
        passes: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for part in in_parts(rows, settings.minibatches, seed=number * 1000 + epoch):
                batches = split([rows[i] for i in part], policy, run)
                n = self._denominator(batches)
                totals: dict[str, float] = {}
                for batch in batches:
                    whole = batch._replace(rows=[part[i] for i in batch.rows])
                    with torch.set_grad_enabled(learns):
                        noted = self._policy_loss(rows, whole, ledger, n)
                    if not ledger.settled:
                        noted["value_loss"] = self._value_loss(whole, ledger, n)
                    difference = noted.pop("logp_difference")
                    if not passes:  # nothing was updated yet, so it should be nothing
                        seen = metrics.get("logp_difference", 0.0)
                        metrics["logp_difference"] = max(seen, difference)
                    totals = {k: totals.get(k, 0.0) + value for k, value in noted.items()}
                totals, clip = policy.processes.add(totals), run.optimizer.grad_clip
                finish_step(self.critic, self.critic_optimizer, clip, policy.processes)
                if learns:
                    norm = finish_step(policy, self.optimizer, clip, policy.processes)
                    totals["grad_norm"] = norm
                passes.append(totals)
        metrics["logp_difference"] = policy.processes.most(metrics.get("logp_difference", 0.0))
        return metrics | {name: sum(p[name] for p in passes) / len(passes) for name in passes[0]}

    def _policy_loss(
        self, rows: list[Row], batch: MicroBatch, ledger: _Ledger, n: int
    ) -> dict[str, float]:
        """Add the policy's gradient of a micro-batch; returns its metrics."""
        settings, policy = self.settings, self.stage.policy
        scored = policy.score(batch)
        result = policy_loss(
            scored.logp,
            sampled_logps(rows, batch),
            ledger.read("advantages", batch),
            batch.mask,
            clip_low=settings.clip,
            clip_high=settings.clip,
            dual_clip=settings.dual_clip,
            aggregate=settings.average,
            denominator=n,
        )
        if result.loss.requires_grad:
            result.loss.backward()  # type: ignore[no-untyped-call]
        entropy = aggregate(scored.entropy, batch.mask, settings.average, denominator=n)
        return {
            "loss": float(result.loss.detach()),
            "approx_kl": result.approx_kl,
            "clip_fraction": result.clip_fraction,
            "entropy": float(entropy),
            "logp_difference": apart(scored, rows, batch),
        }

    def _value_loss(self, batch: MicroBatch, ledger: _Ledger, n: int) -> float:
        """Add the critic's gradient of a micro-batch; returns its loss."""
        settings = self.settings
        # The backward pass may compute layers again: the critic's adapter must still be in effect.
        with self.critic.active(), self.stage.policy.computing():
            found = values(self.critic, batch)
            if ledger.settled:
                ledger.write("values", batch, found.detach())
                paid, old = ledger.read("paid", batch), ledger.read("values", batch)
                returns = gae(paid, old, batch.mask, gamma=settings.gamma, lam=settings.lam).returns
            else:
                old, returns = ledger.read("values", batch), ledger.read("returns", batch)
            error = value_loss(
                found,
                old,
                returns,
                batch.mask,
                clip=settings.value_clip,
                aggregate=settings.average,
                denominator=n,
            )
            error.backward()  # type: ignore[no-untyped-call]
        return float(error.detach())

    def _denominator(self, batches: list[MicroBatch]) -> int:
        longest, average = self.stage.policy.max_tokens, self.settings.average
        own = sum(loss_denominator(b.mask, average, max_tokens=longest) for b in batches)
        return self.stage.policy.processes.count(own)


class _Ledger:
    """Per-token numbers of whole episodes: (episodes, tokens), completions side by side.

    GAE runs over an episode's tokens in order, however its completions are batched.
    """

    values: Tensor
    drift: Tensor
    paid: Tensor
    settled: bool
    """Whether the critic has learned from these numbers already."""
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
        """Put (rows, tokens) of a micro-batch where its episodes are; not of an idle one."""
        table: Tensor = getattr(self, name)
        for k, i in enumerate(batch.rows if batch.mask.any() else ()):
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

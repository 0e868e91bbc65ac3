"""Group relative policy optimisation: a rollout is judged against the rest of its group.

No critic; groups whose rollouts all got one reward carry no signal, are dropped and counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memory_r1.train.algorithms import (
    aggregate,
    grpo_advantages,
    kl,
    loss_denominator,
    policy_loss,
    tied,
)
from memory_r1.train.policy import Row, sampled_logps
from memory_r1.train.rollout import Rollout
from memory_r1.train.sharding import load_optimizer, whole
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


class Grpo:
    """The state of a GRPO training; `step` is the whole algorithm, top to bottom."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.settings = stage.run.grpo
        settings = stage.run.optimizer
        # With a weight of 0 the reference is never run, so it need not exist.
        self.reference = stage.policy.reference() if self.settings.kl else None
        stage.policy.shard()
        self.optimizer = adamw(stage.policy.parameters(), settings, settings.lr)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the model files."""
        return {
            "model": self.stage.policy.state(),
            "optimizer": whole(self.optimizer.state_dict(), self.stage.policy.processes.first),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.stage.policy.restore(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Sample, judge, compare within groups, update; returns metrics and the rollouts."""
        clock, run = Clock(), self.stage.run
        played, groups = self.stage.rollouts(number)
        clock.lap("sample")
        metrics = describe(played)
        judged = [i for i, rollout in enumerate(played) if rollout.outcome is not None]
        rewards = torch.tensor([played[i].outcome.reward for i in judged])  # type: ignore[union-attr]
        of_group = torch.tensor([groups[i] for i in judged])
        advantages = grpo_advantages(rewards, of_group, scale_by_std=self.settings.scale_by_std)
        live = ~tied(rewards, of_group)
        groups_alive = len(torch.unique(of_group[live]))
        metrics["frac_zero_std"] = 1 - groups_alive / max(1, len(torch.unique(of_group)))
        metrics["groups"] = float(len(set(groups)))
        kept = [i for i, alive in zip(judged, live.tolist(), strict=True) if alive]
        rows = rows_of([played[i] for i in kept], advantages[live].tolist())
        metrics["lr"] = set_rate(
            self.optimizer, run.optimizer.lr, number, run.optimizer.warmup_steps
        )
        if rows:
            metrics |= self._update(rows, number)
        clock.lap("update")
        tokens = sum(len(step.ids) for rollout in played for step in rollout.steps)
        metrics["tokens_per_second"] = tokens / sum(clock.seconds.values())
        return metrics | clock.seconds, played

    def _update(self, rows: list[Row], number: int) -> dict[str, float]:
        policy, settings = self.stage.policy, self.settings
        processes = policy.processes
        metrics = {"logp_difference": 0.0}
        passes: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for chosen in in_parts(rows, settings.minibatches, seed=number * 1000 + epoch):
                part = [rows[i] for i in chosen]
                batches = split(part, policy, self.stage.run)
                denominator = processes.count(
                    sum(
                        loss_denominator(b.mask, settings.average, max_tokens=policy.max_tokens)
                        for b in batches
                    )
                )
                totals = dict.fromkeys(("loss", "entropy", "kl", "approx_kl", "clip_fraction"), 0.0)
                for batch in batches:
                    scored = policy.score(batch)
                    if not passes:  # nothing was updated yet, so it should be nothing
                        difference = max(metrics["logp_difference"], apart(scored, part, batch))
                        metrics["logp_difference"] = difference
                    advantages = torch.tensor([part[i].advantage for i in batch.rows])
                    result = policy_loss(
                        scored.logp,
                        sampled_logps(part, batch),
                        advantages.to(scored.logp.device),
                        batch.mask,
                        clip_low=settings.clip,
                        clip_high=settings.clip_high or settings.clip,
                        dual_clip=settings.dual_clip,
                        aggregate=settings.average,
                        denominator=denominator,
                    )

                    def mean(
                        values: Tensor, mask: Tensor = batch.mask, n: int = denominator
                    ) -> Tensor:
                        return aggregate(values, mask, settings.average, denominator=n)

                    loss = result.loss
                    if self.reference is not None:
                        drift = mean(kl(scored.logp, self.reference(batch), "k3"))
                        loss = loss + settings.kl * drift
                        totals["kl"] += float(drift.detach())
                    loss.backward()  # type: ignore[no-untyped-call]
                    totals["loss"] += float(loss.detach())
                    totals["entropy"] += float(mean(scored.entropy))
                    totals["approx_kl"] += result.approx_kl
                    totals["clip_fraction"] += result.clip_fraction
                totals = processes.add(totals)
                totals["grad_norm"] = finish_step(
                    policy, self.optimizer, self.stage.run.optimizer.grad_clip, processes
                )
                passes.append(totals)
        metrics["logp_difference"] = processes.most(metrics["logp_difference"])
        return metrics | {name: sum(p[name] for p in passes) / len(passes) for name in passes[0]}

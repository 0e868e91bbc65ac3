"""LoGo-GRPO: whole dialogues compared by their end, and single sessions redone from one bank.

Global term: rollouts of a dialogue, their final answers credited to what they rest on. Their banks
have diverged, so what is compared is not alike. Local term: a session is redone several times from
one and the same bank and scored at once. Rows of both are pooled into one clipped loss
(Memory-R2, arXiv 2605.21768). With `logo.local = 0` and `logo.credit = "dialogue"` what is left is
plain trajectory GRPO.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memory_r1.train import credit
from memory_r1.train.algorithms import (
    aggregate,
    grpo_advantages,
    kl,
    loss_denominator,
    policy_loss,
    tied,
)
from memory_r1.train.credit import Unit
from memory_r1.train.logo_stage import LogoStage, measures, samples_of
from memory_r1.train.policy import MicroBatch, Row, sampled_logps
from memory_r1.train.rollout import Rollout
from memory_r1.train.sessions import Play, Start, Told, Verdict, due, judge_plays
from memory_r1.train.sharding import load_optimizer, whole
from memory_r1.train.update import (
    Clock,
    adamw,
    finish_step,
    in_parts,
    logp_difference,
    set_rate,
    split,
)


@dataclass(frozen=True)
class Fork:
    """A session to be redone: so many rerollouts of one start, and perhaps its silent branch."""

    start: Start
    times: int
    silent: bool

    @property
    def starts(self) -> list[Start]:
        """The rerollouts, then the silent branch."""
        return [self.start] * self.times + [replace(self.start, silent=True)] * self.silent


class Logo:
    """The state of a LoGo-GRPO training; `step` is the whole algorithm, top to bottom."""

    def __init__(self, stage: LogoStage) -> None:
        self.stage = stage
        self.settings, self.logo = stage.run.grpo, stage.run.logo
        settings = stage.run.optimizer
        # With a weight of 0 the reference is never run, so it need not exist.
        self.reference = stage.policy.reference() if self.settings.kl else None
        stage.policy.shard()
        self.optimizer = adamw(stage.policy.parameters(), settings, settings.lr)
        self._done = self._sampled = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the model files; the curriculum follows the step."""
        place = {
            "step": self._done,
            "sessions": self.stage.sessions_at(self._done),
            "sampled_tokens": self._sampled,
        }
        return {
            "model": self.stage.policy.state(),
            "optimizer": whole(self.optimizer.state_dict(), self.stage.policy.processes.first),
            "place": place,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.stage.policy.restore(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self._done = state["place"]["step"]
        self._sampled = self.stage.sampled_tokens = state["place"]["sampled_tokens"]

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Play dialogues, redo sessions, judge, compare within groups, update."""
        clock, run, stage = Clock(), self.stage.run, self.stage
        began = stage.sampled_tokens
        starts = [
            stage.start(course, f"step {number}")
            for course in stage.draw(number)
            for _ in range(run.rollout.group_size)
        ]
        with stage.policy.gathered():
            plays = stage.play(starts, f"{number}/global")
            forks = list(self._forks(number, plays))
            redone = stage.play([s for fork in forks for s in fork.starts], f"{number}/local")
            clock.lap("sample")
            verdicts = judge_plays([*plays, *redone], stage.players)
        rewards = [verdict.reward if verdict else None for verdict in verdicts]
        stage.policy.processes.check_same("rewards", rewards)
        clock.lap("reward")
        ends, local = verdicts[: len(plays)], verdicts[len(plays) :]
        metrics = measures(plays, ends) | {"sessions": float(len(plays[0].start.sessions))}
        whole = self._global_units(plays, ends)
        again, described = self._local_units(forks, redone, local)
        rows, counted = learned(whole, again, scale_by_std=self.settings.scale_by_std)
        metrics |= described | counted
        metrics["lr"] = set_rate(
            self.optimizer, run.optimizer.lr, number, run.optimizer.warmup_steps
        )
        if rows:
            metrics |= self._update(rows, number)
        clock.lap("update")
        self._done, self._sampled = number + 1, stage.sampled_tokens
        metrics["sampled_tokens"] = float(stage.sampled_tokens)
        seconds = sum(clock.seconds.values())
        metrics["tokens_per_second"] = (stage.sampled_tokens - began) / seconds
        return metrics | clock.seconds, samples_of(plays, ends)

    def _forks(self, number: int, plays: Sequence[Play]) -> Iterator[Fork]:
        """Each session is redone with some chance, from the bank of one rollout drawn by lot."""
        rng = random.Random(f"{self.stage.run.seed}/{number}/forks")
        n = self.stage.run.rollout.group_size
        for first in range(0, len(plays), n):
            course = plays[first].start.course
            for session in range(len(course.sessions)):
                if rng.random() >= self.logo.local:
                    continue
                bank = plays[first + rng.randrange(n)].banks[session]
                if asked := due(course, session, self.logo.local_questions, rng):
                    # The draw is part of the name: one dialogue may be drawn twice in a step.
                    about = f"{course.id}/redone {session + 1} of draw {first // n}"
                    start = Start(course, bank, range(session, session + 1), tuple(asked), about)
                    yield Fork(start, self.logo.rerollouts, self.logo.noop_branch)

    def _global_units(
        self, plays: Sequence[Play], verdicts: Sequence[Verdict | None]
    ) -> list[Unit]:
        """The final answers, credited as the run says; what could not be judged is left out."""
        units: list[Unit] = []
        n = self.stage.run.rollout.group_size
        for first in range(0, len(plays), n):
            group = zip(plays[first : first + n], verdicts[first : first + n], strict=True)
            judged = [(play, verdict) for play, verdict in group if verdict is not None]
            match self.logo.credit:
                case "dialogue":
                    found = [u for play, v in judged for u in credit.dialogue_units(play, v)]
                case "evidence":
                    found = [u for play, v in judged for u in credit.evidence_units(play, v)]
                case "traced":
                    found = credit.traced_units([p for p, _ in judged], [v for _, v in judged])
            units += [Unit((first, *unit.group), unit.reward, unit.told) for unit in found]
        return units

    def _local_units(
        self, forks: Sequence[Fork], redone: Sequence[Play], verdicts: Sequence[Verdict | None]
    ) -> tuple[list[Unit], dict[str, float]]:
        """The redone sessions, each with its own rerollouts; and what these were like."""
        units: list[Unit] = []
        differ: list[float] = []
        worth: list[float] = []
        results = iter(zip(redone, verdicts, strict=True))
        for fork in forks:
            of = list(islice(results, fork.times))
            without = next(results)[1] if fork.silent else None
            differ.append(credit.distinct([play for play, _ in of]))
            judged = [(play, verdict) for play, verdict in of if verdict is not None]
            ends = [verdict for _, verdict in judged]
            units += credit.local_units([play for play, _ in judged], ends, without)
            if without is not None:
                worth += [verdict.reward - without.reward for verdict in ends]
        found = {"rerollout_distinct": differ, "utility": worth}
        return units, {name: sum(of) / len(of) for name, of in found.items() if of}

    def _update(self, rows: list[Row], number: int) -> dict[str, float]:
        policy, settings = self.stage.policy, self.settings
        metrics: dict[str, float] = {}
        passes: list[dict[str, float]] = []
        for epoch in range(settings.epochs):
            for chosen in in_parts(rows, settings.minibatches, seed=number * 1000 + epoch):
                part = [rows[i] for i in chosen]
                batches = split(part, policy, self.stage.run)
                if not passes:
                    metrics["logp_difference"] = policy.processes.most(
                        logp_difference(policy, part, batches[:1])
                    )
                passes.append(self._pass(part, batches))
        return metrics | {name: sum(p[name] for p in passes) / len(passes) for name in passes[0]}

    def _pass(self, part: Sequence[Row], batches: Sequence[MicroBatch]) -> dict[str, float]:
        """One optimizer step."""
        policy, settings = self.stage.policy, self.settings
        ratios = [self._ratio_mask(batch.mask) for batch in batches]

        def size(masks: Sequence[Tensor]) -> int:
            longest, average = policy.max_tokens, settings.average
            own = sum(loss_denominator(mask, average, max_tokens=longest) for mask in masks)
            return policy.processes.count(own)

        per_token, per_ratio = size([batch.mask for batch in batches]), size(ratios)
        totals = dict.fromkeys(("loss", "entropy", "kl", "approx_kl", "clip_fraction"), 0.0)
        for batch, mask in zip(batches, ratios, strict=True):
            scored = policy.score(batch)
            advantages = torch.tensor([part[i].advantage for i in batch.rows])
            result = policy_loss(
                self._ratio_logps(scored.logp, batch.mask),
                self._ratio_logps(sampled_logps(part, batch), batch.mask),
                advantages.to(scored.logp.device),
                mask,
                clip_low=settings.clip,
                clip_high=settings.clip_high or settings.clip,
                dual_clip=settings.dual_clip,
                aggregate=settings.average,
                denominator=per_ratio,
            )
            loss = result.loss
            if self.reference is not None:
                strayed = kl(scored.logp, self.reference(batch), "k3")
                drift = aggregate(strayed, batch.mask, settings.average, denominator=per_token)
                loss = loss + settings.kl * drift
                totals["kl"] += float(drift.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["entropy"] += float(
                aggregate(scored.entropy, batch.mask, settings.average, denominator=per_token)
            )
            totals["approx_kl"] += result.approx_kl
            totals["clip_fraction"] += result.clip_fraction
        totals = policy.processes.add(totals)
        clip = self.stage.run.optimizer.grad_clip
        totals["grad_norm"] = finish_step(policy, self.optimizer, clip, policy.processes)
        return totals

    def _ratio_mask(self, mask: Tensor) -> Tensor:
        """(rows, tokens) -> (rows, 1) where a whole completion has one ratio."""
        return mask if self.logo.ratio == "token" else mask.any(dim=1, keepdim=True)

    def _ratio_logps(self, logps: Tensor, mask: Tensor) -> Tensor:
        """(rows, tokens) -> (rows, 1), the mean over tokens: a length-normalised ratio."""
        if self.logo.ratio == "token":
            return logps
        return logps.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


class Compared(NamedTuple):
    """What comparing units within their groups came to."""

    told: Sequence[tuple[Hashable, Told, float]]
    """(group, completion, advantage), of groups that are not tied."""
    tied: float
    """Share of the groups that are: they carry no signal."""


def compare(units: Sequence[Unit], *, scale_by_std: bool) -> Compared:
    """Each unit against the others of its group, and no other (GRPO's advantage)."""
    numbers = {group: i for i, group in enumerate(dict.fromkeys(unit.group for unit in units))}
    groups = torch.tensor([numbers[unit.group] for unit in units], dtype=torch.long)
    rewards = torch.tensor([unit.reward for unit in units])
    advantages = grpo_advantages(rewards, groups, scale_by_std=scale_by_std).tolist()
    dead = tied(rewards, groups)
    alive = len(torch.unique(groups[~dead]))
    told = [
        (unit.group, one, advantage)
        for unit, advantage, out in zip(units, advantages, dead.tolist(), strict=True)
        for one in (() if out else unit.told)
    ]
    return Compared(told, 1 - alive / max(1, len(numbers)))


def learned(
    whole: Sequence[Unit], local: Sequence[Unit], *, scale_by_std: bool
) -> tuple[list[Row], dict[str, float]]:
    """The rows of both kinds, pooled, and how many of them there are of which."""
    ends, again = (compare(units, scale_by_std=scale_by_std) for units in (whole, local))
    told = [*ends.told, *again.told]
    gone = credit.cancelled(told)
    rows = [
        Row(one.step, i, advantage)
        for i, ((_, one, advantage), out) in enumerate(zip(told, gone, strict=True))
        if not out
    ]
    weights = [sum(abs(advantage) for _, _, advantage in of.told) for of in (ends, again)]
    metrics = {
        "frac_zero_std": ends.tied,
        "rows": float(len(rows)),
        "rows_cancelled": sum(gone) / max(1, len(told)),
        "rows_local": len(again.told) / max(1, len(told)),
        "advantage_local": weights[1] / sum(weights) if any(weights) else 0.0,
    }
    return rows, metrics | ({"frac_zero_std_local": again.tied} if local else {})

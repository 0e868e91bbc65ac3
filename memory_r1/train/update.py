"""What GRPO and PPO share: rollouts -> rows, rows -> one optimizer step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from memory_r1.errors import MemoryR1Error
from memory_r1.train.policy import MicroBatch, Policy, Row, Scored, micro_batches, sampled_logps
from memory_r1.train.rollout import Rollout
from memory_r1.train.runfile import Optimizer, Run


def adamw(parameters: Iterable[nn.Parameter], settings: Optimizer, lr: float) -> torch.optim.AdamW:
    """The optimizer of a run file, at the given peak rate."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(
        learning, lr=lr, betas=settings.betas, weight_decay=settings.weight_decay
    )


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, warmup: int) -> float:
    """Constant after a linear warm-up; returns the rate."""
    rate = peak * min(1.0, (step + 1) / (warmup + 1))
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def rows_of(rollouts: Sequence[Rollout], advantages: Sequence[float]) -> list[Row]:
    """One row per completion, episode after episode."""
    return [
        Row(step, episode, advantage)
        for episode, (rollout, advantage) in enumerate(zip(rollouts, advantages, strict=True))
        for step in rollout.steps
    ]


def split(rows: Sequence[Row], policy: Policy, run: Run) -> list[MicroBatch]:
    """Rows as micro-batches within the run's token budget."""
    return list(
        micro_batches(rows, run.steps.micro_batch_tokens, policy.llm.pad_id, policy.model.device)
    )


def in_parts(rows: Sequence[Row], parts: int, seed: int) -> Iterator[list[int]]:
    """Positions of the rows in so many parts, whole prompts together, drawn from the seed."""
    if parts == 1:
        yield list(range(len(rows)))
        return
    prompts = list(dict.fromkeys(row.step.prompt_ids for row in rows))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    for part in range(parts):
        chosen = {prompts[i] for i in order[part::parts]}
        if members := [i for i, row in enumerate(rows) if row.step.prompt_ids in chosen]:
            yield members


def logp_difference(policy: Policy, rows: Sequence[Row], batches: Sequence[MicroBatch]) -> float:
    """Largest difference between a sampled and a recomputed log-prob; ~0 before any update."""
    worst = 0.0
    with torch.no_grad():
        for batch in batches:
            worst = max(worst, apart(policy.score(batch), rows, batch))
    return worst


def apart(scored: Scored, rows: Sequence[Row], batch: MicroBatch) -> float:
    """Largest difference between the sampled and these log-probs, in nats."""
    differences = (scored.logp.detach() - sampled_logps(rows, batch)).abs()
    return float(differences.masked_fill(~batch.mask, 0.0).max())


class Trained(Protocol):
    """What has parameters: a module, a policy, a critic."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained, and perhaps what is not and so has no gradient."""
        ...


def finish_step(model: Trained, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """Clip the gradient, move the weights, forget the gradient; returns its norm before clipping.

    Raises MemoryR1Error, with the weights unmoved, when the gradient is not finite.
    """
    norm = float(nn.utils.clip_grad_norm_(list(model.parameters()), clip))
    if not norm < float("inf"):
        optimizer.zero_grad(set_to_none=True)
        raise MemoryR1Error(
            f"the gradient became {norm}: the run stopped before it could spoil the weights. "
            "Start a new folder with a lower optimizer.lr"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Clock:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, Any] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to this phase."""
        now = time.perf_counter()
        name = f"seconds_{phase}"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

"""What GRPO and PPO share: rollouts -> rows, rows -> one optimizer step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from memory_r1.errors import MemoryR1Error
from memory_r1.train.policy import MicroBatch, Policy, Row, Scored, micro_batches, sampled_logps
from memory_r1.train.processes import Processes
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
    """This process's share of the rows as micro-batches within the run's token budget.

    Prompts stay whole. Sharded weights are gathered by all processes together, so there each has
    as many micro-batches as the others: what lacks is filled up with ones in which nothing counts.
    """

    def batched(part: Sequence[int]) -> list[MicroBatch]:
        found = micro_batches(
            [rows[i] for i in part],
            run.steps.micro_batch_tokens,
            policy.llm.pad_id,
            policy.model.device,
        )
        return [batch._replace(rows=[part[i] for i in batch.rows]) for batch in found]

    batches = batched(_share(rows, policy.processes))
    if policy.sharded:
        filler = (batches or batched([0]))[-1]
        idle = filler._replace(mask=torch.zeros_like(filler.mask))
        batches += [idle] * int(policy.processes.most(len(batches)) - len(batches))
    return batches


def _share(rows: Sequence[Row], processes: Processes) -> list[int]:
    """The rows this process learns from; those of one prompt belong together."""
    of: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        of.setdefault(row.step.prompt_ids, []).append(i)
    sizes = [len(prompt) + sum(len(rows[i].step.ids) for i in part) for prompt, part in of.items()]
    trees = list(of.values())
    return sorted(i for tree in processes.share(sizes) for i in trees[tree])


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


def finish_step(
    model: Trained, optimizer: torch.optim.Optimizer, clip: float, processes: Processes
) -> float:
    """Add up and clip the gradient, move the weights, forget it; returns its norm before clipping.

    Raises MemoryR1Error, with the weights unmoved, when the gradient is not finite.
    """
    parameters = list(model.parameters())
    processes.add_gradients(parameters)
    found = nn.utils.clip_grad_norm_(parameters, clip)
    norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
    if not norm < float("inf"):
        optimizer.zero_grad(set_to_none=True)
        raise MemoryR1Error(
            f"the gradient became {norm}: the run stopped before it could spoil the weights. The "
            "last checkpoint is whole; go on from it with a lower rate, as in --resume "
            "optimizer.lr=1e-6, or start a new folder"
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

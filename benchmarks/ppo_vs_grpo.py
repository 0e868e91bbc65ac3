"""What a PPO step costs beside a GRPO step that samples as many tokens, on the tiny model.

    python benchmarks/ppo_vs_grpo.py [--steps 5] [--kl 0.001] [--ties]

Both play the same situations with the same group size. Milliseconds are per sampled token, of the
clock and, for a machine with other work to do, of this process. GRPO drops groups that tied, and
PPO learns from them too. So that both learn from all that was sampled, rewards get a little noise
that no group ties with; --ties leaves them as they are.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memory_r1.train.grpo import Grpo
from memory_r1.train.ppo import Ppo
from memory_r1.train.runfile import load_run
from memory_r1.train.stage import prepare

RUNS = Path(__file__).parents[1] / "runs"


PHASES = ("step", "sample", "update")


class Sampling:
    """Times a stage's `rollouts`, and lets no two rewards be equal."""

    def __init__(self, stage: Any, *, ties: bool) -> None:
        self.cpu = 0.0
        self._play, self._ties, self._noise = stage.rollouts, ties, random.Random(0)
        stage.rollouts = self.rollouts

    def rollouts(self, *given: Any, **named: Any) -> Any:
        """What the stage's would return."""
        began = time.process_time()
        played, groups = self._play(*given, **named)
        self.cpu += time.process_time() - began
        return (played if self._ties else [self._noisy(r) for r in played]), groups

    def _noisy(self, rollout: Any) -> Any:
        reward = rollout.outcome.reward + self._noise.random() / 100
        return replace(rollout, outcome=replace(rollout.outcome, reward=reward))


def measured(
    algorithm: str, stage: str, steps: int, kl: float, *, ties: bool
) -> dict[tuple[str, str], float]:
    """Milliseconds per sampled token by clock and phase, over some steps after a first one that
    warms up; and the share of tied groups."""
    changes = [f"algorithm={algorithm}", "world.dialogues=4", "eval.questions=1"]
    changes += [f"grpo.kl={kl}", f"ppo.kl={kl}", "optimizer.lr=1e-7", "optimizer.warmup_steps=0"]
    run = load_run(RUNS / f"tiny_{stage}_grpo.toml", changes)
    prepared = prepare(run)
    sampling = Sampling(prepared, ties=ties)
    trained = (Ppo if algorithm == "ppo" else Grpo)(prepared)
    found: dict[tuple[str, str], float] = defaultdict(float)
    tokens = 0
    for number in range(steps + 1):
        began, sampling.cpu = time.process_time(), 0.0
        metrics, played = trained.step(number)
        cpu = time.process_time() - began
        if not number:
            continue
        tokens += sum(len(step.ids) for rollout in played for step in rollout.steps)
        found["share", "tied"] += metrics.get("frac_zero_std", 0.0) / steps
        wall = sum(v for k, v in metrics.items() if k.startswith("seconds_"))
        sampled = metrics["seconds_sample"]
        for clock, whole, of in (("wall", wall, sampled), ("cpu", cpu, sampling.cpu)):
            for phase, seconds in zip(PHASES, (whole, of, whole - of), strict=True):
                found[clock, phase] += 1000 * seconds
    return {key: v if key[0] == "share" else v / tokens for key, v in found.items()}


def main() -> None:
    """Measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--kl", type=float, default=0.001)
    options.add_argument("--ties", action="store_true")
    asked = options.parse_args()
    print(f"{torch.get_num_threads()} threads, {asked.steps} steps, KL weight {asked.kl:g}")
    print("ms/token                  wall: step sample update   cpu: step sample update   tied")
    for stage in ("manager", "answer"):
        cost = {}
        for algorithm in ("grpo", "ppo"):
            cost[algorithm] = each = measured(
                algorithm, stage, asked.steps, asked.kl, ties=asked.ties
            )
            wall, cpu = (
                " ".join(f"{each[clock, phase]:6.3f}" for phase in PHASES)
                for clock in ("wall", "cpu")
            )
            print(f"{stage:<8} {algorithm:<15} {wall:>26} {cpu:>25} {each['share', 'tied']:6.0%}")
        for clock in ("wall", "cpu"):
            step, sample, update = (
                cost["ppo"][clock, phase] / cost["grpo"][clock, phase] for phase in PHASES
            )
            print(
                f"{stage:<8} PPO / GRPO by {clock}: step {step:.2f}, sample {sample:.2f}, "
                f"update {update:.2f}"
            )


if __name__ == "__main__":
    main()

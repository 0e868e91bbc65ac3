"""What a PPO step costs beside a GRPO step that samples as many tokens, on the tiny model.

    python benchmarks/ppo_vs_grpo.py [--steps 5] [--kl 0.001] [--ties]

Both play the same situations with the same group size; seconds are per sampled token. GRPO drops
groups that tied, and PPO learns from them too. So that both learn from all that was sampled,
rewards get a little noise that no group ties with; --ties leaves them as they are.
"""

from __future__ import annotations

import argparse
import random
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


def untied(stage: Any) -> None:
    """No two rewards of the stage are equal from now on."""
    play, noise = stage.rollouts, random.Random(0)

    def rollouts(*given: Any, **named: Any) -> Any:
        played, groups = play(*given, **named)
        told = [
            replace(r, outcome=replace(r.outcome, reward=r.outcome.reward + noise.random() / 100))
            for r in played
        ]
        return told, groups

    stage.rollouts = rollouts


def measured(algorithm: str, stage: str, steps: int, kl: float, *, ties: bool) -> dict[str, float]:
    """Seconds per phase and tokens, over some steps after a first one that warms up."""
    changes = [f"algorithm={algorithm}", "world.dialogues=4", "eval.questions=1"]
    changes += [f"grpo.kl={kl}", f"ppo.kl={kl}", "optimizer.lr=1e-7", "optimizer.warmup_steps=0"]
    run = load_run(RUNS / f"tiny_{stage}_grpo.toml", changes)
    prepared = prepare(run)
    if not ties:
        untied(prepared)
    trained = (Ppo if algorithm == "ppo" else Grpo)(prepared)
    found: dict[str, float] = defaultdict(float)
    for number in range(steps + 1):
        metrics, played = trained.step(number)
        if not number:
            continue
        found["tokens"] += sum(len(step.ids) for rollout in played for step in rollout.steps)
        found["tied"] += metrics.get("frac_zero_std", 0.0) / steps
        for name, seconds in metrics.items():
            if name.startswith("seconds_"):
                found[name] += seconds
                found["seconds"] += seconds
    return found


def main() -> None:
    """Measure, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--kl", type=float, default=0.001)
    options.add_argument("--ties", action="store_true")
    asked = options.parse_args()
    print(f"{torch.get_num_threads()} threads, {asked.steps} steps, KL weight {asked.kl:g}")
    print("stage    algorithm  ms/token  sampling  update  tied groups")
    for stage in ("manager", "answer"):
        cost = {}
        for algorithm in ("grpo", "ppo"):
            m = measured(algorithm, stage, asked.steps, asked.kl, ties=asked.ties)
            each = {k: 1000 * v / m["tokens"] for k, v in m.items() if k.startswith("seconds")}
            cost[algorithm] = each
            print(
                f"{stage:<8} {algorithm:<9} {each['seconds']:9.3f} {each['seconds_sample']:9.3f} "
                f"{each['seconds_update']:7.3f} {m['tied']:12.0%}"
            )
        whole, update = (cost["ppo"][k] / cost["grpo"][k] for k in ("seconds", "seconds_update"))
        print(f"{stage:<8} PPO / GRPO: {whole:.2f} of a step, {update:.2f} of its update")


if __name__ == "__main__":
    main()

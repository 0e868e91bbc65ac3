"""What each way of training adds to tiny-base: every run file, several seeds, one table.

    python benchmarks/tiny_comparison.py --out out/comparison [--seeds 0 1 2] [--jobs 2]

Trains with `memory-r1 train` and plays the whole pipeline over the quickstart's two test worlds,
which no run is tuned on. What is finished in OUT is not done again. Each job uses one thread: with
one, a run file and a seed give the same weights. About an hour and a half on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memory_r1.bench.folder import RunFolder
from memory_r1.bench.score import Prediction, paired_bootstrap
from memory_r1.serve.quickstart_measure import write_worlds

RUNS = Path(__file__).parents[1] / "runs"
BASE = "tiny-base"


@dataclass(frozen=True)
class Row:
    """One way of training: a run file, and the row whose manager its Answer Agent works with."""

    name: str
    runfile: str
    manager: str = ""


ROWS = (
    Row("GRPO stage 1", "tiny_manager_grpo"),
    Row("PPO stage 1", "tiny_manager_ppo"),
    Row("GRPO stage 2 alone", "tiny_answer_grpo"),
    Row("GRPO both", "tiny_answer_grpo", manager="GRPO stage 1"),
    Row("PPO both", "tiny_answer_ppo", manager="PPO stage 1"),
    Row("SFT, same teacher", "tiny_sft_teacher"),
    Row("SFT, right operations", "tiny_sft_right"),
)


def main() -> None:
    """Train, play, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    asked = options.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    worlds = write_worlds(out / "worlds", 0, short=False)
    rows = [row for row in ROWS if not asked.rows or row.name in asked.rows]
    needed = {row.manager for row in rows}  # without its manager a row would be another one
    rows = [row for row in ROWS if row in rows or row.name in needed]
    with ThreadPoolExecutor(asked.jobs) as pool:
        played = [pool.submit(play, BASE, out / "bench" / "base", worlds)]
        trained: dict[tuple[str, int], Future[Path]] = {}
        # A second stage that waits for its manager would idle a worker: first stages come first.
        for row in sorted(rows, key=lambda row: bool(row.manager)):
            for seed in asked.seeds:
                manager = trained[row.manager, seed] if row.manager else None
                trained[row.name, seed] = pool.submit(one, row, seed, out, worlds, manager)
        for job in (*played, *trained.values()):
            job.result()
    print_table(out, rows, asked.seeds, tuple(worlds))
    if any(row.name == "GRPO both" for row in rows):
        for world in worlds:
            print_details(out / "bench", world, asked.seeds[0])


def one(
    row: Row, seed: int, out: Path, worlds: Mapping[str, Path], manager: Future[Path] | None
) -> Path:
    """Train a row with one seed, play it over the test worlds; returns its run folder."""
    folder = out / folder_name(row, seed)
    settings = [f"seed={seed}"]
    if not row.runfile.startswith("tiny_sft"):
        settings.append(f"world.seed={10 * seed + 1 + row.runfile.startswith('tiny_answer')}")
    if manager is not None:
        settings.append(f"manager={manager.result()}")
    if not (folder / "agents.json").is_file():
        again = ["--resume"] if (folder / "checkpoints").is_dir() else []
        command("train", str(RUNS / f"{row.runfile}.toml"), *settings, "--out", str(folder), *again)
    play(str(folder), out / "bench" / folder_name(row, seed), worlds)
    return folder


def folder_name(row: Row, seed: int) -> str:
    """Where a row's run is kept."""
    return f"{row.name.lower().replace(',', '').replace(' ', '-')}-{seed}"


def play(system: str, folder: Path, worlds: Mapping[str, Path]) -> None:
    """Play a system over the test worlds."""
    for name, data in worlds.items():
        out = folder / name
        if not (out / "scores.json").is_file():
            where = ["--data", str(data), "--split", "all", "--batch", "128", "--out", str(out)]
            command("bench", "world", "--system", system, *where)


def command(*arguments: str) -> None:
    """Run `memory-r1` in a process of its own, on one thread."""
    print("memory-r1", *arguments, file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "memory_r1.serve.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def print_table(
    out: Path, rows: Sequence[Row], seeds: Sequence[int], worlds: Sequence[str]
) -> None:
    """Markdown: exact match averaged over seeds, each seed's, and the gain over tiny-base."""
    base = {world: exact(out / "bench" / "base" / world) for world in worlds}
    for world in worlds:
        print(f"\n`{world}`, n = {len(base[world])}, tiny-base {share(base[world])}\n")
        print("| row | mean EM | each seed | gain over tiny-base |\n|---|---|---|---|")
        for row in rows:
            runs = [exact(out / "bench" / folder_name(row, s) / world) for s in seeds]
            mean = np.mean([list(run.values()) for run in runs], axis=0)
            gain = paired_bootstrap(list(mean), list(base[world].values()))
            change, low, high = (100 * value for value in gain)
            each = ", ".join(share(run) for run in runs)
            print(
                f"| {row.name} | {100 * mean.mean():.1f} | {each} | "
                f"{change:+.1f} [{low:+.1f}, {high:+.1f}] |"
            )


def print_details(bench: Path, world: str, seed: int) -> None:
    """Markdown, of both GRPO stages and one seed: per kind of question, and what was done."""
    folders = [bench / name / world for name in ("base", f"grpo-stage-1-{seed}")]
    folders.append(bench / f"grpo-both-{seed}" / world)
    before, stage_1, both = (predictions_of(folder) for folder in folders)
    members: dict[str, list[str]] = {"all": list(before)}
    for name, prediction in before.items():
        for group in prediction.groups:
            members.setdefault(group, []).append(name)
    print(f"\n`{world}`, GRPO, seed {seed}\n")
    print("| questions | n | before | stage 1 | both | gain of both |\n|---|---|---|---|---|---|")
    for group in ["all", *sorted(set(members) - {"all"})]:
        ids = members[group]
        scores = [[of[name].em for name in ids] for of in (before, stage_1, both)]
        gain = (100 * value for value in paired_bootstrap(scores[2], scores[0]))
        means = " | ".join(f"{100 * np.mean(of):.1f}" for of in scores)
        print("| {} | {} | {} | {:+.1f} [{:+.1f}, {:+.1f}] |".format(group, len(ids), means, *gain))
    print("\n| decisions | n | before: right | after: right | after: right entry | after |")
    print("|---|---|---|---|---|---|")
    first, last = (
        json.loads((folder / "scores.json").read_text("utf-8"))["bank"] for folder in folders[::2]
    )
    for name, row in last["by_phenomenon"].items():
        ops = ", ".join(f"{op} {n}" for op, n in row["operations"].items())
        right = first["by_phenomenon"][name]["right"]
        entry = "-" if name == "new" or row["right_entry"] is None else row["right_entry"]
        print(f"| {name} | {row['n']} | {right} | {row['right']} | {entry} | {ops} |")
    print(
        f"\nRight entry of all UPDATE and DELETE: {first['right_entry']} -> {last['right_entry']}"
    )


def predictions_of(folder: Path) -> dict[str, Prediction]:
    """The predictions of a bench folder by question id, in the order of the ids."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    predictions = RunFolder(folder, config).predictions()
    return {name: predictions[name] for name in sorted(predictions)}


def exact(folder: Path) -> dict[str, float]:
    """Exact match of each question, by its id."""
    return {name: prediction.em for name, prediction in predictions_of(folder).items()}


def share(run: Mapping[str, float]) -> str:
    """A mean of shares 0..1 as 0..100."""
    return f"{100 * sum(run.values()) / len(run):.1f}"


if __name__ == "__main__":
    main()

"""LoGo-GRPO beside plain trajectory GRPO and without its parts, at equal sampled tokens.

    python benchmarks/logo_comparison.py --out out/logo [--seeds 0 1 2] [--horizons 8 16] [--jobs 2]

Trains with `memory-r1 train` from tiny-base and plays the whole pipeline over test dialogues of as
many sessions, which no run is tuned on; questions are asked at the end. What is finished in OUT is
not done again, so a stopped comparison goes on where it was, `--table` prints what is there, and
`--plot FILE` draws how the runs got there. Each job uses one thread: with one, a run file and a
seed give the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memory_r1.bank import Bank
from memory_r1.bench.score import paired_bootstrap
from memory_r1.config import Settings
from memory_r1.data import Dialogue, load
from memory_r1.data.world import WorldConfig, write
from memory_r1.embed import open_embedder
from memory_r1.llm import Conversation, drive, strictly
from memory_r1.llm.open import open_agents
from memory_r1.remember import remember
from memory_r1.respond import respond
from memory_r1.store.ram import RamStore
from memory_r1.text import em, f1
from memory_r1.train.curves import read_metrics
from memory_r1.types import Owner

RUNS = Path(__file__).parents[1] / "runs"
BASE = "tiny-base"
TEST_SEED = 8_000_000
"""Of the test worlds, far from those of training, of tuning and of evaluation within runs."""
TEST_DIALOGUES = {8: 12, 16: 6}
THREADS = {8: 4, 16: 8}
"""Topics per speaker: as many facts in a session of the long dialogues as of the short ones."""
STEPS = 16


@dataclass(frozen=True)
class Row:
    """One way of training. A run of group_size 4 that redoes half of the sessions 4 times samples
    as many tokens as one of group_size 6 that redoes none."""

    name: str
    runfile: str = "tiny_logo"
    settings: tuple[str, ...] = ()
    horizons: tuple[int, ...] = (8, 16)


ROWS = (
    Row("trajectory GRPO", "tiny_logo_trajectory"),
    Row("LoGo"),
    Row("LoGo, traced credit", settings=("logo.credit=traced",)),
    Row("LoGo, no local term", settings=("logo.local=0.0", "rollout.group_size=6")),
    Row(
        "traced credit, no local term",
        settings=("logo.credit=traced", "logo.local=0.0", "rollout.group_size=6"),
    ),
    Row("LoGo, NOOP branch", settings=("logo.noop_branch=true",)),
    Row("LoGo, curriculum", "tiny_logo_curriculum", horizons=(16,)),
)


@dataclass(frozen=True)
class Job:
    """A row trained with one seed for one horizon; row None: tiny-base as it is."""

    row: Row | None
    horizon: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.row is None:
            return f"base-{self.horizon}"
        row = self.row.name.lower().replace(",", "").replace(" ", "-")
        return f"{row}-{self.horizon}-{self.seed}"

    def run(self, out: Path) -> None:
        """Train and play, as far as that is not done."""
        folder = out / self.name
        if self.row is not None and not (folder / "agents.json").is_file():
            horizon = self.horizon
            changes = (
                f"seed={self.seed}",
                f"world.seed={10 * self.seed + 1}",
                f"world.sessions={horizon}",
                f"world.dials.threads={THREADS[horizon]}",
                f"steps.total={STEPS}",
                *self.row.settings,
            )
            again = ["--resume"] if (folder / "checkpoints").is_dir() else []
            runfile = str(RUNS / f"{self.row.runfile}.toml")
            python(
                "-m",
                "memory_r1.serve.cli",
                "train",
                runfile,
                *changes,
                "--out",
                str(folder),
                *again,
            )
        played = out / "played" / f"{self.name}.json"
        if not played.is_file():
            system = BASE if self.row is None else str(folder)
            world = str(out / f"test-{self.horizon}.json")
            python(__file__, "--play", system, world, str(played))

    def scores(self, out: Path) -> dict[str, dict[str, float]] | None:
        """By measure and question; None when it is not done."""
        file = out / "played" / f"{self.name}.json"
        if not file.is_file():
            return None
        scores: dict[str, dict[str, float]] = json.loads(file.read_text("utf-8"))
        return scores


def main() -> None:
    """Train, play, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--horizons", type=int, nargs="+", default=[8, 16], choices=[8, 16])
    options.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--table", action="store_true", help="only print what is finished")
    options.add_argument(
        "--plot", type=Path, help="only draw the held-out curves of what is finished"
    )
    options.add_argument("--play", nargs=3, metavar=("SYSTEM", "WORLD", "JSON"))
    asked = options.parse_args()
    if asked.play:
        play(asked.play[0], Path(asked.play[1]), Path(asked.play[2]))
        return
    if asked.out is None:
        options.error("--out is missing")
    out: Path = asked.out
    (out / "played").mkdir(parents=True, exist_ok=True)
    for horizon in asked.horizons:
        write_test_world(out / f"test-{horizon}.json", horizon)
    rows = [row for row in ROWS if not asked.rows or row.name in asked.rows]
    jobs = [Job(None, horizon, 0) for horizon in asked.horizons]
    # Seed by seed: a comparison that is stopped has whole columns.
    jobs += [
        Job(row, horizon, seed)
        for seed in asked.seeds
        for horizon in asked.horizons
        for row in rows
        if horizon in row.horizons
    ]
    if asked.plot:
        draw(out, asked.plot, asked.horizons, rows, asked.seeds)
        return
    if not asked.table:
        with ThreadPoolExecutor(asked.jobs) as pool:
            for done in [pool.submit(job.run, out) for job in jobs]:
                done.result()
    for horizon in asked.horizons:
        print_table(out, horizon, rows, asked.seeds)


def write_test_world(path: Path, horizon: int) -> None:
    """The test dialogues, made once."""
    if not path.is_file():
        config = WorldConfig(
            seed=TEST_SEED + horizon,
            dialogues=TEST_DIALOGUES[horizon],
            sessions=horizon,
            threads=THREADS[horizon],
            friends=0,
            absent=1,
            chat=0.2,
        )
        write(config, path)


def play(system: str, world: Path, into: Path) -> None:
    """Play a system over dialogues and write its scores by question, 0..1."""
    agents, settings, embedder = open_agents(system), Settings(), open_embedder()

    def live(dialogue: Dialogue) -> Conversation[Bank]:
        bank = Bank(RamStore(), embedder, Owner(dialogue.id))
        for turn in dialogue.turns:
            yield from strictly(remember(bank, turn, agents, settings))
        return bank

    def ask(bank: Bank, text: str) -> Conversation[str]:
        return (yield from respond(bank, text, agents, settings)).text

    dialogues = load(world)
    banks = drive([live(dialogue) for dialogue in dialogues], agents)
    asked = [(b, q) for b, d in zip(banks, dialogues, strict=True) for q in d.questions]
    answers = drive([ask(bank, question.text) for bank, question in asked], agents)
    scores = {
        name: {
            q.id: max(measure(answer, gold) for gold in q.golds)
            for (_, q), answer in zip(asked, answers, strict=True)
        }
        for name, measure in (("em", em), ("f1", f1))
    }
    entries = {d.id: float(len(b.entries())) for b, d in zip(banks, dialogues, strict=True)}
    text = json.dumps({**scores, "entries": entries}, indent=1, sort_keys=True)
    partial = into.with_suffix(".partial")
    partial.write_text(text + "\n", "utf-8")
    partial.replace(into)


def python(*arguments: str) -> None:
    """Run Python in a process of its own, on one thread."""
    print(*arguments, file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEMORY_R1_THREADS": "1"}
    subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True
    )


def print_table(out: Path, horizon: int, rows: Sequence[Row], seeds: Sequence[int]) -> None:
    """Markdown: means over the finished seeds, and gains over trajectory GRPO."""
    base = Job(None, horizon, 0).scores(out)
    if base is None:
        return
    found = {row.name: finished(out, row, horizon, seeds) for row in rows}
    plain = found.get(ROWS[0].name, {})
    print(f"\n{horizon} sessions, n = {len(base['em'])}, tiny-base {percent(base['em'])}\n")
    print("| row | EM | each seed | F1 | tokens sampled | memories | against trajectory GRPO |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        runs = found[row.name]
        if not runs:
            continue
        shared = [seed for seed in runs if seed in plain]
        gain = "-"
        if row is not ROWS[0] and shared:
            change, low, high = (
                100 * v for v in paired_bootstrap(mean(runs, shared), mean(plain, shared))
            )
            gain = f"{change:+.1f} [{low:+.1f}, {high:+.1f}]"
        each = ", ".join(percent(run["em"]) for run in runs.values())
        tokens = [sampled(out / Job(row, horizon, seed).name) for seed in runs]
        entries = np.mean([list(run["entries"].values()) for run in runs.values()])
        ems, f1s = (
            100 * float(np.mean([list(run[name].values()) for run in runs.values()]))
            for name in ("em", "f1")
        )
        print(
            f"| {row.name} | {ems:.1f} | {each} | {f1s:.1f} | {np.mean(tokens):,.0f} | "
            f"{entries:.1f} | {gain} |"
        )


def draw(
    out: Path, target: Path, horizons: Sequence[int], rows: Sequence[Row], seeds: Sequence[int]
) -> None:
    """Exact match on each run's held-out dialogues over the tokens sampled."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(horizons), figsize=(7.5 * len(horizons), 5), squeeze=False, layout="constrained"
    )
    for panel, horizon in zip(axes[0], horizons, strict=True):
        for number, row in enumerate(rows):
            folders = [
                out / Job(row, horizon, seed).name for seed in finished(out, row, horizon, seeds)
            ]
            curves = np.array([held_out(folder) for folder in folders])  # (seeds, points, 2)
            if not len(curves):
                continue
            color = pyplot.get_cmap("tab10")(number)
            for tokens, share in curves.transpose(0, 2, 1):
                panel.plot(tokens / 1000, 100 * share, color=color, alpha=0.25, linewidth=1)
            tokens, share = curves.mean(0).T
            count = f"{len(folders)} seed" + "s" * (len(folders) > 1)
            panel.plot(
                tokens / 1000,
                100 * share,
                "o-",
                color=color,
                linewidth=2,
                label=f"{row.name} ({count})",
            )
        panel.set_title(
            f"{horizon} sessions: held-out dialogues; thin lines are seeds, thick their mean"
        )
        panel.set(xlabel="thousand tokens sampled", ylabel="exact match, 0..100", ylim=(0, 102))
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    figure.savefig(target, dpi=80)
    pyplot.close(figure)


def held_out(folder: Path) -> list[tuple[float, float]]:
    """(tokens sampled by then, exact match) at each evaluation of a run."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [(row.get("sampled_tokens", 0.0), row["eval_em"]) for row in lines if "eval_em" in row]


def finished(
    out: Path, row: Row, horizon: int, seeds: Sequence[int]
) -> dict[int, dict[str, dict[str, float]]]:
    """The scores of the seeds that are done."""
    found = {seed: Job(row, horizon, seed).scores(out) for seed in seeds}
    return {seed: scores for seed, scores in found.items() if scores is not None}


def mean(
    runs: Mapping[int, Mapping[str, Mapping[str, float]]], seeds: Sequence[int]
) -> list[float]:
    """Exact match of each question, averaged over seeds, in the order of the ids."""
    ids = sorted(runs[seeds[0]]["em"])
    return [float(np.mean([runs[seed]["em"][name] for seed in seeds])) for name in ids]


def sampled(folder: Path) -> float:
    """Completion tokens that a run sampled."""
    return float(read_metrics(folder / "metrics.jsonl")[-1]["sampled_tokens"])


def percent(scores: Mapping[str, float]) -> str:
    """A mean of shares 0..1 as 0..100."""
    return f"{100 * float(np.mean(list(scores.values()))):.1f}"


if __name__ == "__main__":
    main()

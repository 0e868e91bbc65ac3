"""Bars: ablations, distillation or a reranker, the choice of reward, weak and strong managers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from memory_r1.bench.comparison import Table, averages
from memory_r1.bench.figures_draw import (
    Figure,
    Missing,
    Panel,
    Value,
    bars,
    bench,
    facts,
    heights,
    measures,
)
from memory_r1.bench.given import MEASURES, BenchRun, Trained
from memory_r1.bench.paper import ABLATIONS, REWARDS, Reference

ARMS = {
    "full": "--system out/answer",
    "no trained manager": "--system out/answer --manager BASE",
    "no trained answer agent": "--system out/answer --answer BASE",
    "no distillation": "--system no-distillation --model out/answer",
}
"""What is taken away, and the options of the run; out/answer: the output of stage 2."""
REWARD_NAMES = {"em": "exact match", "f1": "token F1", "judge": "judge"}
OLD = "scores.json of the runs doesn't say which agents were trained; play them with this version"


def ablation(table: Table) -> Figure:
    """What each part is worth: the full system, and without one part each."""
    title = "Ablations"
    found: dict[tuple[str, str], dict[str, list[BenchRun]]] = {}
    for run in _ours(table):
        if (arm := arm_of(run)) is not None:
            one = _any_trained(run)
            found.setdefault((one.model, one.algorithm), {}).setdefault(arm, []).append(run)
    panels, used = [], []
    for (model, algorithm), arms in sorted(found.items()):
        if "full" in arms and len(arms) > 1:
            names = [arm for arm in ARMS if arm in arms]
            runs = [run for arm in names for run in arms[arm]]
            values = heights([arms[arm] for arm in names], measures(table, runs))
            panels.append(Panel(f"{model}, {algorithm.upper()}", names, values))
            used += runs
    if not panels:
        held = {arm for arms in found.values() for arm in arms}
        lacking = [arm for arm in ARMS if arm not in held] or list(ARMS)
        why = f"needs the full system and at least one arm of the same model; found {_list(held)}"
        return Missing(
            title,
            why if any(run.says_who_was_trained for run in table.runs) else OLD,
            tuple(bench(table, ARMS[arm], f"runs/{arm.replace(' ', '-')}") for arm in lacking),
        )
    panels.append(_paper_panel("the paper: LoCoMo, LLaMA-3.1-8B, GRPO", ABLATIONS))
    return bars("ablation", title, facts(table, used, paper=True), panels)


def distillation(table: Table) -> Figure:
    """Selecting memories by the trained Answer Agent, or by a reranker, or not at all."""
    title = "Distillation against a reranker"
    full = [run for run in _ours(table) if arm_of(run) == "full"]
    arms = {
        "learned distillation": full,
        "base model and reranker": [run for run in table.runs if run.system == "rerank"],
        "no distillation": [run for run in _ours(table) if arm_of(run) == "no distillation"],
    }
    held = {name: runs for name, runs in arms.items() if runs}
    if not full or "base model and reranker" not in held:
        return Missing(
            title,
            f"needs a fully trained system and one with a reranker; found {_list(held)}",
            (
                bench(table, "--system out/answer --batch 1", "runs/full"),
                bench(
                    table, "--system rerank --model BASE --reranker MODEL --batch 1", "runs/rerank"
                ),
            ),
        )
    runs = [run for each in held.values() for run in each]
    values = heights(list(held.values()), measures(table, runs))
    panels = [Panel("accuracy", list(held), values)]
    seconds = {f"p{share}": [_seconds(of, share) for of in held.values()] for share in (50, 95)}
    timed = any(value is not None for row in seconds.values() for value in row)
    if timed:
        panels.append(Panel("from question to answer", list(held), seconds, "seconds"))
    caption = facts(table, runs) + (
        f" Seconds: search, reranking and answering of a question together. {batch_note(runs)}"
        if timed
        else " The runs hold no latencies."
    )
    caption += " In the paper, learned distillation is ahead on both."
    return bars("distillation", title, caption, panels)


def reward(table: Table) -> Figure:
    """What the Answer Agent is rewarded for shows in the length of its answers."""
    title = "Choice of reward"
    found: dict[tuple[str, str, bool], dict[str, list[BenchRun]]] = {}
    for run in _ours(table):
        trained = run.trained("answer")
        if trained is not None and run.distillation:
            same = (trained.model, trained.algorithm, run.trained("manage") is not None)
            found.setdefault(same, {}).setdefault(trained.reward, []).append(run)
    panels, used = [], []
    for (model, algorithm, managed), by_reward in sorted(found.items()):
        if len(by_reward) > 1:
            names = sorted(by_reward, key=lambda name: (name == "judge", name))
            arms = [by_reward[name] for name in names]
            used += (runs := [run for arm in arms for run in arm])
            ticks = [REWARD_NAMES.get(name, name) for name in names]
            who = f"{model}, {algorithm.upper()}" + ("" if managed else ", base manager")
            panels.append(Panel(who, ticks, heights(arms, measures(table, runs))))
            words = {"words": [averages(arm, "answer_words") for arm in arms]}
            panels.append(Panel(f"{who}: length of answers", ticks, words, "words"))
    if not panels:
        held = {name for by_reward in found.values() for name in by_reward}
        train = "memory-r1 train RUN.toml reward.name=judge reward.judge=MODEL manager=out/manager"
        return Missing(
            title,
            "needs two Answer Agents of one model and algorithm that were trained for different "
            f"rewards, e.g. em and judge; found {_list(held)}",
            (f"{train} --out out/judged", bench(table, "--system out/judged", "runs/judged")),
        )
    paper = {REWARD_NAMES[name]: row for name, row in REWARDS.items()}
    panels.append(_paper_panel("the paper: LoCoMo, LLaMA-3.1-8B, PPO", paper))
    return bars("reward", title, facts(table, used, paper=True), panels)


def managers(table: Table) -> Figure:
    """Whether a trained Answer Agent gains more from a better Memory Manager."""
    title = "Answer Agent's gain with a weak and a strong manager"
    found: dict[tuple[str, str], dict[str, list[BenchRun]]] = {}
    for run in _ours(table):
        if run.distillation and run.says_who_was_trained and "answer" in run.players:
            trained = run.trained("answer")
            base = trained.model if trained else run.players["answer"]
            pairs = found.setdefault((model_name(base), _manager(run)), {})
            pairs.setdefault("trained" if trained else "base", []).append(run)
    panels, used = [], []
    for model in sorted({model for model, _ in found}):
        whole = {
            manager: pair for (of, manager), pair in found.items() if of == model and len(pair) == 2
        }
        if len(whole) > 1:
            used += (runs := [r for pair in whole.values() for arm in pair.values() for r in arm])
            panels += [_managers_panel(model, whole, name) for name in measures(table, runs)[::2]]
    if not panels:
        return Missing(
            title,
            "needs a base and a trained Answer Agent with each of at least two managers; found "
            + _list({f"{model} with {manager}" for model, manager in found}),
            tuple(
                bench(table, f"--system {answer} --manager {manager}", f"runs/{answer[-6:]}-{i}")
                for i, manager in enumerate(("WEAK", "STRONG"), 1)
                for answer in ("BASE", "out/answer")
            ),
        )
    caption = facts(table, used) + (
        " Managers from the weaker to the stronger, by what the base Answer Agent makes of their "
        "banks. The paper shows this figure too; its values are not printed there as numbers."
    )
    return bars("managers", title, caption, panels)


def batch_note(runs: list[BenchRun]) -> str:
    """What latencies are, where questions were asked in batches."""
    batches = sorted({run.batch for run in runs})
    if batches == [1]:
        return "Questions were asked one at a time."
    sizes = " or ".join(map(str, batches))
    return f"{sizes} questions at once: a local model's seconds are those of a batch."


def _managers_panel(model: str, pairs: dict[str, dict[str, list[BenchRun]]], name: str) -> Panel:
    def gain(manager: str) -> tuple[float, float]:
        base, trained = (averages(pairs[manager][arm], name) for arm in ("base", "trained"))
        start = base[0] if base else 0.0
        return start, (trained[0] if trained else 0.0) - start

    order = sorted(pairs, key=gain)
    ticks = [f"{manager}: {gain(manager)[1]:+.1f}" for manager in order]
    series = {
        f"{arm} Answer Agent": [averages(pairs[manager][arm], name) for manager in order]
        for arm in ("base", "trained")
    }
    return Panel(f"{model}: {MEASURES[name]}", ticks, series, f"{MEASURES[name]}, %")


def _paper_panel(title: str, rows: Mapping[str, Reference]) -> Panel:
    def exactly(value: float | None) -> Value | None:
        return None if value is None else (value, value, value)

    series = {
        "F1": [exactly(row.f1) for row in rows.values()],
        "B1": [exactly(row.bleu1) for row in rows.values()],
        "J": [exactly(row.judge) for row in rows.values()],
    }
    return Panel(title, list(rows), series, paper=True)


def _ours(table: Table) -> list[BenchRun]:
    return [run for run in table.runs if run.ours]


def _any_trained(run: BenchRun) -> Trained:
    found = run.trained("answer") or run.trained("manage")
    assert found is not None
    return found


def arm_of(run: BenchRun) -> str | None:
    """Which arm of the ablations a run of ours is."""
    manager, answer = run.trained("manage") is not None, run.trained("answer") is not None
    match manager, answer, run.distillation:
        case True, True, True:
            return "full"
        case False, True, True:
            return "no trained manager"
        case True, False, True:
            return "no trained answer agent"
        case True, True, False:
            return "no distillation"
    return None


def _manager(run: BenchRun) -> str:
    name = run.players.get("manage", "?")
    trained = run.trained("manage")
    short = model_name(trained.model if trained else name)
    return f"{short}, {trained.algorithm.upper()}" if trained else short


def model_name(name: str) -> str:
    """The model in a name such as http://host/v1#Qwen or openai:gpt: services come and go."""
    return name.rpartition("#")[2].removeprefix("openai:").rpartition("/")[2] or name


def _seconds(runs: list[BenchRun], share: int) -> Value | None:
    """A percentile of what questions took from search to answer; the manager worked before."""
    totals = [
        sum(seconds for part, seconds in one.latency.items() if part != "manager")
        for run in runs
        for one in run.predictions.values()
        if one.latency
    ]
    if not totals:
        return None
    found = float(np.percentile(totals, share))
    return found, found, found


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"

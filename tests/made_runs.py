"""Run folders as `bench` and `train` leave them, made up: numbers to show, nothing to believe."""

import json
import random

from memory_r1.bench import score
from memory_r1.bench.score import Prediction

JUDGE = {"name": "openai:judge", "prompt_hash": "0123456789ab"}
CATEGORIES = {1: "1 multi-hop (paper: single-hop)", 2: "2 temporal", 4: "4 single-hop"}


def trained(algorithm="grpo", reward="em", model="Qwen2.5-7B", seed=0):
    return {"algorithm": algorithm, "reward": reward, "model": model, "seed": seed}


def prediction(number, right, *, slow=1.0, sessions=0, groups=CATEGORIES):
    category = sorted(groups)[number % len(groups)]
    f1 = 1.0 if right else (number % 4) / 10
    return Prediction(
        question_id=f"q{number}",
        dialogue_id=f"conv-{number % 3}",
        category=category,
        question="Where?",
        gold="in Oslo",
        prediction="in Oslo" if right else "somewhere in the far north",
        retrieved=[{"entry_id": "e1", "source_turns": ["D1:1"], "score": 0.5}],
        used=["e1"],
        em=float(right),
        f1=f1,
        f1_official=f1,
        bleu1=0.9 * f1,
        latency={"search": 0.02 * slow, "answer": slow * (1 + number % 10 / 10)},
        tokens=[100, 8],
        prompt_hash="ab",
        groups=[groups[category]],
        sessions=sessions,
    )


def bench_run(
    folder,
    label,
    right=0.5,
    *,
    system="memory-r1",
    manage=None,
    answer=None,
    players=None,
    benchmark="locomo",
    judged=True,
    n=60,
    slow=1.0,
    curve=(),
    groups=CATEGORIES,
    without=(),
    **rest,
):
    """Write a finished run, whose share of right answers is about `right`; returns its folder."""
    folder.mkdir(parents=True)
    random.seed(f"{label} {right}")
    predictions = [
        prediction(i, random.random() < right, slow=slow, groups=groups) for i in range(n)
    ]
    verdicts = {p.key: bool(p.em) or i % 3 == 0 for i, p in enumerate(predictions)}
    seen = verdicts if judged else None
    scores = {
        "benchmark": benchmark,
        "label": label,
        "system": system,
        "players": players or {"extract": "base", "manage": "base", "answer": "base"},
        "trained": {"manage": manage, "answer": answer},
        "size": None,
        "distillation": system not in ("no-distillation", "rerank", "rag-bm25", "full-context"),
        "split": "test",
        "protocol": "stream" if curve else "build",
        "n": n,
        "overall": score.measures(predictions, seen)
        | {"intervals": score.intervals(predictions, seen, resamples=500)},
        "groups": score.groups(predictions, seen),
        "curve": list(curve),
        "latency": score.percentiles(
            {"manager": [2.0 * slow, 2.5 * slow], **score.latencies(predictions)}
        ),
        "judge": {**JUDGE, "unscored": 0.0} if judged else None,
        "batch": 1,
        "data": f"{benchmark}.json",
        "data_sha256": f"{benchmark}-sha",
        "seed": None,
        "version": "0.1.0",
    } | rest
    for name in without:
        del scores[name]
    (folder / "scores.json").write_text(json.dumps(scores), "utf-8")
    config = {"benchmark": benchmark, "data_sha256": f"{benchmark}-sha", "batch": 1}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    lines(folder / "predictions.jsonl", [p.as_json() for p in predictions])
    if judged:
        label_of = {True: "CORRECT", False: "WRONG"}
        lines(
            folder / "judgements.jsonl",
            [
                {
                    "question_id": question,
                    "sessions": sessions,
                    "judge": JUDGE["name"],
                    "instruction_hash": JUDGE["prompt_hash"],
                    "verdict": label_of[right],
                }
                for (question, sessions), right in verdicts.items()
            ],
        )
    return folder


def training_run(folder, kind="manager", algorithm="grpo", steps=30, seed=0, start=0.2):
    """Write a training run whose reward rises; returns its folder."""
    folder.mkdir(parents=True)
    random.seed(f"{kind} {algorithm} {seed}")
    rows = [{"step": 0, "eval_reward_mean": start}]
    for step in range(1, steps + 1):
        rise = start + (0.9 - start) * step / steps
        rows.append({"step": step, "reward_mean": rise + random.uniform(-0.1, 0.1)})
        if step % 10 == 0:
            rows[-1]["eval_reward_mean"] = rise
    config = f'kind = "{kind}"\nmodel = "Qwen2.5-7B"\nseed = {seed}\nalgorithm = "{algorithm}"\n'
    (folder / "config.toml").write_text(config, "utf-8")
    (folder / "run.json").write_text(json.dumps({"seed": seed, "memory_r1": "0.1.0"}), "utf-8")
    lines(folder / "metrics.jsonl", rows)
    return folder


def curve(right, memories):
    return [
        {
            "sessions": sessions,
            "n": 10 * sessions,
            "f1": right - sessions,
            "em": right - 2 * sessions,
            "judge": right,
            "kept": 100 - 2.0 * sessions,
            "memories": memories * sessions,
        }
        for sessions in (5, 10, 15, 20)
    ]


def everything(root):
    """Runs that fill every figure; returns their folders."""
    both = {"manage": trained(), "answer": trained()}
    ours = {"extract": "Qwen2.5-7B", "manage": "Qwen2.5-7B", "answer": "Qwen2.5-7B"}
    strong = {**ours, "manage": "openai:gpt-4o-mini"}
    made = [
        bench_run(root / "bm25", "RAG BM25", 0.3, system="rag-bm25", slow=0.6),
        bench_run(root / "full-context", "full context", 0.45, system="full-context", slow=6),
        bench_run(root / "base", "Memory-R1 base", 0.35, players=ours, size=7.0),
        bench_run(root / "base3", "Memory-R1 base, 3B", 0.25, size=3.0, slow=0.5),
        bench_run(root / "grpo", "Memory-R1 GRPO", 0.75, players=ours, size=7.0, slow=0.4, **both),
        bench_run(
            root / "grpo-1", "Memory-R1 GRPO", 0.7, players=ours, size=7.0, slow=0.4,
            manage=trained(seed=1), answer=trained(seed=1),
        ),
        bench_run(root / "grpo3", "Memory-R1 GRPO, 3B", 0.6, players=ours, size=3.0,
            manage=trained(model="Qwen2.5-3B"), answer=trained(model="Qwen2.5-3B"),
        ),
        bench_run(
            root / "ppo", "Memory-R1 PPO", 0.65, players=ours, size=7.0,
            manage=trained("ppo"), answer=trained("ppo"),
        ),
        bench_run(root / "no-rl-manager", "base manager", 0.6, players=ours, answer=trained()),
        bench_run(root / "no-rl-answer", "base answerer", 0.55, players=ours, manage=trained()),
        bench_run(
            root / "no-distillation", "without distillation", 0.65,
            system="no-distillation", players=ours, **both,
        ),
        bench_run(root / "rerank", "reranker", 0.5, system="rerank?keep=10", players=ours, slow=2),
        bench_run(
            root / "judged", "rewarded by a judge", 0.55, players=ours,
            manage=trained(), answer=trained(reward="judge"),
        ),
        bench_run(root / "strong-base", "strong manager", 0.5, players=strong),
        bench_run(
            root / "strong", "strong manager, GRPO", 0.9, players=strong, answer=trained()
        ),
    ]  # fmt: skip
    for benchmark in ("longmemeval", "msc", "world"):
        for label, right in (("Memory-R1 base", 0.4), ("Memory-R1 GRPO", 0.7)):
            groups = {4: {"msc": "DMR", "world": "kind: count"}.get(benchmark, "multi-session")}
            made.append(
                bench_run(
                    root / f"{benchmark}-{label[10:]}", label, right, benchmark=benchmark,
                    groups=groups, **(both if "GRPO" in label else {}),
                )
            )  # fmt: skip
    # Under one label on all benchmarks; locomo's own have two seeds, which tells them apart.
    made.append(bench_run(root / "stream-base", "Memory-R1 base", 0.4, curve=curve(60.0, 9.0)))
    made.append(bench_run(root / "stream", "Memory-R1 GRPO", 0.7, curve=curve(80.0, 5.5), **both))
    for kind in ("manager", "answer"):
        for algorithm in ("grpo", "ppo"):
            for seed in (0, 1):
                folder = root / f"{kind}-{algorithm}-{seed}"
                made.append(training_run(folder, kind, algorithm, seed=seed))
    return made


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

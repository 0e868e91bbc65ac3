"""What was played -> scores.json: the numbers of every table and figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import memory_r1
from memory_r1.bank import Bank
from memory_r1.bench import score
from memory_r1.bench.calls import Spent
from memory_r1.bench.judge import Judged
from memory_r1.bench.plan import Plan
from memory_r1.bench.provenance import size_of, trained
from memory_r1.bench.score import Prediction, Verdicts
from memory_r1.bench.systems import System
from memory_r1.data import Dialogue
from memory_r1.types import JournalRow


@dataclass
class Built:
    """What was made of the dialogues, summed up."""

    operations: Counter[str] = field(default_factory=Counter)
    by_phenomenon: dict[str, Counter[str]] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)
    """World files: per phenomenon, whether each labelled turn got exactly its right operation."""
    named: dict[str, list[bool]] = field(default_factory=dict)
    """World files: per phenomenon, whether each UPDATE and DELETE named the right entry."""
    deferred: int = 0
    entries: list[int] = field(default_factory=list)
    """Of each bank, at its end."""


def tally(dialogue: Dialogue, bank: Bank, built: Built) -> None:
    """Count what was done to each turn of a finished bank."""
    store = bank.store
    messages = store.messages(bank.owner)
    turn_of = {message.id: message.turn.id for message in messages}
    built.deferred += sum(message.state == "deferred" for message in messages)
    built.entries.append(len(bank.index))
    rows_of: dict[str, list[JournalRow]] = {}
    for row in store.journal(bank.owner):
        built.operations[row.op] += 1
        rows_of.setdefault(turn_of.get(row.turn_id, ""), []).append(row)
    events = dialogue.meta.get("world", {}).get("events", ())
    told = score.sources_of_targets(events)
    for event, sources in zip(events, told, strict=True):
        rows = rows_of.get(event["dia_id"], [])
        ops = [row.op for row in rows]
        phenomenon = event["phenomenon"]
        built.by_phenomenon.setdefault(phenomenon, Counter()).update(ops)
        built.right.setdefault(phenomenon, []).append(ops == [event["op"]])
        built.named.setdefault(phenomenon, []).extend(
            score.names_target(row.before, event["target"], sources)
            for row in rows
            if row.op in ("UPDATE", "DELETE") and row.before is not None
        )


def scores(
    *,
    plan: Plan,
    system: System,
    predictions: Mapping[tuple[str, int], Prediction],
    turns: Mapping[tuple[str, str], Spent],
    built: Built,
    asked: Sequence[tuple[str, int]],
    dollars: Callable[[int, int], float] | None,
    judged: Judged | None,
) -> dict[str, Any]:
    """The content of scores.json; shares are 0..100, seconds are seconds.

    asked: which predictions count (a run with a smaller --limit may have more). Streaming, all
    but the curve is about the last time each question was asked.
    """
    every = [predictions[key] for key in asked]
    last = score.last_asked(every)
    found = judged.verdicts if judged else None
    mine = [spent for (dialogue, _), spent in turns.items() if dialogue in _dialogues(every)]
    answering = plan.answer or plan.model or plan.system
    return {
        "benchmark": plan.benchmark,
        "label": plan.label or _label(plan),
        "system": plan.system,
        "players": system.players,
        "built_by": system.built_by,
        "trained": {
            "manage": trained(plan.manager or plan.model or plan.system, "manage"),
            "answer": trained(answering, "answer"),
        },
        "size": size_of(answering),
        "distillation": system.distillation,
        "split": plan.split,
        "protocol": plan.protocol,
        "n": len(last),
        "overall": score.measures(last, found)
        | {"intervals": score.intervals(last, found, seed=plan.seed or 0)},
        "groups": score.groups(last, found),
        "curve": _curve(every, plan.every, found) if plan.protocol == "stream" else [],
        "latency": score.percentiles(
            {"manager": [spent.seconds for spent in mine], **score.latencies(last)}
        ),
        "bank": _bank(built),
        "cost": _cost(every, mine, dollars),
        "judge": judged.as_json() if judged else None,
        "shown": {"k": system.shown, "per_speaker": plan.per_speaker},
        "batch": plan.batch,
        "data": plan.data.name,
        "data_sha256": plan.config["data_sha256"],
        "seed": plan.seed,
        "version": memory_r1.__version__,
    }


def _curve(
    predictions: Sequence[Prediction], every: int, found: Verdicts | None
) -> list[dict[str, Any]]:
    """How good the answers are after so many sessions, over the dialogues that have as many.

    "memories": entries of a bank then. "kept": of the questions that were answered right (EM) when
    they were first asked, and are asked again here, the share that is still right: what is not is
    forgotten, or crowded out.
    """
    first: dict[str, Prediction] = {}
    at: dict[int, list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda p: p.sessions):
        first.setdefault(prediction.question_id, prediction)
        at.setdefault(prediction.sessions, []).append(prediction)
    points = []
    for sessions in sorted(number for number in at if number % every == 0):
        now = at[sessions]
        again = [p for p in now if first[p.question_id].em == 1 and first[p.question_id] is not p]
        sizes = {p.dialogue_id: p.memories for p in now}
        points.append(
            {
                "sessions": sessions,
                "dialogues": len(sizes),
                "memories": round(sum(sizes.values()) / len(sizes), 1),
                "kept": score.percent([p.em for p in again]),
                **score.measures(now, found),
            }
        )
    return points


def _dialogues(predictions: Sequence[Prediction]) -> set[str]:
    return {prediction.dialogue_id for prediction in predictions}


def _label(plan: Plan) -> str:
    """What a row is called: the system, and the models given beside it."""
    named = {"": plan.model, "manager ": plan.manager, "answer ": plan.answer}
    given = [f"{role}{name}" for role, name in named.items() if name]
    return f"{plan.system} ({', '.join(given)})" if given else plan.system


def _bank(built: Built) -> dict[str, Any]:
    return {
        "entries": round(sum(built.entries) / max(1, len(built.entries)), 1),
        "deferred_turns": built.deferred,
        "operations": dict(sorted(built.operations.items())),
        "right_entry": score.percent([right for of in built.named.values() for right in of]),
        "by_phenomenon": {
            name: {
                "n": len(built.right[name]),
                "right": score.percent(built.right[name]),
                "right_entry": score.percent(built.named[name]),
                "operations": dict(sorted(built.by_phenomenon[name].items())),
            }
            for name in sorted(built.right)
        },
    }


def _cost(
    predictions: Sequence[Prediction],
    turns: Sequence[Spent],
    dollars: Callable[[int, int], float] | None,
) -> dict[str, Any]:
    """What the run takes when nothing is cached; the judge is not in it."""
    total = sum((Spent(p.calls, *p.tokens) for p in predictions), sum(turns, Spent()))
    cost = dollars(total.prompt_tokens, total.completion_tokens) if dollars else None
    return {
        "calls": total.calls,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "dollars": None if cost is None else round(cost, 4),
    }

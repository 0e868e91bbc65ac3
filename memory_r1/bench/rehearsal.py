"""A run without its models: how many calls and tokens it will need.

The real code plays a few dialogues with stand-ins that reply in the right form, so that every
prompt is the one a model would be shown, as long as the memories are of this length.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memory_r1.bench.plan import Plan
from memory_r1.bench.run import Prices, run
from memory_r1.bench.survey import survey
from memory_r1.bench.systems import System
from memory_r1.data import jsonl
from memory_r1.embed import Embedder
from memory_r1.errors import ConfigError
from memory_r1.llm import Agents, Role
from memory_r1.llm.stand_in import FACT_WORDS, PER_TOKEN, Needed, StandIn

DIALOGUES = 3
"""Played; what the others need is estimated from these."""
_ROLES: tuple[Role, ...] = ("extract", "manage", "answer")


def rehearse(
    plan: Plan,
    system: System,
    *,
    embedder: Embedder | None = None,
    prices: Prices | None = None,
    judged: bool = False,
) -> dict[str, Any]:
    """What the plan will need: turns, questions, and calls and tokens of each role.

    Raises ConfigError for a system whose package asks its models itself, and what `run` raises.
    """
    if not system.rehearsable:
        raise ConfigError(
            f"{system.name} asks its models itself: what it needs is only known when it has run; "
            "try --limit with a few questions"
        )
    found = survey(plan)
    stand_ins = {
        role: StandIn(role, llm)
        for role in _ROLES
        if (llm := getattr(system.agents, role)) is not None
    }
    playing = replace(system, agents=Agents(**stand_ins))
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "sample.jsonl")
        chosen = [d for _, d in zip(range(DIALOGUES), found.dialogues(), strict=False)]
        kept = [replace(d, questions=tuple(found.questions[d.id])) for d in chosen]
        sample.write_text(jsonl.dump(kept), encoding="utf-8", newline="\n")
        part = replace(
            plan, data=sample, out=Path(folder, "out"), limit=None, seed=None, jobs=1, split="all"
        )
        run(part, playing, embedder=embedder)
        played = survey(part)
    turns, asked = found.turns / played.turns, found.asked / played.asked
    needed: dict[str, dict[str, int]] = {}
    for role, stand_in in stand_ins.items():
        scale = asked if role == "answer" else turns
        counted = asdict(stand_in.needed)
        needed[role] = {name: round(scale * value) for name, value in counted.items()}
    if judged:
        # An instruction and a question with its answers: about 400 tokens, a verdict of 10.
        needed["judge"] = _judging(found.asked)
    total = {name: sum(row[name] for row in needed.values()) for name in asdict(Needed())}
    dollars = prices.of(total["prompt_tokens"], total["completion_tokens"]) if prices else None
    return {
        "benchmark": plan.benchmark,
        "system": plan.system,
        "players": system.players,
        "dialogues": len(found.questions),
        "turns": found.turns,
        "questions": found.asked,
        "needed": needed,
        "total": total,
        "dollars": None if dollars is None else round(dollars, 4),
        "assumes": f"one fact of at most {FACT_WORDS} words per turn, {PER_TOKEN} characters per "
        f"token, {len(chosen)} of {len(found.questions)} dialogues played; nothing cached",
    }


def _judging(questions: int) -> dict[str, int]:
    return {
        "calls": questions,
        "prompt_tokens": 400 * questions,
        "completion_tokens": 10 * questions,
    }

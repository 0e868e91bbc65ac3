"""run file -> what a LoGo-GRPO run practises on: courses of a growing number of sessions."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from memory_r1.config import Settings
from memory_r1.data import Dialogue, recognise
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError, DataError
from memory_r1.llm.local import LocalLLM
from memory_r1.llm.open import BUNDLED, ROLES_FILE, open_agents
from memory_r1.train.adapters import open_policy
from memory_r1.train.construct import read_facts
from memory_r1.train.credit import words
from memory_r1.train.players import judge_of, kept, partners, patient
from memory_r1.train.policy import Policy
from memory_r1.train.processes import present
from memory_r1.train.remote import RemoteSampler
from memory_r1.train.rewards import open_reward
from memory_r1.train.rollout import Rollout
from memory_r1.train.runfile import Logo, Run
from memory_r1.train.sessions import (
    Course,
    Play,
    Players,
    Size,
    Start,
    Verdict,
    course_of,
    final,
    judge_plays,
    play_sessions,
)
from memory_r1.train.stage import MODEL, dialogues_of, player_of


@dataclass
class LogoStage:
    """Extractor and Memory Manager in training, one policy; the Answer Agent frozen."""

    run: Run
    policy: Policy
    players: Players
    embedder: Embedder
    practice: Sequence[Dialogue]
    held_out: Sequence[Course]
    frozen_roles: Mapping[str, str]
    """Who plays the roles that aren't trained, for the run folder's agents.json."""
    sampled_tokens: int = 0
    sampler: RemoteSampler | None = None
    """Always None: LoGo-GRPO samples on this machine."""
    _courses: dict[int, list[Course]] = field(default_factory=dict)

    def sessions_at(self, step: int) -> int:
        """How many sessions of each dialogue are played at a step; 0: all."""
        return horizon(self.run.logo, step)

    def draw(self, step: int) -> list[Course]:
        """The courses of a step: passes over the practice, each in an order of its own."""
        sessions = self.sessions_at(step)
        if sessions not in self._courses:
            self._courses[sessions] = [course_of(d, sessions) for d in self.practice]
        n, per_step = len(self.practice), self.run.rollout.prompts
        chosen = []
        for i in range(step * per_step, (step + 1) * per_step):
            lap, place = divmod(i, n)
            order = list(range(n))
            random.Random(f"{self.run.seed}/lap {lap}").shuffle(order)
            chosen.append(self._courses[sessions][order[place]])
        return chosen

    def start(self, course: Course, name: str) -> Start:
        """From an empty bank through the whole course. name: decides which questions are drawn."""
        rng = random.Random(f"{self.run.seed}/{name}/{course.id}")
        asked = tuple(final(course, self.run.logo.final_questions, rng))
        return Start(course, course.empty(self.embedder), range(len(course.sessions)), asked)

    def play(self, starts: Sequence[Start], name: str) -> list[Play]:
        """Sampled rollouts. name: decides the draws, with the run's seed."""
        calls = iter(range(1_000_000))

        def sample_once(prompts: Sequence[Any]) -> Any:
            seed = random.Random(f"{self.run.seed}/{name}/{next(calls)}").randrange(2**62)
            return self.policy.generate(prompts, seed=seed)

        plays = play_sessions(starts, self.players, sample_once)
        self.sampled_tokens += sum(len(told.step.ids) for play in plays for told in play.told)
        return plays

    def evaluate(self) -> dict[str, float]:
        """Greedy play of the held-out courses."""
        starts = [self.start(course, "held out") for course in self.held_out]
        if not starts:
            return {}
        with self.policy.gathered():
            plays = play_sessions(starts, self.players, partial(self.policy.generate, seed=None))
            verdicts = judge_plays(plays, self.players)
        return {f"eval_{k}": v for k, v in measures(plays, verdicts).items() if k in EVALUATED}

    def save(self, out: Path) -> None:
        """The trained model and, beside it, who plays which role; all processes call it."""
        self.policy.save(out / MODEL)
        if not self.policy.processes.first:
            return
        frozen = {role: _portable(player, out) for role, player in self.frozen_roles.items()}
        text = json.dumps({"extract": MODEL, "manage": MODEL, **frozen}, indent=2, sort_keys=True)
        (out / ROLES_FILE).write_text(text + "\n", "utf-8")


EVALUATED = (
    *("reward_mean", "em", "f1", "format_valid", "infra_failures"),
    *(f"op_{op}" for op in ("add", "update", "delete", "noop")),
    *("bank_words", "bank_entries", "bank_share", "penalty"),
)
"""What is logged of held-out courses (names: runlog.METRICS)."""


def horizon(logo: Logo, step: int) -> int:
    """How many sessions of each dialogue a curriculum plays at a step; 0: all."""
    if not logo.curriculum:
        return 0
    passed, stage = 0, 0
    for steps in logo.stage_steps:
        passed += steps
        stage += step >= passed
    return logo.curriculum[stage]


def measures(plays: Sequence[Play], verdicts: Sequence[Verdict | None]) -> dict[str, float]:
    """The metrics of whole plays (names: runlog.METRICS)."""
    judged = [(p, v) for p, v in zip(plays, verdicts, strict=True) if v is not None]
    metrics = {"infra_failures": float(len(plays) - len(judged))}
    if judged:
        rewards = [verdict.reward for _, verdict in judged]
        mean = sum(rewards) / len(rewards)
        metrics["reward_mean"] = mean
        metrics["reward_std"] = (sum((x - mean) ** 2 for x in rewards) / len(rewards)) ** 0.5
        for name in ("em", "f1", "penalty"):
            metrics[name] = sum(getattr(verdict, name) for _, verdict in judged) / len(judged)
    steps = [told.step for play in plays for told in play.told]
    lengths = [len(step.ids) for step in steps]
    malformed = sum(play.episode.malformed for play in plays if play.episode is not None)
    metrics["format_valid"] = 1 - malformed / max(1, len(steps))
    metrics["response_length_mean"] = sum(lengths) / max(1, len(lengths))
    metrics["response_length_max"] = float(max(lengths, default=0))
    metrics["response_length_clip_ratio"] = sum(not s.finished for s in steps) / max(1, len(steps))
    ops = Counter(op for play in plays if play.episode for op in play.episode.operations)
    for op in ("ADD", "UPDATE", "DELETE", "NOOP"):
        metrics[f"op_{op.lower()}"] = ops[op] / max(1, ops.total())
    held = [[words(entry.text) for entry in play.banks[-1].entries()] for play in plays]
    said = [play.start.course.said(len(play.start.course.sessions)) for play in plays]
    n = max(1, len(plays))
    metrics["bank_words"] = sum(map(sum, held)) / n
    metrics["bank_entries"] = sum(map(len, held)) / n
    metrics["bank_share"] = sum(map(sum, held)) / max(1, sum(said))
    return metrics


def samples_of(plays: Sequence[Play], verdicts: Sequence[Verdict | None]) -> list[Rollout]:
    """One play of each course, as the run folder's samples are written from."""
    first: dict[str, Rollout] = {}
    for play, verdict in zip(plays, verdicts, strict=True):
        if play.episode is not None:
            steps = tuple(told.step for told in play.told if told.role == "manage")
            first.setdefault(play.start.course.id, Rollout(play.episode, steps, verdict))
    return list(first.values())


def prepare(run: Run, say: Callable[[str], None] = lambda text: None) -> LogoStage:
    """Load the models, read or make the dialogues; no bank is built before the first step.

    Raises ConfigError, DataError, and ModelUnavailable when a model can't be loaded.
    """
    start = open_agents(run.model).manage
    if not isinstance(start, LocalLLM):
        raise ConfigError(
            f"model {run.model!r} can't be trained here; expected a bundled model, a folder or a "
            "Hugging Face id"
        )
    frozen = partners(run)
    policy = open_policy(run, start, partners=frozen)
    frozen_roles = {"answer": player_of(run.answer or run.model, "answer")}
    if run.extract is not None:
        frozen_roles["extract"] = player_of(run.extract, "extract")
    settings = Settings(per_speaker=run.rollout.per_speaker)
    benchmark = "world" if run.data is None else recognise(Path(run.data.path)).name
    judges = kept(replace(frozen, judge=judge_of(run)))
    judges = present().split_agents(patient(judges, say))
    practice, held_out = dialogues_of(run)
    say(f"{len(practice)} dialogues of up to {max(len(d.sessions) for d in practice)} sessions")
    facts = None
    if run.extract is not None:
        facts = read_facts([*practice, *held_out], judges, settings)
    reward = open_reward(run.reward.name, benchmark)
    size = Size(run.logo.alpha, run.logo.penalty)
    players = Players(policy, judges, settings, reward, size, facts)
    practice = [dialogue for dialogue in practice if course_of(dialogue).questions]
    if not practice:
        raise DataError("no dialogue of the run holds a question to learn from")
    courses = [course for dialogue in held_out if (course := course_of(dialogue)).questions]
    return LogoStage(run, policy, players, open_embedder(), practice, courses, frozen_roles)


def _portable(player: str, out: Path) -> str:
    """A folder relative to the run's, so that both can be moved together; else the name."""
    if player in BUNDLED or not Path(player).is_dir():
        return player
    return os.path.relpath(Path(player).resolve(), out.resolve())

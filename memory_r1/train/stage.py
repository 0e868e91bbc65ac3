"""run file -> everything a training loop needs: policy, frozen agents, practice, evaluation."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from memory_r1.config import Settings
from memory_r1.data import Dialogue, Report, load, scored
from memory_r1.data.locomo import read
from memory_r1.data.world import WorldConfig, generate
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError, DataError
from memory_r1.llm import Agents, Role
from memory_r1.llm.local import LocalLLM
from memory_r1.llm.open import BUNDLED, ROLES_FILE, folder_of, open_agents
from memory_r1.train.episodes import (
    AnswerEpisode,
    Episode,
    ManagerEpisode,
    Situation,
    Task,
    corrections,
    situations,
    tasks,
    whole_dialogues,
)
from memory_r1.train.policy import Policy
from memory_r1.train.rollout import Rollout, play
from memory_r1.train.runfile import Run, World
from memory_r1.train.runlog import Sample

EVAL_SEED = 1_000_003
"""Added to a world's seed for its held-out dialogues; training seeds stay below."""
MODEL = "model"
"""The folder of a run's trained model, in Hugging Face form."""


@dataclass
class Stage:
    """One agent in training, its partners frozen."""

    run: Run
    policy: Policy
    frozen: Agents
    """The partners; the policy's own role in it is what it was before training."""
    settings: Settings
    practice: Sequence[Situation] | Sequence[Task]
    held_out: Sequence[Situation] | Sequence[Task]
    players: dict[str, str]
    """Who plays the frozen roles, for the run folder's agents.json."""
    seconds: dict[str, float] = field(default_factory=dict)

    def begin(self, start: Situation | Task) -> Episode:
        """A fresh episode."""
        if isinstance(start, Task):
            return AnswerEpisode(start, self.policy, self.settings)
        return ManagerEpisode(start, self.policy, self.frozen, self.settings)

    def draw(self, step: int) -> list[Situation] | list[Task]:
        """The starts of a step: passes over the practice, each in an order of its own."""
        n, per_step = len(self.practice), self.run.rollout.prompts
        chosen: list[Any] = []
        for i in range(step * per_step, (step + 1) * per_step):
            lap, place = divmod(i, n)
            order = self._order(lap)
            chosen.append(self.practice[order[place]])
        return chosen

    def _order(self, lap: int) -> list[int]:
        order = list(range(len(self.practice)))
        random.Random(f"{self.run.seed}/lap {lap}").shuffle(order)
        return order

    def rollouts(self, step: int) -> tuple[list[Rollout], list[int]]:
        """Sampled rollouts of a step and the number of each one's group."""
        group_size = self.run.rollout.group_size
        starts = self.draw(step)
        began = time.perf_counter()
        episodes = [self.begin(start) for start in starts for _ in range(group_size)]
        groups = [g for g in range(len(starts)) for _ in range(group_size)]
        calls = iter(range(1_000_000))

        def sample_once(prompts: Sequence[Any]) -> Any:
            seed = random.Random(f"{self.run.seed}/{step}/{next(calls)}").randrange(2**62)
            return self.policy.generate(prompts, seed=seed)

        played = play(episodes, sample_once, self.frozen)
        self.seconds["seconds_sample"] = time.perf_counter() - began
        return played, groups

    def evaluate(self) -> dict[str, float]:
        """Greedy play of the held-out episodes."""
        episodes = [self.begin(start) for start in self.held_out]
        if not episodes:
            return {}
        played = play(episodes, partial(self.policy.generate, seed=None), self.frozen)
        return {f"eval_{k}": v for k, v in describe(played).items() if k in _EVALUATED}

    def save(self, out: Path) -> None:
        """The trained model and, beside it, who plays which role."""
        self.policy.save(out / MODEL)
        mine: Role = "manage" if self.run.kind == "manager" else "answer"
        players = {
            role: _portable(player, out) for role, player in self.players.items() if role != mine
        }
        text = json.dumps({**players, mine: MODEL}, indent=2, sort_keys=True)
        (out / ROLES_FILE).write_text(text + "\n", "utf-8")


_EVALUATED = (
    "reward_mean",
    "em",
    "f1",
    "format_valid",
    "infra_failures",
    *(f"op_{o}" for o in ("add", "update", "delete", "noop")),
)


def describe(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The metrics of a batch of rollouts (names: runlog.METRICS)."""
    judged = [(r, r.outcome) for r in rollouts if r.outcome is not None]
    metrics = {"infra_failures": float(len(rollouts) - len(judged))}
    if judged:
        rewards = [outcome.reward for _, outcome in judged]
        mean = sum(rewards) / len(rewards)
        metrics["reward_mean"] = mean
        metrics["reward_std"] = (sum((x - mean) ** 2 for x in rewards) / len(rewards)) ** 0.5
        metrics["em"] = sum(outcome.em for _, outcome in judged) / len(judged)
        metrics["f1"] = sum(outcome.f1 for _, outcome in judged) / len(judged)
    lengths = [len(step.ids) for r in rollouts for step in r.steps]
    cut = [not step.finished for r in rollouts for step in r.steps]
    metrics["format_valid"] = 1 - sum(r.episode.malformed for r in rollouts) / max(1, len(lengths))
    metrics["response_length_mean"] = sum(lengths) / max(1, len(lengths))
    metrics["response_length_max"] = float(max(lengths, default=0))
    metrics["response_length_clip_ratio"] = sum(cut) / max(1, len(cut))
    operations = Counter(
        op for r in rollouts if isinstance(r.episode, ManagerEpisode) for op in r.episode.operations
    )
    for op in ("ADD", "UPDATE", "DELETE", "NOOP"):
        if operations:
            metrics[f"op_{op.lower()}"] = operations[op] / operations.total()
    return metrics


def samples(rollouts: Sequence[Rollout], most: int = 4) -> list[Sample]:
    """Some rollouts written out, the first of different groups."""
    seen: dict[str, Rollout] = {}
    for rollout in rollouts:
        seen.setdefault(rollout.episode.about, rollout)
    return [
        Sample(
            about,
            rollout.steps[-1].prompt if rollout.steps else "",
            rollout.steps[-1].text if rollout.steps else "",
            rollout.outcome.reward if rollout.outcome else None,
            dict(rollout.outcome.details) if rollout.outcome else {},
        )
        for about, rollout in list(seen.items())[:most]
    ]


def prepare(run: Run, say: Callable[[str], None] = lambda text: None) -> Stage:
    """Load the models, read or make the dialogues, build the banks.

    Raises ConfigError, DataError, and ModelUnavailable when a model can't be loaded.
    """
    base = open_agents(run.model)
    mine: Role = "manage" if run.kind == "manager" else "answer"
    start = getattr(base, mine)
    if not isinstance(start, LocalLLM):
        raise ConfigError(
            f"model {run.model!r} can't be trained here; expected a bundled model, a folder or a "
            "Hugging Face id"
        )
    # Updates of a usual size would round away in bfloat16.
    trained = start.copy(dtype="float32")
    if hasattr(trained.model, "peft_config"):
        raise ConfigError(
            f"model {run.model!r} is an adapter; expected full weights: merge it into its base"
        )
    policy = Policy(trained, temperature=run.rollout.temperature, max_tokens=run.rollout.max_tokens)
    players = {role: player_of(run.model, role) for role in ("extract", "manage", "answer")}
    if run.extract is not None:
        players["extract"] = player_of(run.extract, "extract")
    if run.manager is not None:
        players["manage"] = player_of(run.manager, "manage")
    if run.answer is not None:
        players["answer"] = player_of(run.answer, "answer")
    frozen = Agents(
        extract=open_agents(run.extract).extract if run.extract else base.extract,
        manage=open_agents(run.manager).manage if run.manager else base.manage,
        answer=open_agents(run.answer).answer if run.answer else base.answer,
    )
    settings = Settings()
    embedder = open_embedder()
    practised, held_out = dialogues_of(run)
    say(f"building banks from {len(practised)} dialogues")
    build = partial(_starts, run, frozen, embedder, settings)
    practice, tested = build(practised), build(held_out)
    if not practice:
        raise DataError("no dialogue of the run holds a question to learn from")
    picked = random.Random(f"{run.seed}/held out").sample(
        range(len(tested)), min(run.eval.questions, len(tested))
    )
    return Stage(
        run, policy, frozen, settings, practice, [tested[i] for i in sorted(picked)], players
    )


def _starts(
    run: Run,
    frozen: Agents,
    embedder: Embedder,
    settings: Settings,
    dialogues: Sequence[Dialogue],
) -> list[Any]:
    if run.kind == "answer":
        return tasks(dialogues, frozen, embedder, settings)
    if run.rollout.turns > 1:
        return whole_dialogues(dialogues, frozen, embedder, settings, turns=run.rollout.turns)
    practice = situations(
        dialogues,
        frozen,
        embedder,
        settings,
        questions=run.rollout.questions,
        seed=run.seed,
    )
    return practice + corrections(dialogues, embedder)


def dialogues_of(run: Run) -> tuple[list[Dialogue], list[Dialogue]]:
    """The dialogues to practise on and those held out, from [world] or [data]."""
    if run.data is not None:
        everything = load(run.data.path)
        practised = [d for d in everything if d.split == run.data.split]
        held_out = [d for d in everything if d.split == run.eval.split]
        if not practised:
            raise DataError(f"{run.data.path} has no dialogue in split {run.data.split!r}")
        return _scored_only(practised), _scored_only(held_out)
    assert run.world is not None
    tested = replace(run.world, words=run.eval.words, seed=run.world.seed + EVAL_SEED)
    return make_world(run.world), make_world(
        replace(tested, dialogues=max(4, run.eval.questions // 20))
    )


def _scored_only(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Without the adversarial questions, which the paper excludes."""
    return [replace(d, questions=tuple(scored([d]))) for d in dialogues]


def make_world(world: World) -> list[Dialogue]:
    """The dialogues of a [world] section."""
    config = WorldConfig.of(
        {
            **world.dials,
            "seed": world.seed,
            "dialogues": world.dialogues,
            "sessions": world.sessions,
            "words": world.words,
        }
    )
    return read(generate(config), "the world", Report())


def player_of(name: str, role: Role) -> str:
    """The model that plays a role: what `name` stands for, or whom its run folder names."""
    folder = folder_of(name)
    if not (folder / ROLES_FILE).is_file():
        return name
    player = str(json.loads((folder / ROLES_FILE).read_text("utf-8")).get(role, "rules"))
    inner = folder / player
    return str(inner) if inner.is_dir() else player


def _portable(player: str, out: Path) -> str:
    """A folder relative to the run's, so that both can be moved together; else the name."""
    if player in BUNDLED or not Path(player).is_dir():
        return player
    return os.path.relpath(Path(player).resolve(), out.resolve())

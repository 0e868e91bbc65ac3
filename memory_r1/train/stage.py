"""run file -> everything a training loop needs: policy, frozen agents, practice, evaluation."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from memory_r1.config import Settings
from memory_r1.data import Dialogue, Report, load, recognise, scored
from memory_r1.data.locomo import read
from memory_r1.data.world import WorldConfig, generate
from memory_r1.embed import open_embedder
from memory_r1.errors import ConfigError, DataError, ModelUnavailable
from memory_r1.llm import Agents, Role
from memory_r1.llm.local import LocalLLM
from memory_r1.llm.open import BUNDLED, ROLES_FILE, folder_of, open_agents
from memory_r1.train import observe
from memory_r1.train.adapters import open_policy
from memory_r1.train.construct import starts
from memory_r1.train.cost import announce
from memory_r1.train.episodes import (
    EXACT,
    AnswerEpisode,
    Episode,
    ManagerEpisode,
    Situation,
    Task,
)
from memory_r1.train.players import judge_of, kept, patient, teacher_of
from memory_r1.train.policy import Policy
from memory_r1.train.processes import present
from memory_r1.train.remote import RemoteSampler
from memory_r1.train.rewards import Reward, open_reward
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
    practice: Sequence[Situation | Task]
    held_out: Sequence[Situation | Task]
    players: dict[str, str]
    """Who plays the frozen roles, for the run folder's agents.json."""
    seconds: dict[str, float] = field(default_factory=dict)
    sampler: RemoteSampler | None = None
    """Samples the rollouts in the policy's stead ([sampler]); evaluation stays with the policy."""
    reward: Reward = EXACT
    """What an answer is worth."""
    teacher: Agents | None = None
    """Whom the policy imitates, in its roles, and the partners then; None: it learns by itself."""
    gathered: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within it each process plays at its own pace, whatever the weights are spread over."""

    def begin(self, start: Situation | Task) -> Episode:
        """A fresh episode."""
        if isinstance(start, Task):
            return AnswerEpisode(start, self.policy, self.settings, self.reward)
        return ManagerEpisode(start, self.policy, self.frozen, self.settings, self.reward)

    def draw(self, step: int) -> list[Situation | Task]:
        """The starts of a step: passes over the practice, each in an order of its own."""
        return [self.practice[place] for place in self._places(step)]

    def _places(self, step: int) -> list[int]:
        n, per_step = len(self.practice), self.run.rollout.prompts
        laps = (divmod(i, n) for i in range(step * per_step, (step + 1) * per_step))
        return [self._order(f"lap {lap}")[place] for lap, place in laps]

    def _order(self, name: str) -> list[int]:
        order = list(range(len(self.practice)))
        random.Random(f"{self.run.seed}/{name}").shuffle(order)
        return order

    def rollouts(self, step: int) -> tuple[list[Rollout], list[int]]:
        """Sampled rollouts of a step and the number of each one's group.

        Groups that tied are made up for by other episodes, in at most `rollout.resample` further
        draws. Raises ModelUnavailable when nothing that was sampled could be paid for.
        """
        settings, began = self.run.rollout, time.perf_counter()
        places = self._places(step)
        others = [i for i in self._order(f"resample {step}") if i not in set(places)]
        calls = iter(range(1_000_000))
        played: list[Rollout] = []
        groups: list[int] = []
        if self.sampler is not None:
            self.sampler.publish(step)
        for _ in range(settings.resample + 1):
            first = groups[-1] + 1 if groups else 0
            numbers = [first + i for i in range(len(places)) for _ in range(settings.group_size)]
            starts = [self.practice[place] for place in places for _ in range(settings.group_size)]
            played += self._sample([self.begin(start) for start in starts], step, calls, numbers)
            groups += numbers
            missing = settings.prompts - alive(played, groups)
            places, others = others[:missing], others[missing:]
            if not places:
                break
        if all(rollout.outcome is None and not rollout.lost for rollout in played):
            raise ModelUnavailable(
                f"no rollout of step {step + 1} could be paid for: the frozen Answer Agent or the "
                "judge can't be reached, or the judge gives no verdict. See that they reply, then "
                "go on with --resume"
            )
        self.seconds["seconds_sample"] = time.perf_counter() - began
        return played, groups

    def _sample(
        self, episodes: Sequence[Episode], step: int, calls: Iterator[int], groups: Sequence[int]
    ) -> list[Rollout]:
        """Episodes played to their ends. calls: numbers the calls of the step, for their seeds."""

        def sample_once(prompts: Sequence[Any]) -> Any:
            seed = random.Random(f"{self.run.seed}/{step}/{next(calls)}").randrange(2**62)
            return (self.sampler or self.policy).generate(prompts, seed=seed)

        with self.gathered():
            played = play(episodes, sample_once, self.frozen)
        rewards = [rollout.outcome.reward if rollout.outcome else None for rollout in played]
        present().check_same("rewards", rewards)
        return played if self.sampler is None else self.sampler.accept(played, groups)

    def evaluate(self) -> dict[str, float]:
        """Greedy play of the held-out episodes."""
        episodes = [self.begin(start) for start in self.held_out]
        if not episodes:
            return {}
        with self.gathered():
            played = play(episodes, partial(self.policy.generate, seed=None), self.frozen)
        metrics = {f"eval_{k}": v for k, v in describe(played).items() if k in _EVALUATED}
        answers = [r for r in played if isinstance(r.episode, AnswerEpisode)]
        if 0 < len(answers) < len(played):
            others = [r for r in played if not isinstance(r.episode, AnswerEpisode)]
            for role, of in (("manage", others), ("answer", answers)):
                metrics |= {f"eval_em/{role}": describe(of).get("em", float("nan"))}
        return metrics

    def save(self, out: Path) -> None:
        """The trained model and, beside it, who plays which role; all processes call it."""
        self.policy.save(out / MODEL)
        if not self.policy.processes.first:
            return
        players = {role: _portable(player, out) for role, player in self.players.items()}
        players |= dict.fromkeys(self.run.trains, MODEL)
        text = json.dumps(players, indent=2, sort_keys=True)
        (out / ROLES_FILE).write_text(text + "\n", "utf-8")


_EVALUATED = (
    "reward_mean",
    "em",
    "f1",
    "format_valid",
    "infra_failures",
    "evidence_kept",
    "unsupported_text",
    *(f"op_{o}" for o in ("add", "update", "delete", "noop")),
)


def alive(rollouts: Sequence[Rollout], groups: Sequence[int]) -> int:
    """How many groups have rollouts of different rewards; only those teach GRPO."""
    rewards: dict[int, set[float]] = {}
    for rollout, group in zip(rollouts, groups, strict=True):
        if rollout.outcome is not None:
            rewards.setdefault(group, set()).add(rollout.outcome.reward)
    return sum(len(of) > 1 for of in rewards.values())


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
    return metrics | observe.decisions(r.episode for r in rollouts)


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
            observe.told(rollout),
        )
        for about, rollout in list(seen.items())[:most]
    ]


def prepare(run: Run, say: Callable[[str], None] = lambda text: None) -> Stage:
    """Load the models, read or make the dialogues, build the banks.

    Raises ConfigError, DataError, and ModelUnavailable when a model can't be loaded.
    """
    base = open_agents(run.model)
    start = getattr(base, run.trains[0])
    if not isinstance(start, LocalLLM):
        raise ConfigError(
            f"model {run.model!r} can't be trained here; expected a bundled model, a folder or a "
            "Hugging Face id"
        )
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
    policy = open_policy(run, start, partners=frozen)
    benchmark = "world" if run.data is None else recognise(Path(run.data.path)).name
    reward = open_reward(run.reward.name, benchmark)
    frozen = kept(replace(frozen, judge=judge_of(run)))
    teacher = teacher_of(run, policy, frozen)
    settings = Settings(per_speaker=run.rollout.per_speaker)
    embedder = open_embedder()
    practised, held_out = dialogues_of(run)
    say(f"building banks from {len(practised)} dialogues")
    announce(run, teacher or frozen, embedder, settings, practised, say)
    frozen = present().split_agents(patient(frozen, say))
    teacher = None if teacher is None else present().split_agents(patient(teacher, say))
    practice = starts(run, teacher or frozen, embedder, settings, practised, practised=True)
    tested = starts(run, frozen, embedder, settings, held_out)
    if not practice:
        raise DataError("no dialogue of the run holds a question to learn from")
    picked = random.Random(f"{run.seed}/held out").sample(
        range(len(tested)), min(run.eval.questions, len(tested))
    )
    held = [tested[i] for i in sorted(picked)]
    stage = Stage(
        run,
        policy,
        frozen,
        settings,
        practice,
        held,
        players,
        reward=reward,
        teacher=teacher,
        gathered=policy.gathered,
    )
    return _fitting(stage, say)


def _fitting(stage: Stage, say: Callable[[str], None]) -> Stage:
    """Without the starts whose prompt is longer than the run allows."""
    limit = stage.run.rollout.prompt_tokens
    if limit is None:
        return stage

    def fits(start: Situation | Task) -> bool:
        episode = stage.begin(start)
        return episode.done or len(stage.policy.llm.encode(episode.prompt())) <= limit

    practice: list[Any] = [start for start in stage.practice if fits(start)]
    long = len(stage.practice) - len(practice)
    if long:
        say(f"{long} starts left out: prompts of more than {limit} tokens (rollout.prompt_tokens)")
    if not practice:
        raise DataError(
            f"all {long} prompts have more than {limit} tokens; raise rollout.prompt_tokens"
        )
    return replace(stage, practice=practice)


def dialogues_of(run: Run) -> tuple[list[Dialogue], list[Dialogue]]:
    """The dialogues to practise on and those held out, from [world] or [data]."""
    if run.data is not None:
        everything = load(run.data.path)
        practised = [d for d in everything if d.split == run.data.split]
        held_out = [d for d in everything if d.split == run.eval.split]
        if not practised:
            raise DataError(f"{run.data.path} has no dialogue in split {run.data.split!r}")
        _apart(practised, held_out)
        return _scored_only(practised), _scored_only(held_out)
    assert run.world is not None
    tested = replace(run.world, words=run.eval.words, seed=run.world.seed + EVAL_SEED)
    return make_world(run.world), make_world(
        replace(tested, dialogues=max(4, run.eval.questions // 20))
    )


def _apart(practised: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> None:
    """Refuse a dialogue that stands in both parts under two names: DataError."""
    trained_on = {tuple(t.text for t in d.turns): d.id for d in practised if d.turns}
    for dialogue in held_out:
        if same := trained_on.get(tuple(turn.text for turn in dialogue.turns)):
            raise DataError(
                f"dialogue {dialogue.id} is held out and says what {same} says, which is trained "
                "on: an evaluation on it would say nothing. Take one of them out of the file"
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

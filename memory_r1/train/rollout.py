"""episodes -> rollouts: play them in batches and have them judged (no torch here)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_r1.errors import ModelUnavailable
from memory_r1.llm import Agents, Conversation, drive
from memory_r1.train.episodes import Episode, Outcome
from memory_r1.types import Completion, Prompt


@dataclass(frozen=True)
class Step:
    """One prompt and one completion as tokens: what went in and came out, never re-encoded."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """The end token included, where the completion was finished."""
    logps: tuple[float, ...]
    """Log-probability of each token under the policy that sampled it, at its temperature."""
    text: str
    prompt: str
    finished: bool


@dataclass(frozen=True)
class Rollout:
    """A played episode."""

    episode: Episode
    steps: tuple[Step, ...]
    outcome: Outcome | None
    """None: the sampler or the judge could not be reached. Never trained on, and counted."""
    lost: bool = False
    """It was the sampler: the episode ended before its end."""


Generate = Callable[[Sequence[Prompt]], Sequence[Step | None]]
"""None: that prompt could not be completed."""


def play(episodes: Sequence[Episode], generate: Generate, judges: Agents) -> list[Rollout]:
    """Play every episode to its end, with one batched `generate` per step, then judge them."""
    steps: list[list[Step]] = [[] for _ in episodes]
    lost: set[int] = set()
    while live := [i for i, e in enumerate(episodes) if i not in lost and not e.done]:
        made = generate([episodes[i].prompt() for i in live])
        for i, step in zip(live, made, strict=True):
            if step is None:
                lost.add(i)
                continue
            steps[i].append(step)
            tokens = (len(step.prompt_ids), len(step.ids))
            episodes[i].step(Completion(step.text, *tokens, finished=step.finished))
    outcomes = judge([e for i, e in enumerate(episodes) if i not in lost], judges)
    return [
        Rollout(episode, tuple(of), None if i in lost else outcomes[episode.key], i in lost)
        for i, (episode, of) in enumerate(zip(episodes, steps, strict=True))
    ]


def judge(episodes: Sequence[Episode], judges: Agents) -> dict[tuple[object, ...], Outcome | None]:
    """The outcome of each distinct end, each judged once.

    A wrong answer scores 0; an unreachable judge gives None, which is not a score.
    """
    distinct = {episode.key: episode for episode in episodes}

    def verdict(episode: Episode) -> Conversation[Outcome | None]:
        try:
            return (yield from episode.judge())
        except ModelUnavailable:
            return None

    found = drive([verdict(episode) for episode in distinct.values()], judges)
    # One prompt that is too long fails its whole batch: the others are asked again, alone.
    again = [
        outcome if outcome is not None else drive([verdict(episode)], judges)[0]
        for outcome, episode in zip(found, distinct.values(), strict=True)
    ]
    return dict(zip(distinct, again, strict=True))

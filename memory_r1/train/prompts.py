"""run file + its data -> how long prompts will be, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from memory_r1.config import Settings
from memory_r1.embed import open_embedder
from memory_r1.llm.stand_in import PER_TOKEN
from memory_r1.train.cost import plan, rehearsing
from memory_r1.train.episodes import AnswerEpisode, ManagerEpisode, Situation, Task
from memory_r1.train.players import partners
from memory_r1.train.rewards import open_reward
from memory_r1.train.runfile import Run

LOOKED_AT = 48
"""Starts whose prompts are made."""


class Lengths(NamedTuple):
    """Tokens of prompts, estimated from their characters."""

    mean: int
    longest: int
    starts: int
    """What there is to practise on."""


def prompt_lengths(run: Run) -> Lengths | None:
    """Of the first prompts of a run's episodes, on banks that stand-ins made of its real data.

    None where it has no episodes to look at. Raises DataError for data that can't be read.
    """
    from memory_r1.train.stage import dialogues_of

    frozen = partners(run)
    settings = Settings(per_speaker=run.rollout.per_speaker)
    practised, _ = dialogues_of(run)
    _, found = plan(run, frozen, open_embedder(), settings, practised, practised=True)
    chosen = random.Random(0).sample(found, min(LOOKED_AT, len(found)))
    sizes = _sizes(run, chosen, settings)
    return Lengths(round(sum(sizes) / len(sizes)), max(sizes), len(found)) if sizes else None


def _sizes(run: Run, starts: Sequence[Situation | Task], settings: Settings) -> list[int]:
    stand_ins, reward = rehearsing(partners(run)), open_reward(run.reward.name)
    sizes = []
    for start in starts:
        episode: AnswerEpisode | ManagerEpisode
        if isinstance(start, Task):
            assert stand_ins.answer is not None
            episode = AnswerEpisode(start, stand_ins.answer, settings, reward)
        else:
            assert stand_ins.manage is not None
            episode = ManagerEpisode(start, stand_ins.manage, stand_ins, settings, reward)
        if not episode.done:
            sizes.append(len(episode.prompt().text) // PER_TOKEN + 1)
    return sizes

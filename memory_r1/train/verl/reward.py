"""a sampled reply -> its reward: the function verl calls for one decision per sample (level a).

The reply is played by the episode that trains on one machine, so parser, bank, retrieval and the
frozen Answer Agent are the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from memory_r1.llm import Agents, drive
from memory_r1.llm.open import open_agents
from memory_r1.train.episodes import Episode, Outcome
from memory_r1.train.verl.samples import begin_row
from memory_r1.types import Completion


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    *,
    answerer: str | None = None,
    judge: str | None = None,
    **_: object,
) -> dict[str, float]:
    """The reward of one reply, as `score`, and what else is worth a metric.

    answerer, judge: who plays the frozen Answer Agent and who grades, names that `open_agents`
    knows. A malformed reply leaves the bank as it is (or the answer empty) and the outcome decides.
    One of them who can't be reached raises ModelUnavailable: verl then replaces the group, and
    nothing is learned from it. Raises DataError for a row that isn't ours.
    """
    frozen = frozen_agents(answerer, judge)
    episode = begin_row(extra_info, frozen)
    # Serving asks for a repair of a malformed reply. A sample is one reply: the same again ends it.
    while not episode.done:
        episode.step(Completion(solution_str))
    return scores(episode, drive([episode.judge()], frozen)[0])


@cache
def frozen_agents(answerer: str | None, judge: str | None = None) -> Agents:
    """The frozen partners by name, opened once per process."""
    return Agents(answer=open_agents(answerer).answer, judge=open_agents(judge).answer)


def scores(episode: Episode, outcome: Outcome) -> dict[str, float]:
    """An outcome as verl logs it: `score` is the reward."""
    return {
        "score": outcome.reward,
        "em": outcome.em,
        "f1": outcome.f1,
        "malformed": float(episode.malformed > 0),
    }

"""verl's synchronous trainer for episodes of several prompts (level b), as "memory_r1".

verl's mini-batches count rows, and here every model call is a row: episodes of five decisions
would be five optimizer steps in place of one. This trainer makes as many as the run file says.
"""

from __future__ import annotations

import math
from typing import Any

from omegaconf import open_dict  # type: ignore[import-not-found]
from verl.trainer.ppo.v1.trainer_base import register_trainer  # type: ignore[import-not-found]
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # type: ignore[import-not-found]


def prompts_per_update(rows: int, *, per_prompt: int, mini: int, prompts: int) -> int:
    """The `ppo_mini_batch_size` (verl multiplies it by the group size) that keeps the updates.

    rows:        of the batch, padding included
    per_prompt:  rollouts of a prompt
    mini:        the setting, in prompts
    prompts:     of a step
    """
    return rows // (per_prompt * (prompts // mini))


@register_trainer("memory_r1")
class EpisodeTrainer(PPOTrainerSync):  # type: ignore[misc]
    """PPOTrainerSync with a number of updates that doesn't depend on the episodes' length."""

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        # verl fills up with rows that carry no loss; whole steps can be cut into any mini-batches.
        step = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        return math.lcm(super()._get_required_batch_multiple(dp_size), step)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        with _Mini(self.config, self.config.actor_rollout_ref.actor, len(batch)):
            return super()._update_actor(batch, metrics)

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        with _Mini(self.config, self.config.critic, len(batch)):
            return super()._update_critic(batch, metrics)


class _Mini:
    """The mini-batch size of a section, for one update, as `prompts_per_update` says."""

    def __init__(self, config: Any, section: Any, rows: int) -> None:
        self._section, self._set = section, int(section.ppo_mini_batch_size)
        self._now = prompts_per_update(
            rows,
            per_prompt=config.actor_rollout_ref.rollout.n,
            mini=self._set,
            prompts=config.data.train_batch_size,
        )

    def __enter__(self) -> None:
        self._write(self._now)

    def __exit__(self, *_: object) -> None:
        self._write(self._set)

    def _write(self, size: int) -> None:
        with open_dict(self._section):
            self._section.ppo_mini_batch_size = size

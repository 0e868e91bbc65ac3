"""`python -m memory_r1.train.verl.check NAME=VALUE ...`: would verl take these settings as meant?

verl ignores a reward function under an old name and then scores with its own rules, so what counts
is asked of verl itself. Needs verl 0.9.1 and no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from memory_r1.errors import ConfigError
from memory_r1.train.verl import reward

VERSION = "0.9.1"


def check(overrides: Sequence[str]) -> Any:
    """Compose and validate as verl's own `main_ppo` does; returns verl's configuration.

    ConfigError when the reward that verl loads is not ours or the trainer is unknown to it;
    what verl refuses comes as verl raises it.
    """
    import verl  # type: ignore[import-not-found]
    from hydra import compose, initialize_config_module  # type: ignore[import-not-found]
    from verl.trainer.ppo.reward import get_custom_reward_fn  # type: ignore[import-not-found]
    from verl.trainer.ppo.utils import (  # type: ignore[import-not-found]
        need_critic,
        need_reference_policy,
    )
    from verl.trainer.ppo.v1 import get_trainer_cls  # type: ignore[import-not-found]
    from verl.utils.config import validate_config  # type: ignore[import-not-found]

    if verl.__version__ != VERSION:
        raise ConfigError(f"expected verl {VERSION}, got {verl.__version__}; names change in verl")
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", list(overrides))
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    loaded = get_custom_reward_fn(config)
    function = loaded.args[0] if loaded is not None else None
    if getattr(function, "__module__", None) != reward.__name__:
        raise ConfigError(
            f"expected verl to load compute_score of {reward.__name__}, got {function!r}; "
            "check reward.custom_reward_function.path and .name"
        )
    try:
        get_trainer_cls(config.trainer.v1.trainer_mode)
    except ValueError as error:
        raise ConfigError(f"{error} Is VERL_USE_EXTERNAL_MODULES set?") from error
    return config


if __name__ == "__main__":
    check(sys.argv[1:])

"""run file -> verl's settings, by verl's names: one Hydra override per line (no verl here).

Written for verl 0.9.1; `check.py` composes and validates them where verl is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from memory_r1.errors import ConfigError
from memory_r1.llm.open import BUNDLED
from memory_r1.train.runfile import Averaging, Grpo, Ppo, Run
from memory_r1.train.stage import player_of

Value = str | bool | int | float | None
TRAINER = "memory_r1.train.verl.trainer"
"""The module that verl imports for its trainer "memory_r1" (level b)."""
REWARD = "pkg://memory_r1.train.verl.reward"
AVERAGES: Mapping[Averaging, str] = {
    "token": "token-mean",
    "sequence": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}


def overrides(run: Run) -> list[str]:
    """What to tell verl, as "name=value" in Hydra's grammar; paths of files are not among it.

    Raises ConfigError for what verl can't do.
    """
    if run.stages is not None:
        raise ConfigError("[stages] is not written for verl; play a run file per stage")
    if run.rollout.resample:
        raise ConfigError(
            f"rollout.resample is {run.rollout.resample}, which is not written for verl; verl has "
            "algorithm.filter_groups, which [verl.overrides] may set"
        )
    actor = run.grpo if run.algorithm == "grpo" else run.ppo
    settings = _data(run) | _rollout(run) | _actor(run, actor) | _trainer(run)
    match run.algorithm:
        case "grpo":
            settings |= _grpo(run)
        case "ppo":
            settings |= _ppo(run)
        case other:
            raise ConfigError(
                f"algorithm {other!r} is not written for verl; expected 'grpo' or 'ppo', or leave "
                'out engine = "verl"'
            )
    settings |= _reward(run) | _level(run)
    settings |= {name: _Raw(value) for name, value in run.verl.overrides.items()}
    return [f"{name}={_hydra(value)}" for name, value in settings.items()]


def model_of(run: Run) -> str:
    """The model that training starts from: a Hugging Face id or the full path of a folder.

    ConfigError for one that is no chat model with weights.
    """
    model = player_of(run.model, "manage" if run.kind == "manager" else "answer")
    if model in ("rules", "new") or model.startswith(("openai:", "http://", "https://")):
        raise ConfigError(f"model {model!r} has no weights that verl could train")
    if model in BUNDLED or run.model in BUNDLED:
        raise ConfigError(
            f"model {run.model!r} is no chat model, which the prompts for verl are written for; "
            "name one of Hugging Face, such as Qwen/Qwen2.5-3B-Instruct"
        )
    return _anywhere(model)


def _anywhere(name: str) -> str:
    """A folder by its full path: workers run elsewhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _data(run: Run) -> dict[str, Value]:
    return {
        "data.train_batch_size": run.rollout.prompts,
        "data.max_prompt_length": run.verl.prompt_tokens,
        "data.max_response_length": run.rollout.max_tokens,
        # What is too long would lose its beginning, the instructions, without a word.
        "data.filter_overlong_prompts": True,
        "data.truncation": "error",
        "data.seed": run.seed,
    }


def _rollout(run: Run) -> dict[str, Value]:
    rollout = "actor_rollout_ref.rollout"
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": run.rollout.group_size,
        f"{rollout}.temperature": run.rollout.temperature,
        f"{rollout}.seed": run.seed,
        f"{rollout}.gpu_memory_utilization": run.verl.memory,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": run.verl.micro_batch,
        f"{rollout}.val_kwargs.do_sample": False,
    }


def _actor(run: Run, settings: Grpo | Ppo) -> dict[str, Value]:
    actor, optimizer = "actor_rollout_ref.actor", run.optimizer
    if run.rollout.prompts % settings.minibatches:
        raise ConfigError(
            f"{run.algorithm}.minibatches is {settings.minibatches}; verl needs a number that "
            f"divides rollout.prompts, {run.rollout.prompts}"
        )
    clip_high = settings.clip_high if isinstance(settings, Grpo) else None
    named: dict[str, Value] = {
        "actor_rollout_ref.model.path": model_of(run),
        f"{actor}.optim.lr": optimizer.lr,
        f"{actor}.optim.lr_warmup_steps": optimizer.warmup_steps,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.optim.weight_decay": optimizer.weight_decay,
        f"{actor}.grad_clip": optimizer.grad_clip,
        f"{actor}.ppo_mini_batch_size": run.rollout.prompts // settings.minibatches,
        f"{actor}.ppo_micro_batch_size_per_gpu": run.verl.micro_batch,
        f"{actor}.ppo_epochs": settings.epochs,
        f"{actor}.shuffle": settings.minibatches > 1 or settings.epochs > 1,
        f"{actor}.data_loader_seed": run.seed,
        f"{actor}.clip_ratio": settings.clip,
        f"{actor}.clip_ratio_low": settings.clip,
        f"{actor}.clip_ratio_high": clip_high or settings.clip,
        f"{actor}.loss_agg_mode": AVERAGES[settings.average],
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": run.verl.micro_batch,
    }
    if settings.dual_clip is None:
        raise ConfigError(f"{run.algorithm}.dual_clip is 'none'; verl always clips: give a number")
    return named | {
        f"{actor}.clip_ratio_c": settings.dual_clip,
        f"{actor}.optim.betas": _Raw(f"[{optimizer.betas[0]!r},{optimizer.betas[1]!r}]"),
    }


def _grpo(run: Run) -> dict[str, Value]:
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": run.grpo.scale_by_std,
        f"{actor}.use_kl_loss": run.grpo.kl > 0,
        f"{actor}.kl_loss_coef": run.grpo.kl,
        f"{actor}.kl_loss_type": "low_var_kl",
    }


def _ppo(run: Run) -> dict[str, Value]:
    ppo = run.ppo
    named: dict[str, Value] = {
        "algorithm.adv_estimator": "gae",
        "algorithm.gamma": ppo.gamma,
        "algorithm.lam": ppo.lam,
        "algorithm.use_kl_in_reward": ppo.kl > 0,
        "algorithm.kl_penalty": "kl",
        "algorithm.kl_ctrl.kl_coef": ppo.kl,
        "algorithm.kl_ctrl.type": "fixed",
        "critic.model.path": model_of(run),
        "critic.optim.lr": ppo.critic_lr,
        "critic.optim.weight_decay": run.optimizer.weight_decay,
        "critic.ppo_micro_batch_size_per_gpu": run.verl.micro_batch,
        "critic.cliprange_value": ppo.value_clip,
        "trainer.critic_warmup": ppo.value_warmup,
    }
    if ppo.kl_target is not None:
        named |= {
            "algorithm.kl_ctrl.type": "adaptive",
            "algorithm.kl_ctrl.target_kl": ppo.kl_target,
            "algorithm.kl_ctrl.horizon": ppo.kl_horizon,
        }
    return named


def _trainer(run: Run) -> dict[str, Value]:
    return {
        "trainer.nnodes": run.verl.nodes,
        "trainer.n_gpus_per_node": run.verl.gpus,
        "trainer.total_training_steps": run.steps.total,
        # verl stops at whichever comes first, and a step never takes more than an epoch.
        "trainer.total_epochs": run.steps.total + 1,
        "trainer.save_freq": run.steps.checkpoint_every,
        "trainer.max_actor_ckpt_to_keep": 2,
        "trainer.max_critic_ckpt_to_keep": 2,
        "trainer.test_freq": run.eval.every or run.steps.total,
        "trainer.logger": _Raw("[console]"),
        "trainer.project_name": "memory-r1",
        "trainer.experiment_name": f"{run.kind}-{run.algorithm}-seed{run.seed}",
        # A group whose answerer was away is drawn again; by default its rows would go missing.
        "trainer.v1.sampler.sync_refill_failed_groups": True,
    }


def _reward(run: Run) -> dict[str, Value]:
    custom = "reward.custom_reward_function"
    return {
        f"{custom}.path": REWARD,
        f"{custom}.name": "compute_score",
        f"+{custom}.reward_kwargs.answerer": answerer_of(run),
        f"+{custom}.reward_kwargs.judge": run.reward.judge,
    }


def _level(run: Run) -> dict[str, Value]:
    if run.verl.level == "a":
        if run.rollout.turns > 1:
            raise ConfigError(
                f"rollout.turns is {run.rollout.turns}, but at level a a sample is one decision; "
                'set verl.level = "b"'
            )
        return {}
    modules = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES"
    return {"trainer.v1.trainer_mode": "memory_r1", modules: TRAINER}


def answerer_of(run: Run) -> str | None:
    """The frozen Answer Agent that earns the reward; None where nobody is asked for it.

    ConfigError when the Memory Manager is trained and nobody is named: `model` would be meant, but
    verl holds the model that learns, and only somebody who serves its copy can freeze it.
    """
    if run.kind == "answer":
        return None
    named = run.verl.answerer or run.answer
    if named is None:
        raise ConfigError(
            "who is the frozen Answer Agent? Serve the untrained model (e.g. `vllm serve MODEL`) "
            'and set verl.answerer = "http://HOST:8000/v1#MODEL"; "rules" asks no model'
        )
    return _anywhere(named)


class _Raw(str):
    """A value written in Hydra's grammar already."""


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset(("true", "false", "null", "none", "nan", "inf"))


def _hydra(value: Value) -> str:
    """A value in Hydra's grammar: texts that could be read as something else are quoted."""
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return repr(value)
        case _Raw():
            return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # Before a quotation mark a backslash must be doubled; elsewhere Hydra takes it as it is.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"

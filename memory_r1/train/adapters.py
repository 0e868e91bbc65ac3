"""A model and a run's settings -> the policy: a LoRA adapter on shared weights, or all weights.

Manager, answer agent, extractor, reference and critic of a LoRA run are one base model in memory
and the adapters on it (llm/shared.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memory_r1.errors import ConfigError, MissingExtra
from memory_r1.llm import Agents
from memory_r1.llm.local import LocalLLM, quiet
from memory_r1.llm.shared import Weights
from memory_r1.train.policy import Critic, Policy, load_parameters, value_head
from memory_r1.train.processes import asks_for_shards
from memory_r1.train.runfile import Lora, Run
from memory_r1.train.sharding import shard

NOBODY = Agents()


def open_policy(run: Run, start: LocalLLM, *, partners: Agents = NOBODY) -> Policy:
    """The policy that training begins with.

    With `[lora]`, or where `start` is an adapter, an adapter on the weights of `start`, which stay
    as they are for the partners and the reference; else a copy of all weights.
    partners: whose weights are read as the run says, so that they are the same in memory
    Raises ConfigError, and ModelUnavailable when the model can't be loaded.
    """
    fine_tuned = run.lora is not None or start.path != start.base
    for llm in (start, partners.extract, partners.manage, partners.answer):
        if isinstance(llm, LocalLLM):
            llm.read_as(frozen_dtype(run))
    if fine_tuned:
        trained = adapt(start, run.lora, seed=run.seed)
    else:
        # Updates of a usual size would round away in bfloat16.
        trained = start.copy(dtype="float32")
    if run.steps.gradient_checkpointing:
        checkpoint_layers(trained.model)
    return Policy(
        trained,
        temperature=run.rollout.temperature,
        max_tokens=run.rollout.max_tokens,
        compute=compute_dtype(run, trained.model.device.type),
        began=start if fine_tuned else None,
        batch_tokens=run.rollout.batch_tokens,
        sharded=run.processes.sharding == "full" or asks_for_shards(),
    )


def frozen_dtype(run: Run) -> str | None:
    """How frozen weights are read; None: as the device and their files suggest."""
    return None if run.precision.weights == "auto" else run.precision.weights


def compute_dtype(run: Run, device: str) -> torch.dtype | None:
    """What matrix products are computed in by autocast; None: in the weights' own precision."""
    match run.precision.compute:
        case "bfloat16":
            return torch.bfloat16
        case "float32":
            return None
    halved = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if halved else None


def checkpoint_layers(model: Any) -> None:
    """Keep only what enters each layer for the gradient, and compute the layer again for it."""
    # transformers 5.23 calls it by the first name and warns of the second.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # transformers asks each layer whether it is in training. Only these say so, not what is
    # inside them: dropout stays off, so that the policy that is updated is the one that sampled.
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.training = True


def adapt(start: LocalLLM, lora: Lora | None, *, seed: int) -> LocalLLM:
    """A new adapter on the weights of `start` that computes what `start` does, to be trained.

    Where `start` is an adapter itself, a copy of it; `lora` must then be None or of its shape.
    Else one of zero effect, whose first matrices are drawn from the seed.
    """
    if start.adapter is not None:
        _check_shape(start, lora)
        return _copied(start)
    if lora is None:
        raise ConfigError(f"model {start.name!r} is no adapter to go on from; expected [lora]")
    return start.on(_fresh(start.weights, lora, seed))


def _fresh(weights: Weights, lora: Lora, seed: int) -> str:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise MissingExtra("[lora]", "peft", "train") from error
    targets = list(lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha % 1 else int(lora.alpha),
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type=TaskType.CAUSAL_LM,
    )
    with quiet(), torch.random.fork_rng(_gpus(weights)):
        torch.manual_seed(seed)
        try:
            return weights.put_on(
                lambda model, name: get_peft_model(model, config, adapter_name=name),
                lambda peft, name: peft.add_adapter(name, config),
            )
        except ValueError as error:
            raise ConfigError(f"lora.targets is {targets}: {error}") from error


def _copied(start: LocalLLM) -> LocalLLM:
    weights, old = start.weights, start.adapter
    assert old is not None and weights.peft is not None
    config = weights.peft.peft_config[old]
    with quiet():
        new = weights.put_on(
            lambda model, name: None, lambda peft, name: peft.add_adapter(name, config)
        )
    load_parameters(weights.parameters(new), weights.parameters(old))
    return start.on(new)


def _check_shape(start: LocalLLM, lora: Lora | None) -> None:
    has = start.weights.peft.peft_config[start.adapter]
    if lora is not None and (lora.rank, lora.alpha) != (has.r, has.lora_alpha):
        raise ConfigError(
            f"[lora] asks for rank {lora.rank} and alpha {lora.alpha:g}, and the adapter "
            f"{start.path} that training goes on from has {has.r} and {has.lora_alpha:g}; leave "
            "[lora] out, or start from its base"
        )


def _gpus(weights: Weights) -> list[Any]:
    device = weights.model.device
    return [device] if device.type == "cuda" else []


class AdapterCritic:
    """What an unfinished completion is worth: a second adapter on the policy's weights, a head.

    Both start as the policy does; no second base model is held.
    """

    def __init__(self, policy: Policy, lora: Lora | None, *, seed: int) -> None:
        began = policy.began
        assert began is not None
        # Another seed than the policy's: nothing should tie the two together.
        self._llm = adapt(began, lora, seed=seed + 1)
        self.head = value_head(policy.model)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The shared backbone with the critic's adapter."""
        with self._llm.active() as model:
            yield model.model

    def parameters(self) -> Iterator[nn.Parameter]:
        """The adapter's and the head's."""
        yield from self._adapter().values()
        yield from self.head.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """Adapter and head."""
        adapter = {f"adapter.{name}": p.detach() for name, p in self._adapter().items()}
        return adapter | {f"head.{name}": value for name, value in self.head.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from such a state."""
        parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "head": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        load_parameters(self._adapter(), parts["adapter"])
        self.head.load_state_dict(parts["head"])

    def _adapter(self) -> dict[str, nn.Parameter]:
        assert self._llm.adapter is not None
        return self._llm.weights.parameters(self._llm.adapter)


def open_critic(policy: Policy, run: Run) -> Critic | AdapterCritic:
    """The critic of a PPO run: it starts with the policy's knowledge and a value of zero."""
    if policy.began is not None:
        return AdapterCritic(policy, run.lora, seed=run.seed)
    critic = Critic(policy.model).to(policy.model.device)
    if policy.sharded:
        shard(critic.backbone, policy.processes.number)
        shard(critic.head, policy.processes.number)
    return critic

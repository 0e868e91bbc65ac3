"""A model's weights spread over the processes of a run (FSDP), gathered where they are needed.

torch's `fully_shard` gathers a layer's weights when the layer is computed, in all processes at
once. Sampling takes another number of tokens in each process, so there all weights are gathered
once before it and let go after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")
_DOOR = "with_weights"
"""The method of a sharded model that computes anything with its weights at hand."""


def shard(model: nn.Module, number: int, whole: Collection[nn.Parameter] = ()) -> None:
    """Spread a model's weights over so many processes, layer by layer, in place.

    whole: parameters that every process keeps, such as an adapter's
    What is copied or added to an optimizer has to be so before and after it, respectively.
    """
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (number,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    kept = set(whole)
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    backbone = getattr(model, "model", None)
    if backbone is not None:  # a causal LM, which is computed in parts: backbone, then head
        setattr(model, _DOOR, lambda compute: compute())
        register_fsdp_forward_method(model, _DOOR)
        setattr(backbone, _DOOR, getattr(model, _DOOR))
    for part in _sharded(model):
        # The loss has the whole step's denominator: gradients are summed, not averaged.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def with_weights(model: Any, compute: Callable[[], T]) -> T:
    """Compute something with a model's weights at hand, though not by its `forward`.

    What it returns may be a tensor or a tuple of them; their gradients come back to the shards.
    """
    door = getattr(model, _DOOR, None)
    result: T = compute() if door is None else door(compute)
    return result


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights in every process, so that each may compute on its own; no gradients here."""
    parts = _sharded(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def whole(state: Any, keep: bool = True) -> Any:
    """A state dict with shards put together, on the CPU; all processes call it.

    keep: whether this process wants it; a shard of others becomes None where it is not
    A state without shards is returned as it is.
    """
    match state:
        case DTensor():
            full: Tensor = state.full_tensor()
            return full.detach().cpu() if keep else None
        case dict():
            return {name: whole(part, keep) for name, part in state.items()}
    return state


def spread(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors cut as those of the same names are, for `load_state_dict`."""
    return {name: _cut(tensor, like.get(name)) for name, tensor in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Continue from a whole state, whatever the parameters are cut into now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        i: {
            name: _cut(value, parameters[i]) if value.shape == parameters[i].shape else value
            for name, value in of.items()
        }
        for i, of in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def _cut(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not isinstance(like, DTensor):
        return tensor
    # Every process has read the whole tensor, so nothing needs to be sent.
    here = tensor.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)

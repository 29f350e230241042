"""Training of a transformer whose weights, gradients, optimizer states and average lie in shards on the ranks.

Here: cutting the blocks of a diffusion transformer and of its average by torch's `fully_shard`, and the way between
shards and whole tensors, so that a checkpoint is the same file for any strategy and number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from speech2image.training.ranks import is_first, world_size


def shard(networks: list[nn.Module], device: torch.device) -> None:
    """Cut each network's parameters into one shard a rank, block by block; does nothing for one rank.

    Args:
        networks: with `blocks`; on `device`, equal on all ranks.
        device: where they train.
    Cost:    a block is whole only while it computes; the rest of a network while the network does.
    """
    if world_size() == 1:
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for network in networks:
        blocks: Any = network.blocks
        for block in blocks:
            fully_shard(block, mesh=mesh)
        # Without a backward pass nothing would cut the root again, and an average would miss its updates.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Return whether any parameter lies in shards."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(value: Tensor) -> Tensor:
    """Return the whole tensor of a shard; all ranks ask together.  Others pass through."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own_part(value: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_state(state: Any) -> Any:
    """Return a nested state with whole tensors in place of shards; all ranks ask together.

    Returns: on the first rank whole tensors, those of shards on the CPU; on others what they hold, as nothing
        is kept there.
    """
    if isinstance(state, DTensor):
        value = state.full_tensor()
        return value.cpu() if is_first() else state
    if isinstance(state, Mapping):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [whole_state(value) for value in state]
    return state


def cut_like_parameters(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state of whole tensors cut as its parameters are; unchanged without shards."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return state

    def cut(number: int, value: Any) -> Any:
        like = parameters[number]
        if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

    entries = {
        number: {name: cut(number, value) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}

"""FSDP2 over a base without weights: each process reads its own rows of every tensor.

``fully_shard`` leaves parameters on the meta device where they are: torch's own way of making a
model that no process could hold. Accelerate's alternative holds it whole in the first process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from headrace.finetuning.base_precision.base_weights import BaseWeights


def stand_in(model: nn.Module) -> None:
    """Replace meta parameters by zeros on the host that take no memory: a shape and a device.

    PEFT puts an adapter where its base is, and draws it there.
    """
    _replace_frozen(model, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape))


def to_meta(model: nn.Module) -> None:
    """Frozen parameters go to the meta device, where sharding leaves them."""
    _replace_frozen(model, lambda parameter: parameter.to("meta"))


def _replace_frozen(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Give every frozen parameter another tensor; what is tied stays tied."""
    changed: dict[torch.Tensor, nn.Parameter] = {}
    for module in list(model.modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.requires_grad:
                continue
            if parameter not in changed:
                changed[parameter] = nn.Parameter(change(parameter.detach()), requires_grad=False)
            setattr(module, leaf, changed[parameter])


def load_shards(model: nn.Module, weights: BaseWeights) -> None:
    """Put weights in the place of a sharded PEFT model's meta parameters.

    Args:
        model: Sharded by rows over one dimension of devices; its adapters have their weights.
        weights: On the device of this process.
    """
    places: dict[DTensor, list[tuple[nn.Module, str]]] = defaultdict(list)
    names: dict[DTensor, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and isinstance(parameter, DTensor):
                places[parameter].append((module, leaf))
                names.setdefault(parameter, base_name(f"{prefix}.{leaf}"))
    for parameter, owners in places.items():
        loaded = nn.Parameter(_own_shard(parameter, names[parameter], weights), False)
        for module, leaf in owners:
            setattr(module, leaf, loaded)


def base_name(name: str) -> str:
    """A parameter's name in the base model, from its name below PEFT's wrappers."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _own_shard(parameter: DTensor, name: str, weights: BaseWeights) -> DTensor:
    mesh, (placement,) = parameter.device_mesh, parameter.placements
    assert placement == Shard(0)
    # As torch.chunk cuts: all but the last parts are of one size.
    size = -(-parameter.shape[0] // mesh.size())
    first = mesh.get_local_rank() * size
    rows = weights.read(name, parameter.dtype, slice(first, first + size))
    return DTensor.from_local(
        rows.contiguous(),
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )

"""The LoRA branch of one linear layer, as PEFT keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headrace.link.errors import ConfigurationError


def lora_layer(module: nn.Module) -> Any | None:
    """The module as PEFT's LoRA layer, or ``None`` for a plain linear."""
    return module if hasattr(module, "lora_A") and hasattr(module, "base_layer") else None


def base_linear(module: nn.Module) -> nn.Linear:
    """The frozen linear itself, below PEFT's layer where there is one."""
    layer = lora_layer(module)
    linear = module if layer is None else layer.base_layer
    assert isinstance(linear, nn.Linear)
    return linear


@dataclass(frozen=True, slots=True)
class LoraBranch:
    """One adapter on one linear: ``y += scaling * up(down(dropout(x)))``.

    Attributes:
        layer: PEFT's LoRA layer.
        adapter: Name of the adapter in it.
        member: Index of the linear in its projection group.
    """

    layer: Any
    adapter: str
    member: int

    @property
    def down(self) -> nn.Parameter:
        """[r, K], PEFT's A."""
        weight: nn.Parameter = self.layer.lora_A[self.adapter].weight
        return weight

    @property
    def up(self) -> nn.Parameter:
        """[N, r], PEFT's B."""
        weight: nn.Parameter = self.layer.lora_B[self.adapter].weight
        return weight

    @property
    def scaling(self) -> float:
        """Alpha over rank (or what PEFT made of it)."""
        return float(self.layer.scaling[self.adapter])

    @property
    def dropout(self) -> float:
        """Probability in the layer's present mode: 0 in evaluation."""
        module = self.layer.lora_dropout[self.adapter]
        return float(module.p) if isinstance(module, nn.Dropout) and module.training else 0.0

    @property
    def active(self) -> bool:
        """Neither switched off nor merged into the base weight."""
        return not self.layer.disable_adapters and not self.layer.merged


def parameters_of(branches: Sequence[LoraBranch]) -> list[torch.Tensor]:
    """Down, up, down, up, …"""
    return [tensor for branch in branches for tensor in (branch.down, branch.up)]


@contextmanager
def aliased(branches: Sequence[LoraBranch]) -> Iterator[list[nn.Parameter]]:
    """Inside, the adapters' parameters are other leaves over the same memory (down, up, …).

    A captured step takes gradients of these. The parameters themselves bring along what
    accumulates their gradients, and that belongs to the stream it was made on: DDP makes it early,
    on the default stream, which must not wait for a stream that is being captured.
    """
    linears = [
        pairs[branch.adapter]
        for branch in branches
        for pairs in (branch.layer.lora_A, branch.layer.lora_B)
    ]
    own = [linear.weight for linear in linears]
    leaves = [nn.Parameter(weight.detach()) for weight in own]
    try:
        for linear, leaf in zip(linears, leaves, strict=True):
            linear.weight = leaf
        yield leaves
    finally:
        for linear, weight in zip(linears, own, strict=True):
            linear.weight = weight


def find_branch(module: nn.Module, member: int, name: str) -> LoraBranch | None:
    """The LoRA branch of a projection, or ``None``.

    Raises:
        ConfigurationError: PEFT's layer does more than plain LoRA with one active adapter.
    """
    layer = lora_layer(module)
    if layer is None:
        return None
    adapters = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    if not adapters:
        return None
    if len(adapters) > 1:
        raise ConfigurationError(f"{name}: fused LoRA takes one active adapter, got {adapters}")
    adapter = adapters[0]
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__
        raise ConfigurationError(f"{name}: fused LoRA computes plain LoRA, not {variant}")
    if layer.lora_B[adapter].bias is not None:
        raise ConfigurationError(f"{name}: fused LoRA has no bias in the adapter (lora_bias)")
    if getattr(layer, "fan_in_fan_out", False):
        raise ConfigurationError(f"{name}: fused LoRA takes nn.Linear's layout (fan_in_fan_out)")
    return LoraBranch(layer, adapter, member)


def common_dropout(branches: list[LoraBranch]) -> float:
    """The dropout probability that adapters on one input share.

    Raises:
        ConfigurationError: They differ.
    """
    found = {branch.dropout for branch in branches}
    if len(found) > 1:
        raise ConfigurationError(f"adapters on one input differ in dropout: {sorted(found)}")
    return found.pop() if found else 0.0


def stacked_down(branches: list[LoraBranch], dtype: torch.dtype) -> torch.Tensor:
    """[n, r, K] in ``dtype``; ``r`` is the largest rank, smaller ones are filled with zeros."""
    rank = max(branch.down.shape[0] for branch in branches)
    padded = [
        nn.functional.pad(branch.down.detach(), (0, 0, 0, rank - branch.down.shape[0]))
        if branch.down.shape[0] < rank
        else branch.down.detach()
        for branch in branches
    ]
    return torch.stack(padded).to(dtype)

"""Conversion of a model's linears into another format, one at a time."""

from __future__ import annotations

import torch
from torch import nn

from headrace.finetuning.base_precision.four_bit import Nf4Linear
from headrace.finetuning.base_precision.fp8 import Fp8Linear
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.kernels.nf4.reference import BLOCK as NF4_BLOCK
from headrace.link.errors import ConfigurationError

KEPT = ("lm_head",)
_FP8_ALIGNMENT = 16


def converted_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    precision: BasePrecision,
    keep_transposed: bool,
    name: str,
) -> nn.Linear:
    """A frozen linear in another format, on the weight's device.

    Args:
        weight: [N, K] in a float dtype.
        bias: [N] or ``None``.
        precision: ``FP8`` or ``NF4``.
        keep_transposed: FP8: a second, transposed copy for the backward.
        name: Of the linear, for messages.

    Raises:
        ConfigurationError: The format cannot hold a weight of this shape.
    """
    rows, columns = weight.shape
    if precision is BasePrecision.FP8:
        if rows % _FP8_ALIGNMENT or columns % _FP8_ALIGNMENT:
            raise ConfigurationError(
                f"{name}: FP8 needs sizes divisible by {_FP8_ALIGNMENT}, got {rows} x {columns}"
            )
        return Fp8Linear.quantize(weight, bias, keep_transposed)
    if precision is BasePrecision.NF4:
        if columns % NF4_BLOCK:
            raise ConfigurationError(
                f"{name}: 4-bit needs inputs divisible by {NF4_BLOCK}, got {columns}"
            )
        return Nf4Linear.quantize(weight, bias)
    raise ConfigurationError(f"{name}: {precision} is no format to convert to")


def is_converted_name(name: str) -> bool:
    """Whether a linear of this module name is converted (the head stays as it is)."""
    return name.rsplit(".", 1)[-1] not in KEPT


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where ``name`` (dotted) points in ``model``."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def convert_base(model: nn.Module, precision: BasePrecision, keep_transposed: bool = True) -> None:
    """Convert every linear but the head in place, each one's old weight freed before the next.

    Call it before PEFT's adapters are added.

    Args:
        model: With its weights, on the device that computes.
        precision: ``BF16`` changes nothing.
        keep_transposed: FP8: twice the memory, no transposition in every backward.

    Raises:
        ConfigurationError: A linear's shape does not suit the format.
    """
    if precision is BasePrecision.BF16:
        return
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and is_converted_name(name)
    ]
    with torch.no_grad():
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            bias = None if linear.bias is None else linear.bias.data
            replacement = converted_linear(
                linear.weight.data, bias, precision, keep_transposed, name
            )
            replace_module(model, name, replacement)
            del linear

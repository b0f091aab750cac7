"""Conversion of a model's linears into another format, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from headrace.finetuning.base_precision.four_bit import Nf4Linear
from headrace.finetuning.base_precision.fp8 import Fp8Linear
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.kernels.nf4.reference import BLOCK as NF4_BLOCK
from headrace.link.errors import ConfigurationError

KEPT = ("lm_head",)
_FP8_ALIGNMENT = 16


Converter = Callable[[torch.Tensor, torch.Tensor | None, str], nn.Linear]
"""``(weight [N, K] in a float dtype, bias [N] | None, name for messages) -> frozen linear``, on the
weight's device."""


def converter(precision: BasePrecision, keep_transposed: bool = True) -> Converter | None:
    """What makes linears of a precision; ``None`` where they stay as they are.

    The converter raises ``ConfigurationError`` where the format cannot hold a weight's shape.

    Args:
        precision: Of the linears.
        keep_transposed: FP8: twice the memory, no transposition in every backward.
    """
    if precision is BasePrecision.FP8:
        return partial(_fp8_linear, keep_transposed)
    return _nf4_linear if precision is BasePrecision.NF4 else None


def _fp8_linear(
    keep_transposed: bool, weight: torch.Tensor, bias: torch.Tensor | None, name: str
) -> nn.Linear:
    rows, columns = weight.shape
    if rows % _FP8_ALIGNMENT or columns % _FP8_ALIGNMENT:
        raise ConfigurationError(
            f"{name}: FP8 needs sizes divisible by {_FP8_ALIGNMENT}, got {rows} x {columns}"
        )
    return Fp8Linear.quantize(weight, bias, keep_transposed)


def _nf4_linear(weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> nn.Linear:
    if weight.shape[1] % NF4_BLOCK:
        raise ConfigurationError(
            f"{name}: 4-bit needs inputs divisible by {NF4_BLOCK}, got {weight.shape[1]}"
        )
    return Nf4Linear.quantize(weight, bias)


def is_converted_name(name: str) -> bool:
    """Whether a linear of this module name is converted (the head stays as it is)."""
    return name.rsplit(".", 1)[-1] not in KEPT


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where ``name`` (dotted) points in ``model``."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def convert_base(model: nn.Module, convert: Converter | None) -> None:
    """Convert every linear but the head in place, each one's old weight freed before the next.

    Call it before PEFT's adapters are added.

    Args:
        model: With its weights, on the device that computes.
        convert: ``None`` changes nothing.

    Raises:
        ConfigurationError: A linear's shape does not suit the format.
    """
    if convert is None:
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
            replace_module(model, name, convert(linear.weight.data, bias, name))
            del linear

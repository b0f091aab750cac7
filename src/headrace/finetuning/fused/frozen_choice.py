"""Which product computes with a frozen linear: by the format of its weight."""

from __future__ import annotations

from torch import nn

from headrace.finetuning.base_precision.four_bit import (
    BitsAndBytesMatrix,
    Nf4Linear,
    Nf4Matrix,
    is_bitsandbytes_4bit,
)
from headrace.finetuning.base_precision.fp8 import Fp8Linear, Fp8Matrix
from headrace.finetuning.fused.frozen_matrix import DenseMatrix, FrozenMatrix
from headrace.link.errors import ConfigurationError


def frozen_matrix(linears: list[nn.Linear], merge: bool) -> FrozenMatrix:
    """The product for linears on one input.

    Args:
        linears: All of one format.
        merge: Let their weights lie one under the other where the format gains by it.

    Raises:
        ConfigurationError: Formats are mixed, or unknown.
    """
    if all(isinstance(linear, Fp8Linear) for linear in linears):
        return Fp8Matrix([linear for linear in linears if isinstance(linear, Fp8Linear)])
    if all(isinstance(linear, Nf4Linear) for linear in linears):
        return Nf4Matrix([linear for linear in linears if isinstance(linear, Nf4Linear)])
    if all(is_bitsandbytes_4bit(linear) for linear in linears):
        return BitsAndBytesMatrix(linears)
    if all(linear.weight.dtype.is_floating_point for linear in linears):
        return DenseMatrix(linears, merge)
    kinds = sorted({type(linear).__name__ for linear in linears})
    raise ConfigurationError(f"linears on one input must share a known format, got {kinds}")

"""Frozen linears in QLoRA's 4-bit normal float, and bitsandbytes' own, behind one face.

Each product dequantizes its weight into a passing buffer first: at training's row counts that
costs a few percent of the product.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from headrace.kernels.nf4 import reference

Tensor = torch.Tensor


class Nf4Linear(nn.Linear):
    """A frozen linear in 4 bits: ``weight`` [N * K / 2] packed bytes, ``peaks`` one per 64 weights.

    Bytes and peaks are those of bitsandbytes' NF4 in blocks of 64 without nested quantization (held
    by a test).
    """

    peaks: Tensor

    def __init__(
        self, packed: Tensor, peaks: Tensor, shape: tuple[int, int], bias: Tensor | None
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(packed, requires_grad=False)
        frozen_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", frozen_bias)
        self.register_buffer("peaks", peaks)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None = None) -> Nf4Linear:
        """From a weight [N, K] in any float dtype, on its device; K must be a multiple of 64."""
        packed, peaks = reference.quantize(weight)
        return cls(packed, peaks, (weight.shape[0], weight.shape[1]), bias)

    def dequantize_into(self, out: Tensor) -> None:
        """Write the weight [N, K] into ``out``, contiguous."""
        if out.device.type == "cuda":
            from headrace.kernels.nf4 import triton as kernels

            kernels.dequantize(self.weight, self.peaks, out)
        else:
            reference.dequantize(self.weight, self.peaks, out)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] that the bytes stand for."""
        shape = (self.out_features, self.in_features)
        out = torch.empty(shape, dtype=dtype, device=self.weight.device)
        self.dequantize_into(out)
        return out

    def forward(self, input: Tensor) -> Tensor:
        """``input[..., K] @ W.T + bias``, differentiable in ``input``."""
        result: Tensor = _DequantizedProduct.apply(input, Nf4Matrix([self]))
        return result


class _DequantizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Nf4Matrix) -> Tensor:
        ctx.matrix, ctx.shape = matrix, x.shape
        return matrix.forward(x.detach().flatten(0, -2), None).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.backward(grad.flatten(0, -2)).view(ctx.shape), None


class _DequantizedMatrix(ABC):
    """A ``FrozenMatrix`` whose weight exists in the compute dtype during a product only."""

    def __init__(self, sizes: tuple[int, ...], biases: list[Tensor | None]) -> None:
        self._sizes = sizes
        self._biases = biases

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``FrozenMatrix``."""
        return self._sizes

    @abstractmethod
    def _weight(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in ``dtype``."""

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See ``FrozenMatrix``."""
        weight = self._weight(x.dtype).t()
        out = x @ weight if residual is None else torch.addmm(residual, x, weight)
        for bias, part in zip(self._biases, out.split(self._sizes, dim=1), strict=True):
            if bias is not None:
                part += bias
        return out

    def backward(self, grad: Tensor) -> Tensor:
        """See ``FrozenMatrix``."""
        return grad @ self._weight(grad.dtype)


class Nf4Matrix(_DequantizedMatrix):
    """Of ``Nf4Linear`` modules, dequantized one under the other."""

    def __init__(self, linears: list[Nf4Linear]) -> None:
        biases: list[Tensor | None] = [
            None if linear.bias is None else linear.bias.detach() for linear in linears
        ]
        super().__init__(tuple(linear.out_features for linear in linears), biases)
        self._linears = linears

    def _weight(self, dtype: torch.dtype) -> Tensor:
        width, device = self._linears[0].in_features, self._linears[0].weight.device
        out = torch.empty(sum(self.sizes), width, dtype=dtype, device=device)
        for linear, part in zip(self._linears, out.split(self.sizes), strict=True):
            linear.dequantize_into(part)
        return out


def is_bitsandbytes_4bit(linear: nn.Module) -> bool:
    """A ``bitsandbytes.nn.Linear4bit``, asked without importing bitsandbytes."""
    weight: Any = getattr(linear, "weight", None)
    return type(weight).__name__ == "Params4bit" and hasattr(weight, "quant_state")


class BitsAndBytesMatrix(_DequantizedMatrix):
    """Of ``bitsandbytes.nn.Linear4bit`` modules, as Transformers loads them."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        biases: list[Tensor | None] = [
            None if linear.bias is None else linear.bias.detach() for linear in linears
        ]
        super().__init__(tuple(linear.out_features for linear in linears), biases)
        self._linears = linears

    def _weight(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        parts = []
        for linear in self._linears:
            weight: Any = linear.weight
            parts.append(dequantize_4bit(weight.data, weight.quant_state).to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

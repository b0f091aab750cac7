"""Frozen linears in FP8 (e4m3): one scale an output row, inputs quantized a row at a time.

The product is ``torch._scaled_mm`` (cuBLASLt, CUTLASS or hipBLASLt). In the backward the weight's
row scales lie on the inner dimension; they are multiplied into the gradient before that is
quantized, so that the one stored weight serves both directions. The backward wants the weight
transposed: a second copy (``keep_transposed``) or a transposition at each use.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headrace.kernels.fp8_rows import reference

Tensor = torch.Tensor


class Fp8Linear(nn.Linear):
    """A frozen linear whose ``weight`` [N, K] holds the bytes of float8_e4m3fn values.

    The bytes are uint8, since libraries that see a float dtype cast adapters to it.
    ``row_scales`` [N] float32; ``weight_transposed`` [K, N] bytes or ``None``.
    """

    row_scales: Tensor
    weight_transposed: Tensor | None

    def __init__(
        self, weight: Tensor, row_scales: Tensor, bias: Tensor | None, keep_transposed: bool
    ) -> None:
        out_features, in_features = weight.shape
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(weight, requires_grad=False)
        frozen_bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", frozen_bias)
        self.register_buffer("row_scales", row_scales)
        self.keep_transposed = keep_transposed
        self.register_buffer(
            "weight_transposed", _transposed(weight) if keep_transposed else None, persistent=False
        )

    @classmethod
    def quantize(
        cls, weight: Tensor, bias: Tensor | None = None, keep_transposed: bool = True
    ) -> Fp8Linear:
        """From a weight [N, K] in any float dtype, on its device."""
        values, scales = _quantize_rows(weight, None)
        return cls(values.view(torch.uint8), scales[:, 0].contiguous(), bias, keep_transposed)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] that the bytes stand for."""
        values = self.weight.view(torch.float8_e4m3fn).to(torch.float32)
        return (values * self.row_scales[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """``input[..., K] @ W.T + bias``, differentiable in ``input``."""
        result: Tensor = _Fp8Product.apply(input, Fp8Matrix([self]))
        return result


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Fp8Matrix) -> Tensor:
        ctx.matrix, ctx.shape = matrix, x.shape
        return matrix.forward(x.detach().flatten(0, -2), None).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.backward(grad.flatten(0, -2)).view(ctx.shape), None


class Fp8Matrix:
    """A ``FrozenMatrix`` of FP8 linears; several lie one under the other as one weight."""

    def __init__(self, linears: list[Fp8Linear]) -> None:
        self._linears = linears
        if len(linears) == 1:
            self._values: Tensor = linears[0].weight.detach()
            self._scales = linears[0].row_scales
            self._transposed = linears[0].weight_transposed
            return
        self._values = torch.cat([linear.weight.detach() for linear in linears])
        self._scales = torch.cat([linear.row_scales for linear in linears])
        keep = all(linear.keep_transposed for linear in linears)
        first = 0
        for linear in linears:
            part = slice(first, first + linear.out_features)
            linear.weight.data = self._values[part]
            linear.row_scales = self._scales[part]
            linear.weight_transposed = None
            first += linear.out_features
        self._transposed = _transposed(self._values) if keep else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``FrozenMatrix``."""
        return tuple(linear.out_features for linear in self._linears)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See ``FrozenMatrix``."""
        values, scales = _quantize_rows(x, None)
        out = _multiply(values, scales, self._values, self._scales[None, :], x.dtype, True)
        for linear, part in zip(self._linears, out.split(self.sizes, dim=1), strict=True):
            if linear.bias is not None:
                part += linear.bias.detach()
        return out if residual is None else out.add_(residual)

    def backward(self, grad: Tensor) -> Tensor:
        """See ``FrozenMatrix``."""
        values, scales = _quantize_rows(grad, self._scales)
        weight = _transposed(self._values) if self._transposed is None else self._transposed
        ones = _ones(weight.shape[0], grad.device)
        return _multiply(values, scales, weight, ones, grad.dtype, False)


_ONES: dict[tuple[int, torch.device], Tensor] = {}


def _ones(size: int, device: torch.device) -> Tensor:
    if (size, device) not in _ONES:
        _ONES[size, device] = torch.ones(1, size, device=device)
    return _ONES[size, device]


def _quantize_rows(x: Tensor, column_factor: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.device.type == "cuda":
        from headrace.kernels.fp8_rows import triton as kernels

        return kernels.quantize_rows(x, column_factor)
    return reference.quantize_rows(x, column_factor)


def _transposed(weight: Tensor) -> Tensor:
    if weight.device.type == "cuda":
        from headrace.kernels.fp8_rows import triton as kernels

        return kernels.transpose_bytes(weight)
    return weight.t().contiguous()


def _multiply(
    values: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    column_scales: Tensor,
    dtype: torch.dtype,
    fast_accumulation: bool,
) -> Tensor:
    """``(values * row_scales) @ weight.T * column_scales``: [M, K] and [N, K] bytes to [M, N]."""
    eighths = weight.view(torch.float8_e4m3fn)
    if values.device.type == "cuda":
        return torch._scaled_mm(
            values,
            eighths.t(),
            scale_a=row_scales,
            scale_b=column_scales,
            out_dtype=dtype,
            use_fast_accum=fast_accumulation,
        )
    product = (values.float() * row_scales) @ eighths.float().t()
    return (product * column_scales).to(dtype)

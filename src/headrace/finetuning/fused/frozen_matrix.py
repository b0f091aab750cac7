"""Products with the frozen weights of linears that share one input, without weight gradients."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

Tensor = torch.Tensor


class FrozenMatrix(Protocol):
    """``W`` [N, K]: the weights of one or more linears, one under the other."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Output features of each linear; their sum is N."""
        ...

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """``x[T, K] @ W.T + bias (+ residual)``, a new [T, N]."""
        ...

    def backward(self, grad: Tensor) -> Tensor:
        """``grad[T, N] @ W``, a new [T, K]."""
        ...


class DenseMatrix:
    """Weights as they are: one product where they lie one under the other, else one a linear.

    Weights are read from their modules at every use, since FSDP2 gives and takes them.
    """

    def __init__(self, linears: list[nn.Linear], merge: bool) -> None:
        self._linears = linears
        self._merged: Tensor | None = None
        if len(linears) == 1 or not merge:
            return
        with torch.no_grad():
            self._merged = torch.cat([linear.weight for linear in linears])
            parts = self._merged.split([linear.out_features for linear in linears])
            for linear, part in zip(linears, parts, strict=True):
                linear.weight.data = part

    @property
    def sizes(self) -> tuple[int, ...]:
        """See ``FrozenMatrix``."""
        return tuple(linear.out_features for linear in self._linears)

    def _whole(self) -> Tensor | None:
        if len(self._linears) == 1:
            return self._linears[0].weight.detach()
        if self._merged is None:
            return None
        offset = self._merged.storage_offset()
        for linear in self._linears:
            weight = linear.weight
            same = weight.untyped_storage().data_ptr() == self._merged.untyped_storage().data_ptr()
            if not same or weight.storage_offset() != offset:
                self._merged = None
                return None
            offset += weight.numel()
        return self._merged

    def _add_bias(self, out: Tensor) -> None:
        for linear, part in zip(self._linears, out.split(self.sizes, dim=1), strict=True):
            if linear.bias is not None:
                part += linear.bias.detach()

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See ``FrozenMatrix``."""
        whole = self._whole()
        if whole is not None:
            transposed = whole.t()
            out = x @ transposed if residual is None else torch.addmm(residual, x, transposed)
        else:
            out = x.new_empty(x.shape[0], sum(self.sizes))
            for linear, part in zip(self._linears, out.split(self.sizes, dim=1), strict=True):
                torch.mm(x, linear.weight.detach().t(), out=part)
            if residual is not None:
                out += residual
        self._add_bias(out)
        return out

    def backward(self, grad: Tensor) -> Tensor:
        """See ``FrozenMatrix``."""
        whole = self._whole()
        if whole is not None:
            product: Tensor = grad @ whole
            return product
        parts = grad.split(self.sizes, dim=1)
        out: Tensor = parts[0] @ self._linears[0].weight.detach()
        for linear, part in zip(self._linears[1:], parts[1:], strict=True):
            out.addmm_(part, linear.weight.detach())
        return out

"""Plain torch reference of the linear operation."""

from __future__ import annotations

import torch


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """``out[T, N] = x[T, K] @ weight[N, K].T + bias[N]``, accumulated in float32.

    ``out`` is rounded once, to its own dtype, which may be wider than that of ``x``.
    """
    product = x.float() @ weight.float().T
    if bias is not None:
        product += bias.float()
    out.copy_(product)

"""RMSNorm with a frozen weight as an autograd function that keeps only its input."""

from __future__ import annotations

from typing import Any

import torch

from headrace.finetuning.fused.operations import operations_for

Tensor = torch.Tensor


class FusedRMSNorm(torch.autograd.Function):
    """``apply(x, weight, eps)`` over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalised rows, of the shape and dtype of ``x``."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        rows = x.detach().reshape(-1, x.shape[-1])
        return operations_for(x.device).rms_norm(rows, weight.detach(), eps).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of ``x``."""
        x, weight = ctx.saved_tensors
        width = x.shape[-1]
        result = operations_for(x.device).rms_norm_backward(
            grad.reshape(-1, width), x.reshape(-1, width), weight, ctx.eps, None
        )
        return result.view(x.shape), None, None

"""Plain torch references of the RMSNorm operations (arXiv:1910.07467), computed in float32."""

from __future__ import annotations

import torch


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension, in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()


def rms_norm(residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    """``out[T, hidden] = normalise(residual)``."""
    out.copy_(normalise(residual, weight, eps))


def add_rms_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """``residual[T, hidden] += delta`` (updated in place), then ``out = normalise(residual)``."""
    residual.copy_(residual.float() + delta.float())
    out.copy_(normalise(residual, weight, eps))


def gather_add_rms_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    sampled_tokens: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """``out[R, hidden] = normalise((residual + delta)[sampled_tokens])``; nothing else changes.

    Args:
        sampled_tokens: [R] int32 indices among the T tokens.
    """
    rows = sampled_tokens.long()
    out.copy_(normalise(residual[rows].float() + delta[rows].float(), weight, eps))

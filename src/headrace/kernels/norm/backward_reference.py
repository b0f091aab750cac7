"""Plain torch reference of RMSNorm's gradient, for weights that are not trained."""

from __future__ import annotations

import torch


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    skip_grad: torch.Tensor | None,
) -> torch.Tensor:
    """``[T, hidden]``: the gradient of the input, ``skip_grad`` (that of the residual) added.

    Args:
        grad: [T, hidden], of the normalised rows.
        x: [T, hidden], the rows before the norm.
        skip_grad: [T, hidden] or ``None``.
    """
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    scaled = grad.float() * weight.float()
    normal = wide * inverse
    result = inverse * (scaled - normal * (scaled * normal).mean(-1, keepdim=True))
    if skip_grad is not None:
        result = result + skip_grad.float()
    return result.to(x.dtype)

"""Plain torch reference of SwiGLU's activation (arXiv:2002.05202)."""

from __future__ import annotations

import torch


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """``out[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]``, in float32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    out.copy_(gate * torch.sigmoid(gate) * up)

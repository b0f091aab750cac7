"""Plain torch reference of the gradient of SwiGLU's activation."""

from __future__ import annotations

import torch


def silu_mul_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """``[T, 2 * I]``: the gradients of gate and up, side by side.

    Args:
        grad: [T, I], of ``silu(gate) * up``.
        gate_up: [T, 2 * I].
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    wide = grad.float()
    gate_grad = wide * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    return torch.cat((gate_grad, wide * gate * sigmoid), dim=-1).to(gate_up.dtype)

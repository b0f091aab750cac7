"""The gradient of SwiGLU's activation, a slice of one token's columns in a program."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def silu_mul_backward_kernel(
    grad,
    gate_up,
    out,
    width,
    grad_stride,
    gate_up_stride,
    out_stride,
    BLOCK: tl.constexpr,
):
    """Grid (tokens, slices of ``BLOCK`` columns)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + token * gate_up_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(grad + token * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    target = out + token * out_stride + column
    tl.store(target, change * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=inside)
    tl.store(target + width, change * gate * sigmoid, mask=inside)


def silu_mul_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """``[T, 2 * I]``; see ``backward_reference.silu_mul_backward``."""
    tokens, width = grad.shape
    out = torch.empty_like(gate_up)
    silu_mul_backward_kernel[(tokens, triton.cdiv(width, _BLOCK))](
        grad,
        gate_up,
        out,
        width,
        grad.stride(0),
        gate_up.stride(0),
        out.stride(0),
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out

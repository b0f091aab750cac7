"""RMSNorm's gradient with the residual's added: a row in one program, from the input alone."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def rms_norm_backward_kernel(
    grad,
    x,
    weight,
    skip_grad,
    out,
    eps,
    hidden,
    grad_stride,
    x_stride,
    skip_stride,
    out_stride,
    HAS_SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows,); ``BLOCK`` is the power of two that holds ``hidden``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / hidden + eps)
    normal = value * inverse
    result = inverse * (scaled - normal * (tl.sum(scaled * normal, axis=0) / hidden))
    if HAS_SKIP:
        skip = tl.load(skip_grad + row * skip_stride + column, mask=inside, other=0.0)
        result += skip.to(tl.float32)
    tl.store(out + row * out_stride + column, result, mask=inside)


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    skip_grad: torch.Tensor | None,
) -> torch.Tensor:
    """``[T, hidden]``; see ``backward_reference.rms_norm_backward``."""
    rows, hidden = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    rms_norm_backward_kernel[(rows,)](
        grad,
        x,
        weight,
        x if skip_grad is None else skip_grad,
        out,
        eps,
        hidden,
        grad.stride(0),
        x.stride(0),
        0 if skip_grad is None else skip_grad.stride(0),
        out.stride(0),
        HAS_SKIP=skip_grad is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return out

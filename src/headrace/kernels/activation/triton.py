"""SwiGLU's activation: silu(gate) * up, a slice of one token's columns in a program."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs

_BLOCK = 1024


@triton.jit
def silu_mul_kernel(
    gate_up,
    out,
    width,
    gate_up_stride,
    out_stride,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens, slices of ``BLOCK`` columns).

    The last tokens first: of a large input what was written last is still in the L2 cache.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = gate_up + token * gate_up_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * out_stride + column, result, mask=inside)


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor, traits: GpuTraits) -> None:
    """``out[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]``; see ``reference.silu_mul``."""
    tokens, width = out.shape
    if tokens == 0:
        return
    silu_mul_kernel[(tokens, triton.cdiv(width, _BLOCK))](
        gate_up,
        out,
        width,
        gate_up.stride(0),
        out.stride(0),
        BLOCK=_BLOCK,
        num_warps=4,
        **traits.launch_options(),
    )

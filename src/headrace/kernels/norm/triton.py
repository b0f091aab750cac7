"""RMSNorm of a token in one program, with the residual addition and the gather of rows fused."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs


@triton.jit
def rms_norm_kernel(
    delta,
    residual,
    weight,
    rows,
    out,
    eps,
    hidden,
    delta_stride,
    residual_stride,
    out_stride,
    HAS_DELTA: tl.constexpr,
    UPDATE_RESIDUAL: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows of ``out``,); ``BLOCK`` is the power of two that holds ``hidden``.

    The last rows first: of a large input what was written last is still in the L2 cache.
    """
    start_dependents(PDL)
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(PDL)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row = program.to(tl.int64)
    if GATHER:
        row = tl.load(rows + program).to(tl.int64)
    address = residual + row * residual_stride + column
    value = tl.load(address, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + row * delta_stride + column, mask=inside, other=0.0).to(tl.float32)
    if UPDATE_RESIDUAL:
        rounded = value.to(residual.dtype.element_ty)
        tl.store(address, rounded, mask=inside)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / hidden + eps)
    target = out + program.to(tl.int64) * out_stride + column
    tl.store(target, value * inverse * scale, mask=inside)


def _launch(
    delta: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    update_residual: bool,
    traits: GpuTraits,
) -> None:
    programs, hidden = out.shape
    if programs == 0:
        return
    block = triton.next_power_of_2(hidden)
    rms_norm_kernel[(programs,)](
        residual if delta is None else delta,
        residual,
        weight,
        weight if rows is None else rows,
        out,
        eps,
        hidden,
        0 if delta is None else delta.stride(0),
        residual.stride(0),
        out.stride(0),
        HAS_DELTA=delta is not None,
        UPDATE_RESIDUAL=update_residual,
        GATHER=rows is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 8),
        **traits.launch_options(),
    )


def rms_norm(
    residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, traits: GpuTraits
) -> None:
    """``out[T, hidden] = normalise(residual)``; see ``reference.rms_norm``."""
    _launch(None, residual, weight, None, eps, out, False, traits)


def add_rms_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    traits: GpuTraits,
) -> None:
    """``residual += delta``, then ``out = normalise(residual)``; see ``reference.add_rms_norm``.

    Args:
        out: May be ``residual`` itself: then the sum is not kept.
    """
    keep_sum = out.data_ptr() != residual.data_ptr()
    _launch(delta, residual, weight, None, eps, out, keep_sum, traits)


def gather_add_rms_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    sampled_tokens: torch.Tensor,
    out: torch.Tensor,
    traits: GpuTraits,
) -> None:
    """``out = normalise((residual + delta)[sampled_tokens])``; see the reference of this name."""
    _launch(delta, residual, weight, sampled_tokens, eps, out, False, traits)

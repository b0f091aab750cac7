"""SwiGLU's first half in one launch for few tokens: gate and up rows side by side, silu on chip.

``weight`` holds the gate's rows, then as many of the up projection's. A program computes the same
rows of both, so that their product never passes through memory.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import (
    GpuTraits,
    prefetch_to_l2,
    start_dependents,
    wait_for_inputs,
)

MOST_TOKENS = 64
"""Beyond, the vendor library's product and a separate activation are faster."""

TILES = {
    16: (64, 16, 128, 4, 4),
    32: (64, 32, 128, 3, 4),
    64: (64, 64, 128, 3, 4),
}
"""Tokens to gate rows, tokens, columns at a time, stages, warps; measured on an H100."""


@triton.jit
def _silu_mul(gate, up):
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def gated_gemv_kernel(
    x,
    weight,
    bias,
    out,
    width,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``ROWS`` outputs,); one token; weight [2 * width, K] contiguous."""
    start_dependents(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_K)
    row_inside = row < width
    gate_source = weight + row.to(tl.int64)[:, None] * K + column[None, :]
    up_source = gate_source + width.to(tl.int64) * K
    mask = row_inside[:, None] & (column < K)[None, :]
    gate_chunk = tl.load(gate_source, mask=mask, other=0.0, eviction_policy="evict_first")
    up_chunk = tl.load(up_source, mask=mask, other=0.0, eviction_policy="evict_first")
    wait_for_inputs(PDL)
    part = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)
    gate = gate_chunk.to(tl.float32) * part[None, :]
    up = up_chunk.to(tl.float32) * part[None, :]
    for start in range(BLOCK_K, K, BLOCK_K):
        inside = start + column < K
        mask = row_inside[:, None] & inside[None, :]
        gate_chunk = tl.load(
            gate_source + start, mask=mask, other=0.0, eviction_policy="evict_first"
        )
        up_chunk = tl.load(up_source + start, mask=mask, other=0.0, eviction_policy="evict_first")
        part = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
        gate += gate_chunk.to(tl.float32) * part[None, :]
        up += up_chunk.to(tl.float32) * part[None, :]
    gate_sum = tl.sum(gate, axis=1)
    up_sum = tl.sum(up, axis=1)
    if HAS_BIAS:
        gate_sum += tl.load(bias + row, mask=row_inside, other=0.0).to(tl.float32)
        up_sum += tl.load(bias + width + row, mask=row_inside, other=0.0).to(tl.float32)
    tl.store(out + row, _silu_mul(gate_sum, up_sum), mask=row_inside)


@triton.jit(do_not_specialize=["num_tokens"])
def gated_skinny_kernel(
    x,
    weight,
    bias,
    out,
    num_tokens,
    width,
    K: tl.constexpr,
    x_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``TOKENS`` tokens, blocks of ``ROWS`` outputs); else as the skinny kernel."""
    start_dependents(PDL)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_K)
    row_inside = row < width
    token_inside = token < num_tokens
    gate_row = weight + tl.minimum(row, width - 1).to(tl.int64) * K
    up_row = gate_row + width.to(tl.int64) * K
    for ahead in tl.static_range(0, PREFETCH, 64):
        if ahead < K:
            prefetch_to_l2(gate_row + ahead, PDL)
            prefetch_to_l2(up_row + ahead, PDL)
    x_source = x + token.to(tl.int64)[None, :] * x_stride + column[:, None]
    wait_for_inputs(PDL)
    gate = tl.zeros([ROWS, TOKENS], tl.float32)
    up = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if K % BLOCK_K == 0:
            gate_chunk = tl.load(
                gate_row[:, None] + start + column[None, :], eviction_policy="evict_first"
            )
            up_chunk = tl.load(
                up_row[:, None] + start + column[None, :], eviction_policy="evict_first"
            )
            part = tl.load(x_source + start, mask=token_inside[None, :], other=0.0)
        else:
            inside = start + column < K
            gate_chunk = tl.load(
                gate_row[:, None] + start + column[None, :], mask=inside[None, :], other=0.0
            )
            up_chunk = tl.load(
                up_row[:, None] + start + column[None, :], mask=inside[None, :], other=0.0
            )
            part = tl.load(
                x_source + start, mask=inside[:, None] & token_inside[None, :], other=0.0
            )
        gate = tl.dot(gate_chunk, part, gate, input_precision="ieee")
        up = tl.dot(up_chunk, part, up, input_precision="ieee")
    if HAS_BIAS:
        gate += tl.load(bias + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
        up += tl.load(bias + width + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
    target = out + token.to(tl.int64)[None, :] * out_stride + row[:, None]
    mask = row_inside[:, None] & token_inside[None, :]
    tl.store(target, _silu_mul(gate, up), mask=mask)


def gated_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    traits: GpuTraits,
) -> None:
    """``out[T, I] = silu(x @ gate.T) * (x @ up.T)`` for T <= ``MOST_TOKENS``.

    Args:
        x: [T, K].
        weight: [2 * I, K] contiguous: gate, then up.
        bias: [2 * I] or none.
    """
    tokens, columns = x.shape
    width = out.shape[1]
    if tokens == 0:
        return
    if tokens == 1:
        rows = 2
        gated_gemv_kernel[(triton.cdiv(width, rows),)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            width,
            K=columns,
            HAS_BIAS=bias is not None,
            ROWS=rows,
            BLOCK_K=min(2048, triton.next_power_of_2(columns)),
            num_warps=4,
            **traits.launch_options(),
        )
        return
    rows, tile_tokens, block_k, stages, warps = TILES[max(16, triton.next_power_of_2(tokens))]
    while (2 * rows + tile_tokens) * block_k * x.itemsize * stages > traits.shared_memory:
        block_k //= 2
    gated_skinny_kernel[(triton.cdiv(tokens, tile_tokens), triton.cdiv(width, rows))](
        x,
        weight,
        weight if bias is None else bias,
        out,
        tokens,
        width,
        K=columns,
        x_stride=x.stride(0),
        out_stride=out.stride(0),
        HAS_BIAS=bias is not None,
        ROWS=rows,
        TOKENS=tile_tokens,
        BLOCK_K=block_k,
        STAGES=stages,
        PREFETCH=512,
        num_warps=warps,
        **traits.launch_options(),
    )

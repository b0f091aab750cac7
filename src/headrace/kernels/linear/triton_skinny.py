"""Matrix product for few tokens: weight rows fill the matrix unit's tall side, K may be split.

The weight is the left operand, so that a handful of tokens pads its short side only. Shares of K
are summed in a fixed order by the program that ends last for a tile, so results repeat bit for bit
and no second launch is needed.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.triton_launch import prefetch_to_l2, start_dependents, wait_for_inputs


@triton.jit(do_not_specialize=["num_tokens"])
def skinny_kernel(
    x,
    weight,
    bias,
    out,
    partial_sums,
    tickets,
    num_tokens,
    num_rows,
    K: tl.constexpr,
    x_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHARES: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``TOKENS`` tokens, ``SHARES``, blocks of ``ROWS`` rows).

    Programs that read the same weights are neighbours, so that memory is read once.

    Args:
        weight: [num_rows, K] contiguous.
        partial_sums: [tiles, SHARES, ROWS, TOKENS] float32, unused without a split.
        tickets: [tiles] int32 zeros; left at zero.
    """
    start_dependents(PDL)
    share = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, BLOCK_K)
    row_inside = row < num_rows
    token_inside = token < num_tokens
    steps: tl.constexpr = (K + BLOCK_K * SHARES - 1) // (BLOCK_K * SHARES)
    first = share * (steps * BLOCK_K)
    row_start = weight + tl.minimum(row, num_rows - 1).to(tl.int64) * K
    for ahead in tl.static_range(0, PREFETCH, 64):
        if ahead < steps * BLOCK_K:
            prefetch_to_l2(row_start + tl.minimum(first + ahead, K - 1), PDL)
    weight_source = row_start[:, None] + column[None, :]
    x_source = x + token.to(tl.int64)[None, :] * x_stride + column[:, None]
    wait_for_inputs(PDL)
    sums = tl.zeros([ROWS, TOKENS], tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        start = first + step * BLOCK_K
        if K % (BLOCK_K * SHARES) == 0:
            left = tl.load(weight_source + start, eviction_policy="evict_first")
            right = tl.load(x_source + start, mask=token_inside[None, :], other=0.0)
        else:
            inside = start + column < K
            left = tl.load(
                weight_source + start,
                mask=inside[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            right = tl.load(
                x_source + start, mask=inside[:, None] & token_inside[None, :], other=0.0
            )
        sums = tl.dot(left, right, sums, input_precision="ieee")
    if SHARES > 1:
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        cell = tl.arange(0, ROWS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
        area: tl.constexpr = ROWS * TOKENS
        base = partial_sums + tile.to(tl.int64) * (SHARES * area) + cell
        tl.store(base + share * area, sums)
        tl.debug_barrier()
        ticket = tl.atomic_add(tickets + tile, 1, sem="acq_rel")
        if ticket == SHARES - 1:
            tl.store(tickets + tile, 0)
            total = tl.zeros([ROWS, TOKENS], tl.float32)
            for other in tl.static_range(0, SHARES):
                total += tl.load(base + other * area, cache_modifier=".cg")
            _store(total, bias, out, row, token, row_inside, token_inside, out_stride, HAS_BIAS)
    else:
        _store(sums, bias, out, row, token, row_inside, token_inside, out_stride, HAS_BIAS)


@triton.jit
def _store(
    sums, bias, out, row, token, row_inside, token_inside, out_stride, HAS_BIAS: tl.constexpr
):
    if HAS_BIAS:
        sums += tl.load(bias + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
    target = out + token.to(tl.int64)[None, :] * out_stride + row[:, None]
    tl.store(target, sums, mask=row_inside[:, None] & token_inside[None, :])

"""Matrix times one vector: a few rows of the weight in a program, streamed past the L2 cache."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.triton_launch import start_dependents, wait_for_inputs


@triton.jit
def gemv_kernel(
    x,
    weight,
    bias,
    out,
    num_rows,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``ROWS`` rows,); weight [num_rows, K] and x [K] contiguous, K known.

    The first chunk of the weight is under way before the input is waited for.
    """
    start_dependents(PDL)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_K)
    row_inside = row < num_rows
    source = weight + row.to(tl.int64)[:, None] * K + column[None, :]
    mask = row_inside[:, None] & (column < K)[None, :]
    chunk = tl.load(source, mask=mask, other=0.0, eviction_policy="evict_first")
    wait_for_inputs(PDL)
    part = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)
    sums = chunk.to(tl.float32) * part[None, :]
    for start in range(BLOCK_K, K, BLOCK_K):
        if K % BLOCK_K == 0:
            chunk = tl.load(
                source + start, mask=row_inside[:, None], other=0.0, eviction_policy="evict_first"
            )
            part = tl.load(x + start + column).to(tl.float32)
        else:
            inside = start + column < K
            chunk = tl.load(
                source + start,
                mask=row_inside[:, None] & inside[None, :],
                other=0.0,
                eviction_policy="evict_first",
            )
            part = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
        sums += chunk.to(tl.float32) * part[None, :]
    result = tl.sum(sums, axis=1)
    if HAS_BIAS:
        result += tl.load(bias + row, mask=row_inside, other=0.0).to(tl.float32)
    tl.store(out + row, result, mask=row_inside)

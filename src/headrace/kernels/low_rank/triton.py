"""Low-rank updates chosen token by token: narrow activations first, then their expansion.

Steps of single tokens take a program for each token (Punica's batched matrix-vector product,
arXiv:2310.18547). Steps with prompts take blocks of tokens and matrix instructions; a block whose
tokens differ in their adapters is computed once for each adapter in it.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.low_rank.stack import LowRankStack
from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs

_TOKENS = 16
_ROWS = 16
_BLOCK_K = 128
_COLUMNS = 128
_DECODE_BLOCK_K = 256
_DECODE_COLUMNS = 256


@triton.jit
def narrow_token_kernel(
    x,
    down,
    pieces,
    adapter_of_token,
    narrow,
    num_columns,
    x_stride,
    narrow_stride,
    PROJECTIONS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens, blocks of ``ROWS`` rows): narrow[t] = down @ x[t] of the token's adapter."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    adapter = tl.load(adapter_of_token + token).to(tl.int64)
    if adapter >= 0:
        own = pieces + adapter * (PROJECTIONS * 3)
        count = (
            tl.load(own + (PROJECTIONS - 1) * 3)
            + tl.load(own + (PROJECTIONS - 1) * 3 + 1)
            - tl.load(own)
        )
        local = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        row_inside = local < count
        source = down + (tl.load(own) + local)[:, None] * num_columns
        sums = tl.zeros([ROWS], tl.float32)
        for start in range(0, num_columns, BLOCK_K):
            column = start + tl.arange(0, BLOCK_K)
            inside = column < num_columns
            part = tl.load(x + token * x_stride + column, mask=inside, other=0.0)
            weight = tl.load(
                source + column[None, :], mask=row_inside[:, None] & inside[None, :], other=0.0
            )
            sums += tl.sum(weight.to(tl.float32) * part.to(tl.float32)[None, :], axis=1)
        tl.store(narrow + token * narrow_stride + local, sums, mask=row_inside)


@triton.jit
def widen_token_kernel(
    narrow,
    up,
    pieces,
    scales,
    columns,
    adapter_of_token,
    out,
    narrow_stride,
    out_stride,
    PROJECTIONS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens, blocks of ``COLUMNS`` columns, projections): out[t] += scale * up @ narrow."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    projection = tl.program_id(2)
    adapter = tl.load(adapter_of_token + token).to(tl.int64)
    first_column = tl.load(columns + projection)
    width = tl.load(columns + projection + 1) - first_column
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if adapter >= 0:
        own = pieces + adapter * (PROJECTIONS * 3)
        piece = own + projection * 3
        rank = tl.load(piece + 1)
        inside = column < width
        if rank > 0:
            local = tl.load(piece) - tl.load(own)
            source = up + tl.load(piece + 2)
            sums = tl.zeros([COLUMNS], tl.float32)
            for start in range(0, rank, ROWS):
                row = start + tl.arange(0, ROWS)
                row_inside = row < rank
                value = tl.load(
                    narrow + token * narrow_stride + local + row, mask=row_inside, other=0.0
                )
                weight = tl.load(
                    source + row[:, None] * width + column[None, :],
                    mask=row_inside[:, None] & inside[None, :],
                    other=0.0,
                )
                sums += tl.sum(weight.to(tl.float32) * value[:, None], axis=0)
            scale = tl.load(scales + adapter * PROJECTIONS + projection)
            target = out + token * out_stride + first_column + column
            before = tl.load(target, mask=inside, other=0.0).to(tl.float32)
            tl.store(target, before + scale * sums, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def narrow_block_kernel(
    x,
    down,
    pieces,
    adapter_of_token,
    narrow,
    num_tokens,
    num_columns,
    x_stride,
    narrow_stride,
    PROJECTIONS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``TOKENS`` tokens, blocks of ``ROWS`` rows)."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    wide_token = token.to(tl.int64)
    adapters = tl.load(adapter_of_token + token, mask=token < num_tokens, other=-1)
    local = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    adapter = tl.max(adapters)
    while adapter >= 0:
        own = pieces + adapter.to(tl.int64) * (PROJECTIONS * 3)
        count = (
            tl.load(own + (PROJECTIONS - 1) * 3)
            + tl.load(own + (PROJECTIONS - 1) * 3 + 1)
            - tl.load(own)
        )
        row_inside = local < count
        mine = adapters == adapter
        row_start = (tl.load(own) + local) * num_columns
        sums = tl.zeros([TOKENS, ROWS], tl.float32)
        for start in range(0, num_columns, BLOCK_K):
            column = start + tl.arange(0, BLOCK_K)
            inside = column < num_columns
            left = tl.load(
                x + wide_token[:, None] * x_stride + column[None, :],
                mask=mine[:, None] & inside[None, :],
                other=0.0,
            )
            right = tl.load(
                down + row_start[None, :] + column[:, None],
                mask=row_inside[None, :] & inside[:, None],
                other=0.0,
            )
            sums = tl.dot(left, right, sums, input_precision="ieee")
        tl.store(
            narrow + wide_token[:, None] * narrow_stride + local[None, :],
            sums,
            mask=mine[:, None] & row_inside[None, :],
        )
        adapter = tl.max(tl.where(adapters < adapter, adapters, -1))


@triton.jit(do_not_specialize=["num_tokens"])
def widen_block_kernel(
    narrow,
    up,
    pieces,
    scales,
    columns,
    adapter_of_token,
    out,
    num_tokens,
    narrow_stride,
    out_stride,
    PROJECTIONS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``TOKENS`` tokens, blocks of ``COLUMNS`` columns, projections)."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    wide_token = token.to(tl.int64)
    projection = tl.program_id(2)
    adapters = tl.load(adapter_of_token + token, mask=token < num_tokens, other=-1)
    first_column = tl.load(columns + projection)
    width = tl.load(columns + projection + 1) - first_column
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    adapter = tl.max(adapters)
    while adapter >= 0:
        own = pieces + adapter.to(tl.int64) * (PROJECTIONS * 3)
        piece = own + projection * 3
        rank = tl.load(piece + 1)
        local = tl.load(piece) - tl.load(own)
        source = up + tl.load(piece + 2)
        mine = adapters == adapter
        sums = tl.zeros([TOKENS, COLUMNS], tl.float32)
        for start in range(0, rank, ROWS):
            row = start + tl.arange(0, ROWS)
            row_inside = row < rank
            left = tl.load(
                narrow + wide_token[:, None] * narrow_stride + local + row[None, :],
                mask=mine[:, None] & row_inside[None, :],
                other=0.0,
            )
            right = tl.load(
                source + row[:, None] * width + column[None, :],
                mask=row_inside[:, None] & inside[None, :],
                other=0.0,
            )
            sums = tl.dot(left.to(right.dtype), right, sums, input_precision="ieee")
        scale = tl.load(scales + adapter.to(tl.int64) * PROJECTIONS + projection)
        target = out + wide_token[:, None] * out_stride + first_column + column[None, :]
        chosen = mine[:, None] & inside[None, :] & (rank > 0)
        before = tl.load(target, mask=chosen, other=0.0).to(tl.float32)
        tl.store(target, before + scale * sums, mask=chosen)
        adapter = tl.max(tl.where(adapters < adapter, adapters, -1))


class LowRankWorkspace:
    """Float32 narrow activations, shared by all linears of a device."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self._outgrown: list[torch.Tensor] = []
        self._narrow = torch.empty(0, dtype=torch.float32, device=device)

    def reserve(self, tokens: int, rows: int) -> torch.Tensor:
        """Room for [tokens, rows]; what captured graphs may point to is kept."""
        if self._narrow.numel() < tokens * rows:
            self._outgrown.append(self._narrow)
            self._narrow = torch.empty(
                tokens * rows, dtype=torch.float32, device=self._narrow.device
            )
        return self._narrow[: tokens * rows].view(tokens, rows)


def add_low_rank(
    x: torch.Tensor,
    stack: LowRankStack,
    adapter_of_token: torch.Tensor,
    out: torch.Tensor,
    max_query_length: int,
    workspace: LowRankWorkspace,
    traits: GpuTraits,
) -> None:
    """``out[t] += scale * up @ (down @ x[t])``; see ``reference.add_low_rank``.

    Args:
        max_query_length: 1 chooses the kernels for single tokens.
    """
    tokens, projections = x.shape[0], len(stack.widths)
    if tokens == 0 or stack.most_rows == 0:
        return
    narrow = workspace.reserve(tokens, stack.most_rows)
    row_blocks = triton.cdiv(stack.most_rows, _ROWS)
    shared = {"PROJECTIONS": projections, "ROWS": _ROWS, "num_warps": 4}
    shared |= traits.launch_options()
    if max_query_length == 1:
        narrow_token_kernel[(tokens, row_blocks)](
            x, stack.down, stack.pieces, adapter_of_token, narrow, x.shape[1],
            x.stride(0), narrow.stride(0), BLOCK_K=_DECODE_BLOCK_K, **shared,
        )  # fmt: skip
        widen_token_kernel[(tokens, triton.cdiv(max(stack.widths), _DECODE_COLUMNS), projections)](
            narrow, stack.up, stack.pieces, stack.scales, stack.columns, adapter_of_token, out,
            narrow.stride(0), out.stride(0), COLUMNS=_DECODE_COLUMNS, **shared,
        )  # fmt: skip
        return
    blocks = triton.cdiv(tokens, _TOKENS)
    narrow_block_kernel[(blocks, row_blocks)](
        x, stack.down, stack.pieces, adapter_of_token, narrow, tokens, x.shape[1],
        x.stride(0), narrow.stride(0), TOKENS=_TOKENS, BLOCK_K=_BLOCK_K, **shared,
    )  # fmt: skip
    widen_block_kernel[(blocks, triton.cdiv(max(stack.widths), _COLUMNS), projections)](
        narrow, stack.up, stack.pieces, stack.scales, stack.columns, adapter_of_token, out,
        tokens, narrow.stride(0), out.stride(0), TOKENS=_TOKENS, COLUMNS=_COLUMNS, **shared,
    )  # fmt: skip

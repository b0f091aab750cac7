"""LoRA's down projection with dropout from a seed, and its gradients, as tiled products."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.lora.reference import dropout_threshold

_TOKENS, _COLUMNS = 32, 128
_SMALLEST_RANK = 16
_LEAST_PROGRAMS = 256


@triton.jit
def _mix(value):
    """MurmurHash3's 32-bit finalizer."""
    value = value ^ (value >> 16)
    value = value * 0x85EBCA6B
    value = value ^ (value >> 13)
    value = value * 0xC2B2AE35
    return value ^ (value >> 16)


@triton.jit
def kept(seeds, adapter, row, column, threshold):
    """[rows, columns] bool: what the adapter's dropout keeps; see ``reference.keep_mask``."""
    seed = tl.load(seeds + adapter).to(tl.uint32)
    row_hash = _mix(row.to(tl.uint32) ^ seed)
    mixed = _mix(row_hash[:, None] ^ (column.to(tl.uint32) * 0x9E3779B1)[None, :])
    return (mixed >> 8).to(tl.int32) >= threshold


@triton.jit
def down_project_kernel(
    x,
    down,
    seeds,
    out,
    num_tokens,
    width,
    rank,
    threshold,
    keep_scale,
    x_stride,
    out_stride,
    DROPOUT: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Grid (tiles of tokens, adapters)."""
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    adapter = tl.program_id(1)
    rank_index = tl.arange(0, RANK)
    row_inside = row < num_tokens
    rank_inside = rank_index < rank
    total = tl.zeros((TOKENS, RANK), dtype=tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < width
        value = tl.load(
            x + row.to(tl.int64)[:, None] * x_stride + column[None, :],
            mask=row_inside[:, None] & inside[None, :],
            other=0.0,
        )
        if DROPOUT:
            value = tl.where(kept(seeds, adapter, row, column, threshold), value, 0.0)
        matrix = tl.load(
            down + (adapter * rank + rank_index[None, :]).to(tl.int64) * width + column[:, None],
            mask=inside[:, None] & rank_inside[None, :],
            other=0.0,
        )
        total = tl.dot(value.to(matrix.dtype), matrix, total, input_precision="ieee")
    tl.store(
        out + row.to(tl.int64)[:, None] * out_stride + adapter * rank + rank_index[None, :],
        total * keep_scale,
        mask=row_inside[:, None] & rank_inside[None, :],
    )


@triton.jit
def down_gradient_kernel(
    x,
    grad,
    seeds,
    partial,
    num_tokens,
    width,
    rank,
    threshold,
    keep_scale,
    tokens_a_split,
    x_stride,
    grad_stride,
    DROPOUT: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Grid (tiles of columns, adapters, splits of tokens); ``partial`` [splits, n, r, K]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    adapter = tl.program_id(1)
    first = tl.program_id(2) * tokens_a_split
    last = tl.minimum(first + tokens_a_split, num_tokens)
    rank_index = tl.arange(0, RANK)
    inside = column < width
    rank_inside = rank_index < rank
    total = tl.zeros((RANK, COLUMNS), dtype=tl.float32)
    for start in range(first, last, TOKENS):
        row = start + tl.arange(0, TOKENS)
        row_inside = row < last
        value = tl.load(
            x + row.to(tl.int64)[:, None] * x_stride + column[None, :],
            mask=row_inside[:, None] & inside[None, :],
            other=0.0,
        )
        if DROPOUT:
            value = tl.where(kept(seeds, adapter, row, column, threshold), value, 0.0)
        change = tl.load(
            grad + row.to(tl.int64)[None, :] * grad_stride + adapter * rank + rank_index[:, None],
            mask=row_inside[None, :] & rank_inside[:, None],
            other=0.0,
        )
        total = tl.dot(change, value.to(change.dtype), total, input_precision="ieee")
    place = (tl.program_id(2) * tl.num_programs(1) + adapter) * rank + rank_index[:, None]
    tl.store(
        partial + place.to(tl.int64) * width + column[None, :],
        total * keep_scale,
        mask=rank_inside[:, None] & inside[None, :],
    )


@triton.jit
def add_input_gradient_kernel(
    grad_x,
    grad,
    down,
    seeds,
    num_tokens,
    width,
    rank,
    threshold,
    keep_scale,
    grad_x_stride,
    grad_stride,
    ADAPTERS: tl.constexpr,
    DROPOUT: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANK: tl.constexpr,
):
    """Grid (tiles of tokens, tiles of columns)."""
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank_index = tl.arange(0, RANK)
    row_inside = row < num_tokens
    inside = column < width
    rank_inside = rank_index < rank
    total = tl.zeros((TOKENS, COLUMNS), dtype=tl.float32)
    for adapter in tl.static_range(ADAPTERS):
        change = tl.load(
            grad + row.to(tl.int64)[:, None] * grad_stride + adapter * rank + rank_index[None, :],
            mask=row_inside[:, None] & rank_inside[None, :],
            other=0.0,
        )
        matrix = tl.load(
            down + (adapter * rank + rank_index[:, None]).to(tl.int64) * width + column[None, :],
            mask=rank_inside[:, None] & inside[None, :],
            other=0.0,
        )
        product = tl.dot(change.to(matrix.dtype), matrix, input_precision="ieee")
        if DROPOUT:
            product = tl.where(kept(seeds, adapter, row, column, threshold), product, 0.0)
        total += product
    address = grad_x + row.to(tl.int64)[:, None] * grad_x_stride + column[None, :]
    mask = row_inside[:, None] & inside[None, :]
    value = tl.load(address, mask=mask, other=0.0).to(tl.float32)
    tl.store(address, value + total * keep_scale, mask=mask)


def _tile_rank(rank: int) -> int:
    return max(_SMALLEST_RANK, int(triton.next_power_of_2(rank)))


def down_project(
    x: torch.Tensor, down: torch.Tensor, seeds: torch.Tensor, probability: float
) -> torch.Tensor:
    """``[T, n * r]``; see ``reference.down_project``. ``x`` and ``down`` share a dtype."""
    tokens, width = x.shape
    adapters, rank, _ = down.shape
    out = x.new_empty(tokens, adapters * rank)
    down_project_kernel[(triton.cdiv(tokens, _TOKENS), adapters)](
        x,
        down,
        seeds,
        out,
        tokens,
        width,
        rank,
        dropout_threshold(probability),
        1.0 / (1.0 - probability),
        x.stride(0),
        out.stride(0),
        DROPOUT=probability > 0.0,
        TOKENS=_TOKENS,
        COLUMNS=_COLUMNS,
        RANK=_tile_rank(rank),
        num_warps=4,
        num_stages=3,
    )
    return out


def down_gradient(
    x: torch.Tensor,
    grad: torch.Tensor,
    seeds: torch.Tensor,
    probability: float,
    rank: int,
) -> torch.Tensor:
    """``[n, r, K]`` float32; see ``reference.down_gradient``. The sum's order is fixed."""
    tokens, width = x.shape
    adapters = grad.shape[1] // rank
    tiles = triton.cdiv(width, _COLUMNS)
    splits = max(1, min(triton.cdiv(_LEAST_PROGRAMS, tiles * adapters), tokens // 64))
    tokens_a_split = triton.cdiv(triton.cdiv(tokens, splits), 16) * 16
    partial = torch.empty(splits, adapters, rank, width, dtype=torch.float32, device=x.device)
    down_gradient_kernel[(tiles, adapters, splits)](
        x,
        grad,
        seeds,
        partial,
        tokens,
        width,
        rank,
        dropout_threshold(probability),
        1.0 / (1.0 - probability),
        tokens_a_split,
        x.stride(0),
        grad.stride(0),
        DROPOUT=probability > 0.0,
        TOKENS=_TOKENS,
        COLUMNS=_COLUMNS,
        RANK=_tile_rank(rank),
        num_warps=4,
        num_stages=3,
    )
    return partial[0] if splits == 1 else partial.sum(0)


def add_input_gradient(
    grad_x: torch.Tensor,
    grad: torch.Tensor,
    down: torch.Tensor,
    seeds: torch.Tensor,
    probability: float,
) -> None:
    """``grad_x += …`` in place; see ``reference.add_input_gradient``."""
    tokens, width = grad_x.shape
    adapters, rank, _ = down.shape
    add_input_gradient_kernel[(triton.cdiv(tokens, _TOKENS), triton.cdiv(width, _COLUMNS))](
        grad_x,
        grad,
        down,
        seeds,
        tokens,
        width,
        rank,
        dropout_threshold(probability),
        1.0 / (1.0 - probability),
        grad_x.stride(0),
        grad.stride(0),
        ADAPTERS=adapters,
        DROPOUT=probability > 0.0,
        TOKENS=_TOKENS,
        COLUMNS=_COLUMNS,
        RANK=_tile_rank(rank),
        num_warps=4,
    )

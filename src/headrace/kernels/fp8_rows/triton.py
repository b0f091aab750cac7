"""FP8 quantization of a row in one program: its largest magnitude first, then its values."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096
_TILE = 64


@triton.jit
def quantize_rows_kernel(
    x,
    column_factor,
    out,
    scales,
    width,
    x_stride,
    out_stride,
    HAS_FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows,). The second pass reads the row from the cache."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    peak = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + lane
        inside = column < width
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_FACTOR:
            value *= tl.load(column_factor + column, mask=inside, other=0.0)
        peak = tl.maximum(peak, tl.abs(value))
    scale = tl.maximum(tl.max(peak, axis=0) / 448.0, 1e-12)
    tl.store(scales + row, scale)
    inverse = 1.0 / scale
    for start in range(0, width, BLOCK):
        column = start + lane
        inside = column < width
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_FACTOR:
            value *= tl.load(column_factor + column, mask=inside, other=0.0)
        value = tl.minimum(tl.maximum(value * inverse, -448.0), 448.0)
        tl.store(out + row * out_stride + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def transpose_bytes_kernel(source, out, num_rows, num_columns, TILE: tl.constexpr):
    """Grid (tiles of rows, tiles of columns) of a contiguous matrix of bytes."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    value = tl.load(source + row.to(tl.int64)[:, None] * num_columns + column[None, :], mask=inside)
    tl.store(
        out + column.to(tl.int64)[:, None] * num_rows + row[None, :],
        tl.trans(value),
        mask=(column < num_columns)[:, None] & (row < num_rows)[None, :],
    )


def quantize_rows(
    x: torch.Tensor, column_factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn values and float32 scales; see ``reference.quantize_rows``."""
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    quantize_rows_kernel[(rows,)](
        x,
        scales if column_factor is None else column_factor,
        out,
        scales,
        width,
        x.stride(0),
        out.stride(0),
        HAS_FACTOR=column_factor is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(width)),
        num_warps=8,
    )
    return out, scales


def transpose_bytes(source: torch.Tensor) -> torch.Tensor:
    """``source.t().contiguous()`` of a contiguous uint8 matrix, in coalesced tiles."""
    rows, columns = source.shape
    out = source.new_empty(columns, rows)
    transpose_bytes_kernel[(triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE))](
        source, out, rows, columns, TILE=_TILE, num_warps=4
    )
    return out

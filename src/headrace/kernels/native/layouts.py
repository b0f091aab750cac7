"""Matrices rearranged for the native kernels: 32 rows interleaved, see ``kernel_table.hpp``.

Interleaving lets one vector hold a piece of each of its rows, so that weights stream from memory
in the order in which they are used and a dot product never crosses vector lanes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headrace.kernels.native.memory import huge_page_zeros

TILE_ROWS = 32
_BLOCK = 32

BLOCK_FORMATS = {"Q4_0": "q4_0", "Q4_1": "q4_1", "Q8_0": "q8_0"}
"""GGUF types that are computed as they are, and the names of their formats; K-quants are repacked
to these (``modeling.loading.gguf_repack``)."""

_HEADER_HALVES = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}


def interleave_dense(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[N, K] as tiles of ``dtype``, float32 or bfloat16, in bytes.

    Raises:
        ValueError: An odd K in bfloat16, or another dtype.
    """
    per_unit = {torch.float32: 1, torch.bfloat16: 2}.get(dtype)
    if per_unit is None:
        raise ValueError(f"no layout for {dtype}")
    if matrix.shape[1] % per_unit:
        raise ValueError(f"K must be even in bfloat16, got {matrix.shape[1]}")
    padded = _pad_rows(matrix.to(dtype))
    units = padded.view(-1, TILE_ROWS, padded.shape[1] // per_unit, per_unit)
    tiles = huge_page_zeros(padded.numel(), dtype)
    tiles.view(units.transpose(1, 2).shape).copy_(units.transpose(1, 2))
    return tiles.view(torch.uint8)


def interleave_blocks(data: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows of GGUF blocks [N, bytes per row] as tiles of the same blocks, in bytes.

    Raises:
        ValueError: A ``kind`` outside ``BLOCK_FORMATS``.
    """
    if kind not in BLOCK_FORMATS:
        raise ValueError(f"no layout for GGUF type {kind}")
    halves = _HEADER_HALVES[kind]
    units = 8 if kind == "Q8_0" else 4
    block_bytes = 2 * halves + 4 * units
    rows = _pad_rows(data)
    blocks = rows.view(-1, TILE_ROWS, rows.shape[1] // block_bytes, block_bytes)
    tiles, count = blocks.shape[0], blocks.shape[2]
    scales = blocks[..., : 2 * halves].contiguous().view(torch.int16)
    quants = blocks[..., 2 * halves :].contiguous().view(torch.int32)
    result = huge_page_zeros(rows.numel(), torch.uint8).view(tiles, count, TILE_ROWS * block_bytes)
    header = 2 * halves * TILE_ROWS
    result[..., :header].view(torch.int16).view(tiles, count, halves, TILE_ROWS).copy_(
        scales.permute(0, 2, 3, 1)
    )
    body = result[..., header:].view(torch.int32).view(tiles, count, units, TILE_ROWS)
    body.copy_(quants.permute(0, 2, 3, 1))
    if kind == "Q8_0":
        # Kept as quant + 128: VNNI multiplies unsigned by signed bytes.
        result[..., header:] ^= 0x80
    return result.view(-1)


def _pad_rows(rows: torch.Tensor) -> torch.Tensor:
    return F.pad(rows, (0, 0, 0, -rows.shape[0] % TILE_ROWS)).contiguous()

"""Which ways to compute a linear are worth measuring for a number of tokens."""

from __future__ import annotations

from itertools import product

import triton

from headrace.kernels.linear import hopper
from headrace.kernels.linear.triton import LIBRARY, GemmChoice
from headrace.kernels.triton_launch import GpuTraits

_MOST_TOKENS_WIDE, _MOST_TOKENS = 64, 256
"""Beyond, Triton's kernels are not measured; on Hopper others win from fewer tokens on."""

_FEWEST_TOKENS_CLUSTERED = 129
"""Those that more than one program of a cluster serves."""

_HOPPER_TILES = 2

_Tile = tuple[int, int, int, int, tuple[int, ...]]
"""Weight rows, tokens, columns at a time, warps, depths of the load pipeline."""

_TILES: dict[int, tuple[_Tile, ...]] = {
    16: (
        (64, 16, 256, 4, (3, 4)),
        (64, 16, 128, 4, (4, 6)),
        (128, 16, 128, 4, (3, 4)),
    ),
    32: (
        (64, 32, 128, 4, (4, 6)),
        (64, 32, 256, 4, (3,)),
        (128, 32, 128, 4, (3, 4)),
    ),
    64: (
        (64, 64, 128, 4, (3, 4)),
        (128, 64, 128, 4, (3, 4)),
    ),
    128: (
        (128, 64, 128, 4, (3, 4)),
        (64, 128, 64, 4, (4, 6)),
        (64, 128, 128, 4, (3, 4)),
        (128, 128, 64, 8, (4, 6)),
        (128, 128, 128, 8, (3,)),
        (256, 128, 64, 8, (3, 4)),
    ),
    256: (
        (128, 128, 64, 8, (4, 6)),
        (128, 128, 128, 8, (3,)),
        (128, 256, 64, 8, (3, 4)),
        (256, 128, 64, 8, (3, 4)),
    ),
}
_PREFETCHED_COLUMNS: tuple[int, ...] = (512, 2048)


def candidates(
    num_rows: int, columns: int, tokens: int, traits: GpuTraits, wide_output: bool = False
) -> list[GemmChoice]:
    """The vendor library first, then kernels of our own that fit the device and fill it.

    Args:
        num_rows: N of the weight.
        columns: K.
        tokens: Of the input.
        wide_output: The output is float32, which the Hopper kernel does not write.
    """
    choices = [LIBRARY]
    if not wide_output:
        choices += _hopper_candidates(num_rows, tokens, traits)
    if tokens > (_MOST_TOKENS_WIDE if traits.wide_matrix_unit else _MOST_TOKENS):
        return choices
    if tokens == 1:
        for rows, block_k, warps in ((4, 2048, 8), (4, 2048, 4), (4, 1024, 4), (8, 1024, 8)):
            if block_k <= triton.next_power_of_2(columns):
                choices.append(GemmChoice(kind="gemv", rows=rows, block_k=block_k, warps=warps))
        return choices
    bucket = max(16, triton.next_power_of_2(tokens))
    for (rows, tile_tokens, block_k, warps, depths), shares in product(
        _TILES[bucket], (1, 2, 3, 4)
    ):
        programs = triton.cdiv(num_rows, rows) * triton.cdiv(tokens, tile_tokens) * shares
        fills = programs >= traits.multiprocessors * 0.7
        enough = shares == 1 or programs <= 4 * traits.multiprocessors
        if not (fills and enough and columns >= 3 * block_k * shares):
            continue
        prefetches = _PREFETCHED_COLUMNS if bucket <= 64 else _PREFETCHED_COLUMNS[:1]
        if not traits.dependent_launch:
            prefetches = (0,)
        # Without wgmma a pipeline keeps one tile in registers, and a short one is enough.
        deep = traits.wide_matrix_unit
        for stages, prefetch in product(depths if deep else (2,), prefetches):
            tile_bytes = (rows + tile_tokens) * block_k * 2
            if tile_bytes * (stages if deep else stages - 1) > traits.shared_memory:
                continue
            choices.append(
                GemmChoice(
                    kind="skinny",
                    rows=rows,
                    tokens=tile_tokens,
                    block_k=block_k,
                    shares=shares,
                    stages=stages,
                    warps=warps,
                    prefetch=prefetch,
                )
            )
    return choices


def _hopper_candidates(num_rows: int, tokens: int, traits: GpuTraits) -> list[GemmChoice]:
    """The tiles that should take least time; wide ones first among equals."""
    if tokens < _FEWEST_TOKENS_CLUSTERED or not traits.warpgroup_kernels:
        return []
    best = sorted(hopper.ROWS, key=lambda rows: hopper.cost(tokens, num_rows, rows, traits))
    return [GemmChoice(kind="hopper", rows=rows) for rows in best[:_HOPPER_TILES]]


def untuned(num_rows: int, columns: int, tokens: int, traits: GpuTraits) -> GemmChoice:
    """A choice without measurement: a matrix-vector kernel for one token, else the library."""
    if tokens == 1:
        return candidates(num_rows, columns, tokens, traits)[-1]
    return LIBRARY

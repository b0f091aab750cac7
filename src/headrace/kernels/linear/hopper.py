"""Products of many tokens on Hopper: which tile a shape takes, and its launch; see ``hopper.cu``.

The shape of the kernel (a producer and two consumer warpgroups, clusters that share what they
fetch, persistent programs) is CUTLASS's for Hopper, whose sources and NVIDIA's PTX manual describe
it.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from importlib.resources import files
from math import ceil
from typing import Literal

import torch

from headrace.kernels import cuda_source, hopper_source
from headrace.kernels.hopper_source import MATRIX_ALIGNMENT, SHARED_MEMORY
from headrace.kernels.triton_launch import GpuTraits

ROWS = (256, 224, 192, 128, 96, 64)
"""Weight rows of a tile; which of them splits a weight into whole waves differs."""

GATED_ROWS = (256, 224, 192)
_MODES = {"store": 0, "add": 1, "gated": 2}
_CLUSTER, _CLUSTER_TOKENS, _THREADS = 2, 256, 384
_TILE_TOKENS, _DEPTH = 128, 64
_MOST_STAGES = 8
_ROWS_PER_TILE = 24
"""A tile's own time, its x and its outputs, as so many of its weight rows; measured on an H100."""

_WELL_FILLED = 0.9
"""Share of the tiles' work that is wanted."""

_MAPS = 4096

Mode = Literal["store", "add", "gated"]


def cost(tokens: int, num_rows: int, tile_rows: int, traits: GpuTraits) -> int:
    """What tiles in waves over the device take, in weight rows of one tile; to compare tiles."""
    waves = ceil(_tiles(tokens, num_rows, tile_rows) / (traits.multiprocessors // _CLUSTER))
    return waves * (tile_rows + _ROWS_PER_TILE)


def gated_rows(tokens: int, width: int, traits: GpuTraits) -> int | None:
    """Weight rows of the tile for a gated product; ``None``: the vendor library is faster.

    On an H100 a device that is filled well saves the activation's pass over memory, 8 % of both
    at 2,048 and 8,192 tokens of Llama-3-8B's shape.
    """
    if not traits.warpgroup_kernels:
        return None
    best = min(GATED_ROWS, key=lambda rows: cost(tokens, 2 * width, rows, traits))
    tiles = _tiles(tokens, 2 * width, best)
    at_once = traits.multiprocessors // _CLUSTER
    wanted = tokens * 2 * width / (_CLUSTER_TOKENS * best)
    return best if wanted >= _WELL_FILLED * ceil(tiles / at_once) * at_once else None


def _tiles(tokens: int, num_rows: int, tile_rows: int) -> int:
    return ceil(tokens / _CLUSTER_TOKENS) * ceil(num_rows / tile_rows)


def takes(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether the copy engine can fetch these matrices and the kernel can store the result."""
    return (
        out.dtype == x.dtype
        and all(matrix.stride(1) == 1 for matrix in (x, weight, out))
        and all(matrix.data_ptr() % 16 == 0 for matrix in (x, weight, out))
        and all(matrix.stride(0) % 8 == 0 for matrix in (x, weight, out))
        and out.shape[1] % 8 == 0
    )


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    mode: Mode,
    rows: int,
    traits: GpuTraits,
) -> None:
    """``out[T, N] = x[T, K] @ weight[N, K].T``, its sum with ``out``, or its gated half.

    Args:
        x, weight, out: bfloat16 or float16, such as ``takes`` accepts.
        mode: ``add``: ``out +=``, the sum rounded once; ``gated``: ``weight`` [2 * N, K] holds the
            gate's rows, then the up projection's, and ``out`` is silu(gate) * up.
        rows: One of ``ROWS``.

    Raises:
        RuntimeError: The compiler or the driver fails.
    """
    tokens, columns = x.shape
    width = out.shape[1]
    num_rows = 2 * width if mode == "gated" else width
    clusters = min(_tiles(tokens, num_rows, rows), traits.multiprocessors // _CLUSTER)
    _kernel(mode, rows, x.dtype, x.device.index or 0).launch(
        _CLUSTER * clusters,
        _THREADS,
        (
            _map(x.data_ptr(), *x.shape, x.stride(0), x.dtype, _TILE_TOKENS),
            _map(weight.data_ptr(), *weight.shape, weight.stride(0), weight.dtype, rows // 2),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_longlong(out.stride(0)),
            ctypes.c_int(tokens),
            ctypes.c_int(width),
            ctypes.c_int(columns),
        ),
        traits.dependent_launch,
    )


def load(mode: Mode, rows: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile a kernel, if no process has yet, and load it, so that no step has to.

    Raises:
        RuntimeError: As ``product``.
    """
    _kernel(mode, rows, dtype, device.index or 0)


@cache
def _kernel(mode: Mode, rows: int, dtype: torch.dtype, device: int) -> cuda_source.Kernel:
    cubin = hopper_source.compile_once(source(mode, rows, dtype))
    shared_bytes = _stages(rows) * _stage_bytes(rows) + MATRIX_ALIGNMENT
    return cuda_source.Kernel(cubin, kernel_name(mode), shared_bytes, device)


@lru_cache(_MAPS)
def _map(
    address: int, rows: int, columns: int, stride: int, dtype: torch.dtype, box_rows: int
) -> cuda_source.TensorMap:
    return cuda_source.TensorMap(address, dtype, (columns, rows), (stride,), (_DEPTH, box_rows))


def _stage_bytes(rows: int) -> int:
    return (_TILE_TOKENS + rows) * _DEPTH * 2


def _stages(rows: int) -> int:
    return min(_MOST_STAGES, (SHARED_MEMORY - 2 * MATRIX_ALIGNMENT) // _stage_bytes(rows))


def kernel_name(mode: Mode) -> str:
    """As a profile shows it."""
    return f"hopper_{mode}_product"


def source(mode: Mode, rows: int, dtype: torch.dtype) -> str:
    """The whole text of a kernel."""
    constants = (
        f"#define KERNEL {kernel_name(mode)}\n"
        f"constexpr int kMode = {_MODES[mode]}, kRows = {rows}, kStages = {_stages(rows)};\n"
    )
    multiply = hopper_source.product("multiply", rows, dtype)
    body = files(__package__).joinpath("hopper.cu").read_text()
    return hopper_source.header(dtype) + constants + multiply + body

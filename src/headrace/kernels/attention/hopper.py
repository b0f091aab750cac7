"""Attention of whole prompts on Hopper: which steps take it, and its launch; see ``hopper.cu``."""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache
from importlib.resources import files

import torch

from headrace.kernels import cuda_source, hopper_source
from headrace.kernels.cuda_source import TensorMap
from headrace.kernels.hopper_source import MATRIX_ALIGNMENT
from headrace.kernels.triton_launch import GpuTraits

KERNEL_NAME = "hopper_attention"
HEAD_SIZES = (64, 128)
GROUPS = (1, 2, 4, 8, 16)
_THREADS = 384
_ROWS, _KEYS, _PANEL = 128, 128, 64
_TILES = 6
"""Two of queries, of keys and of values."""

_MAPS = 512


def takes(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    sliding_window: int | None,
    traits: GpuTraits,
) -> bool:
    """Whether there is a kernel for this device and these heads."""
    return (
        traits.warpgroup_kernels
        and head_dim in HEAD_SIZES
        and num_heads // num_kv_heads in GROUPS
        and sliding_window is None
    )


def prompt_attention(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    sequences: int,
    out: torch.Tensor,
    traits: GpuTraits,
) -> None:
    """``out[T, heads * head_dim]`` = causal attention within sequences of T / ``sequences`` tokens.

    Args:
        qkv: [T, (heads + 2 * kv_heads) * head_dim], queries and keys rotated; bfloat16 or float16.
        scale: Of the scores.

    Raises:
        RuntimeError: The compiler or the driver fails.
    """
    tokens, width = qkv.shape
    head_dim = width // (num_heads + 2 * num_kv_heads)
    group, length = num_heads // num_kv_heads, tokens // sequences
    row_tiles = -(-length // (_ROWS // group))
    programs = min(row_tiles * sequences * num_kv_heads, traits.multiprocessors)

    def tiles(first_head: int, heads: int, box_heads: int, box_tokens: int) -> TensorMap:
        address = qkv.data_ptr() + first_head * head_dim * qkv.itemsize
        sizes, box = (head_dim, heads, length, sequences), (_PANEL, box_heads, box_tokens, 1)
        return _map(address, qkv.dtype, sizes, qkv.stride(0), box)

    _kernel(head_dim, group, qkv.dtype, qkv.device.index or 0).launch(
        programs,
        _THREADS,
        (
            tiles(0, num_heads, group, _ROWS // group),
            tiles(num_heads, num_kv_heads, 1, _KEYS),
            tiles(num_heads + num_kv_heads, num_kv_heads, 1, _KEYS),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_longlong(out.stride(0)),
            ctypes.c_int(sequences),
            ctypes.c_int(length),
            ctypes.c_int(num_kv_heads),
            ctypes.c_float(scale * math.log2(math.e)),
        ),
        traits.dependent_launch,
    )


def load(head_dim: int, group: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile a kernel, if no process has yet, and load it, so that no step has to.

    Raises:
        RuntimeError: As ``prompt_attention``.
    """
    _kernel(head_dim, group, dtype, device.index or 0)


def source(head_dim: int, group: int, dtype: torch.dtype) -> str:
    """The whole text of a kernel."""
    return (
        hopper_source.header(dtype)
        + f"constexpr int kHeadDim = {head_dim}, kGroup = {group};\n"
        + hopper_source.product("multiply_scores", _KEYS, dtype)
        + hopper_source.product_of_registers("multiply_values", head_dim, dtype)
        + files(__package__).joinpath("hopper.cu").read_text()
    )


@cache
def _kernel(head_dim: int, group: int, dtype: torch.dtype, device: int) -> cuda_source.Kernel:
    cubin = hopper_source.compile_once(source(head_dim, group, dtype))
    shared_bytes = _TILES * _ROWS * head_dim * dtype.itemsize + MATRIX_ALIGNMENT
    return cuda_source.Kernel(cubin, KERNEL_NAME, shared_bytes, device)


@lru_cache(_MAPS)
def _map(
    address: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    row_stride: int,
    box: tuple[int, int, int, int],
) -> TensorMap:
    head_dim, _, length, _ = sizes
    strides = (head_dim, row_stride, length * row_stride)
    return TensorMap(address, dtype, sizes, strides, box)

"""Dequantization of the 4-bit normal float: a run of bytes in one program."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from headrace.kernels.nf4.reference import BLOCK, CODEBOOK

_BYTES = 2048


@triton.jit
def dequantize_kernel(
    packed, peaks, codebook, out, num_bytes, BYTES: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (runs of ``BYTES`` packed bytes,); ``BLOCK`` weights share a peak."""
    index = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    inside = index < num_bytes
    byte = tl.load(packed + index, mask=inside, other=0).to(tl.int32)
    peak = tl.load(peaks + index // (BLOCK // 2), mask=inside, other=0.0)
    first = tl.load(codebook + (byte >> 4)) * peak
    second = tl.load(codebook + (byte & 15)) * peak
    target = out + (index * 2)[:, None] + tl.arange(0, 2)[None, :]
    tl.store(target, tl.join(first, second), mask=tl.join(inside, inside))


@cache
def _codebook(device: torch.device) -> torch.Tensor:
    return torch.tensor(CODEBOOK, dtype=torch.float32, device=device)


def dequantize(packed: torch.Tensor, peaks: torch.Tensor, out: torch.Tensor) -> None:
    """Write the weights into ``out``; see ``reference.dequantize``."""
    size = packed.numel()
    dequantize_kernel[(triton.cdiv(size, _BYTES),)](
        packed, peaks, _codebook(packed.device), out, size, BYTES=_BYTES, BLOCK=BLOCK, num_warps=8
    )

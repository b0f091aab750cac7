"""GGUF's quantized blocks to floating point, in vectorised torch.

Block layouts: ggml's ``ggml-common.h`` and ``dequantize_row_*`` (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.modeling.operations import GGUFBlocks

_ELEMENTS_AT_ONCE = 1 << 18
"""Elements unpacked at once: the intermediates then stay in a core's cache."""


def dequantize(blocks: GGUFBlocks, dtype: torch.dtype) -> torch.Tensor:
    """The matrix [N, K] in ``dtype``; computed in float32 and rounded once.

    Raises:
        ValueError: An unknown block kind.
    """
    unpack = _UNPACK.get(blocks.kind)
    if unpack is None:
        raise ValueError(f"GGUF type {blocks.kind} is not implemented")
    rows, columns = blocks.shape
    result = torch.empty(rows, columns, dtype=dtype, device=blocks.data.device)
    block_bytes = BLOCK_BYTES[blocks.kind]
    chunk = max(1, _ELEMENTS_AT_ONCE // columns)
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        packed = blocks.data[first:last].reshape(-1, block_bytes)
        unpack(packed, result[first:last].view(packed.shape[0], -1))
    return result


def scales(blocks: GGUFBlocks) -> torch.Tensor:
    """The float16 numbers of all blocks, which are finite in a sound file."""
    packed = blocks.data.reshape(-1, BLOCK_BYTES[blocks.kind])
    offsets = _SCALE_BYTES[blocks.kind]
    return packed[:, offsets[0] : offsets[1]].contiguous().view(torch.float16)


def _half(packed: torch.Tensor, offset: int) -> torch.Tensor:
    """The float16 at a byte offset of each block, as float32 [blocks, 1]."""
    return packed[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _q4_0(packed: torch.Tensor, out: torch.Tensor) -> None:
    scale, nibbles = _half(packed, 0), packed[:, 2:]
    out[:, :16].copy_((nibbles & 15).float().sub_(8).mul_(scale))
    out[:, 16:].copy_((nibbles >> 4).float().sub_(8).mul_(scale))


def _q4_1(packed: torch.Tensor, out: torch.Tensor) -> None:
    scale, minimum, nibbles = _half(packed, 0), _half(packed, 2), packed[:, 4:]
    out[:, :16].copy_(torch.addcmul(minimum, (nibbles & 15).float(), scale))
    out[:, 16:].copy_(torch.addcmul(minimum, (nibbles >> 4).float(), scale))


def _q8_0(packed: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(packed[:, 2:].view(torch.int8).float().mul_(_half(packed, 0)))


def _q4_k(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Superblocks of 8 x 32: a 6-bit scale and minimum each, of a float16 pair for all."""
    scale, minimum = _half(packed, 0), _half(packed, 2)
    low, middle, high = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), dim=1)
    minimums = torch.cat((middle & 63, (high >> 4) | (middle >> 6 << 4)), dim=1)
    scales, minimums = scales.float() * scale, minimums.float() * minimum
    nibbles = packed[:, 16:].view(-1, 4, 1, 32)
    values = torch.cat((nibbles & 15, nibbles >> 4), dim=2).view(-1, 8, 32).float()
    out.view(-1, 8, 32).copy_(values.mul_(scales[..., None]).sub_(minimums[..., None]))


def _q6_k(packed: torch.Tensor, out: torch.Tensor) -> None:
    """Superblocks of 16 x 16: 4 low and 2 high bits apart, an 8-bit scale each."""
    low = packed[:, :128].view(-1, 2, 1, 64)
    high = packed[:, 128:192].view(-1, 2, 1, 32)
    scale = packed[:, 192:208].view(torch.int8).float() * _half(packed, 208)
    low_bits = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=packed.device)
    high_bits = (high >> shifts.view(1, 1, 4, 1)) & 3
    values = (low_bits | (high_bits << 4)).view(-1, 16, 16).float().sub_(32)
    out.view(-1, 16, 16).copy_(values.mul_(scale[..., None]))


BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34, "Q4_K": 144, "Q6_K": 210}
BLOCK_SIZE = {"Q4_0": 32, "Q4_1": 32, "Q8_0": 32, "Q4_K": 256, "Q6_K": 256}
_SCALE_BYTES = {"Q4_0": (0, 2), "Q4_1": (0, 4), "Q8_0": (0, 2), "Q4_K": (0, 4), "Q6_K": (208, 210)}
_UNPACK: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}

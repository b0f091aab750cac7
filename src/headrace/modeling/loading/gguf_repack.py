"""GGUF's K-quants as blocks of 32 of at least as many bits, which the CPU kernels compute with.

Q4_K (4.5 bits a weight) becomes Q4_1 (5 bits): the same quants, each sub-block's scale and minimum
rounded to float16. Q6_K (6.6 bits), whose scales hold for 16 weights, is rounded to Q8_0 (8.5).
"""

from __future__ import annotations

import torch

from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.operations import GGUFBlocks

_ROWS_AT_ONCE = 1024


def as_plain_blocks(blocks: GGUFBlocks) -> GGUFBlocks:
    """Q4_K as Q4_1 and Q6_K as Q8_0; any other kind as it is."""
    if blocks.kind == "Q4_K":
        return _q4_k_as_q4_1(blocks)
    return as_q8_0(blocks) if blocks.kind == "Q6_K" else blocks


def as_q8_0(blocks: GGUFBlocks) -> GGUFBlocks:
    """Blocks of any kind rounded to Q8_0: a float16 scale and 32 signed bytes."""
    if blocks.kind == "Q8_0":
        return blocks
    rows, columns = blocks.shape
    result = torch.empty(rows, columns // 32, 34, dtype=torch.uint8)
    for first in range(0, rows, _ROWS_AT_ONCE):
        packed = blocks.data[first : first + _ROWS_AT_ONCE]
        part = GGUFBlocks(packed, blocks.kind, (len(packed), columns))
        values = dequantize(part, torch.float32).view(len(packed), -1, 32)
        scale = (values.abs().amax(-1, keepdim=True) / 127).half()
        # Rounded with the scale as it is kept; what a scale of 0 divides is 0 or below its reach.
        quants = (values / scale.float()).nan_to_num(0.0, 127.0, -127.0).round().clamp(-127, 127)
        result[first : first + len(packed), :, :2] = scale.view(torch.uint8)
        result[first : first + len(packed), :, 2:] = quants.to(torch.int8).view(torch.uint8)
    return GGUFBlocks(result.view(rows, -1), "Q8_0", blocks.shape)


def _q4_k_as_q4_1(blocks: GGUFBlocks) -> GGUFBlocks:
    packed = blocks.data.reshape(-1, 144)
    halves = packed[:, :4].contiguous().view(torch.float16).float()
    low, middle, high = packed[:, 4:8], packed[:, 8:12], packed[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), dim=1).float()
    minimums = torch.cat((middle & 63, (high >> 4) | (middle >> 6 << 4)), dim=1).float()
    header = torch.stack((scales * halves[:, :1], minimums * -halves[:, 1:]), dim=-1).half()
    # Two sub-blocks share 32 bytes, one in each nibble; in Q4_1 two halves of one block do.
    nibbles = packed[:, 16:].view(-1, 4, 1, 32)
    quants = torch.cat((nibbles & 15, nibbles >> 4), dim=2).view(-1, 8, 2, 16)
    body = quants[:, :, 0] | (quants[:, :, 1] << 4)
    whole = torch.cat((header.view(torch.uint8).view(-1, 8, 4), body), dim=-1)
    return GGUFBlocks(whole.view(blocks.shape[0], -1), "Q4_1", blocks.shape)

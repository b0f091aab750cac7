"""Unpacked GGUF blocks equal what the ``gguf`` package makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from headrace.modeling.loading.gguf_dequantize import BLOCK_BYTES, BLOCK_SIZE, dequantize
from headrace.modeling.operations import GGUFBlocks

HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
"""Where the float16 numbers of a block are."""


def random_blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """Every bit pattern of quants and sub-scales, with finite float16 scales."""
    rng = np.random.default_rng(7)
    count = rows * columns // BLOCK_SIZE[kind]
    data = rng.integers(0, 256, (count, BLOCK_BYTES[kind]), dtype=np.uint8)
    for offset in HALVES[kind]:
        scale = rng.normal(0, 0.1, count).astype(np.float16)
        data[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", list(BLOCK_BYTES))
@pytest.mark.parametrize("shape", [(1, 256), (7, 512), (1500, 768)])
def test_every_block_type(kind: str, shape: tuple[int, int]) -> None:
    data = random_blocks(kind, *shape)
    expected = torch.from_numpy(quants.dequantize(data, GGMLQuantizationType[kind]))
    blocks = GGUFBlocks(torch.from_numpy(data), kind, shape)
    torch.testing.assert_close(dequantize(blocks, torch.float32), expected, rtol=1e-6, atol=1e-6)
    rounded = dequantize(blocks, torch.bfloat16)
    torch.testing.assert_close(rounded.float(), expected, rtol=2**-8, atol=1e-6)


def test_an_unknown_type_is_refused() -> None:
    blocks = GGUFBlocks(torch.zeros(1, 32, dtype=torch.uint8), "IQ2_XS", (1, 32))
    with pytest.raises(ValueError, match="IQ2_XS"):
        dequantize(blocks, torch.float32)

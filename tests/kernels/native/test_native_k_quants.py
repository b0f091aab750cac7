"""K-quants are computed packed, in blocks of at least as many bits."""

from __future__ import annotations

import pytest
import torch

from headrace.kernels.linear.reference import linear
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.gguf_repack import as_plain_blocks, as_q8_0
from headrace.modeling.operations import GGUFBlocks

BLOCK_BYTES = {"Q4_K": 144, "Q6_K": 210}


def k_quants(n: int, k: int, kind: str) -> GGUFBlocks:
    """Random superblocks with small finite scales."""
    data = torch.randint(0, 256, (n, k // 256, BLOCK_BYTES[kind]), dtype=torch.uint8)
    count, place = (2, 0) if kind == "Q4_K" else (1, 208)
    scales = (torch.rand(n, k // 256, count) * 1e-3 + 1e-4).half().view(torch.uint8)
    data[..., place : place + 2 * count] = scales
    return GGUFBlocks(data.view(n, -1), kind, (n, k))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kind", "becomes", "bound"), [("Q4_K", "Q4_1", 4e-4), ("Q6_K", "Q8_0", 5e-3)]
)
def test_repacked_weights_are_those_of_the_file(kind: str, becomes: str, bound: float) -> None:
    torch.manual_seed(0)
    blocks = k_quants(70, 512, kind)
    repacked = as_plain_blocks(blocks)
    assert (repacked.kind, repacked.shape) == (becomes, blocks.shape)
    exact = dequantize(blocks, torch.float32)
    assert relative_error(dequantize(repacked, torch.float32), exact) < bound


@pytest.mark.parametrize("kinds", [("Q4_K",), ("Q6_K",), ("Q4_K", "Q4_K", "Q6_K")])
def test_a_linear_of_k_quants_stays_packed(instruction_set: str, kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    parts = [k_quants(45, 512, kind) for kind in kinds]
    operations = NativeCpuBackend(torch.float32, 2, instruction_set).operations
    weight = operations.pack_linear(list(parts), None)
    assert weight.format == ("q4_1" if kinds == ("Q4_K",) else "q8_0")
    x = torch.randn(5, 512)
    expected, actual = torch.empty(5, 45 * len(parts)), torch.empty(5, 45 * len(parts))
    linear(x, torch.cat([dequantize(part, torch.float32) for part in parts]), None, expected)
    operations.linear(x, weight, actual)
    assert relative_error(actual, expected) < 0.012


def test_all_zeros_and_tiny_blocks_stay_finite() -> None:
    blocks = k_quants(2, 256, "Q6_K")
    blocks.data.zero_()
    assert dequantize(as_q8_0(blocks), torch.float32).eq(0).all()
    blocks.data[1] = 1  # A scale of 1.5e-5 * 1 under the smallest normal float16.
    assert dequantize(as_q8_0(blocks), torch.float32).isfinite().all()


def test_unpacked_when_asked(instruction_set: str) -> None:
    operations = NativeCpuBackend(torch.float32, 1, instruction_set, quantized=False).operations
    assert operations.pack_linear([k_quants(32, 256, "Q4_K")], None).format == "float32"

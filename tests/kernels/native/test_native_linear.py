"""Linears of every layout against float32, and what a row's result may depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kernels.linear.reference import linear
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.operations import GGUFBlocks, WeightPart

RandomBlocks = Callable[[int, int, str], GGUFBlocks]
KINDS = ["dense", "Q4_0", "Q4_1", "Q8_0"]
# Whole and partial tiles of 32 rows, one and several blocks of 32 columns.
SHAPES = [(64, 32), (45, 96), (130, 576)]
ROWS = [1, 2, 3, 5, 8, 13, 27]


def make_weight(kind: str, n: int, k: int, dtype: torch.dtype, blocks: RandomBlocks) -> WeightPart:
    return torch.randn(n, k).to(dtype) if kind == "dense" else blocks(n, k, kind)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_float32_at_odd_sizes(
    backend: NativeCpuBackend, dtype: torch.dtype, kind: str, random_blocks: RandomBlocks
) -> None:
    torch.manual_seed(0)
    # Blocks round activations to 8 bits: half a step of 127 at the largest of 32.
    bound = 3e-6 if kind == "dense" else 0.012
    for n, k in SHAPES:
        part = make_weight(kind, n, k, dtype, random_blocks)
        bias = torch.randn(n).to(dtype)
        weight = backend.operations.pack_linear([part], bias)
        wide = dequantize(part, torch.float32) if isinstance(part, GGUFBlocks) else part
        for rows in ROWS:
            x = torch.randn(rows, k).to(dtype)
            expected, actual = torch.empty(rows, n), torch.empty(rows, n)
            linear(x, wide, bias, expected)
            backend.operations.linear(x, weight, actual)
            assert relative_error(actual, expected) < bound, (n, k, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_nothing_but_itself(
    instruction_set: str, dtype: torch.dtype, kind: str, random_blocks: RandomBlocks
) -> None:
    torch.manual_seed(0)
    x = torch.randn(131, 96).to(dtype)
    part = make_weight(kind, 70, 96, dtype, random_blocks)
    results = []
    for threads in (1, 3):
        operations = NativeCpuBackend(dtype, threads, instruction_set).operations
        weight = operations.pack_linear([part], None)
        whole = torch.empty(131, 70, dtype=dtype)
        operations.linear(x, weight, whole)
        results.append(whole)
        for first, last in [(0, 1), (3, 5), (7, 20), (100, 131)]:
            piece = torch.empty(last - first, 70, dtype=dtype)
            operations.linear(x[first:last], weight, piece)
            assert torch.equal(piece, whole[first:last])
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_exact_where_activations_need_no_rounding(
    instruction_set: str, kind: str, random_blocks: RandomBlocks
) -> None:
    """Each row of x picks one column; what comes out is the dequantized weight."""
    backend = NativeCpuBackend(torch.float32, 2, instruction_set)
    part = random_blocks(40, 64, kind)
    # 127 at most: the scale of each block is then exactly 1.
    x = torch.eye(64) * 127
    out = torch.empty(64, 40)
    backend.operations.linear(x, backend.operations.pack_linear([part], None), out)
    torch.testing.assert_close(out.T / 127, dequantize(part, torch.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_in_their_row_and_come_out(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    kind: str,
    poison: float,
    random_blocks: RandomBlocks,
) -> None:
    torch.manual_seed(0)
    weight = backend.operations.pack_linear([make_weight(kind, 33, 64, dtype, random_blocks)], None)
    x = torch.randn(9, 64).to(dtype)
    x[4, 40] = poison
    out = torch.empty(9, 33)
    backend.operations.linear(x, weight, out)
    assert not torch.isfinite(out[4]).any()
    assert torch.isfinite(out[[0, 1, 2, 3, 5, 6, 7, 8]]).all()


def test_zeros_and_subnormals_give_zeros(instruction_set: str, random_blocks: RandomBlocks) -> None:
    backend = NativeCpuBackend(torch.float32, 2, instruction_set)
    weight = backend.operations.pack_linear([random_blocks(32, 32, "Q4_1")], None)
    x = torch.zeros(2, 32)
    x[1] = 1e-40
    out = torch.full((2, 32), 7.0)
    backend.operations.linear(x, weight, out)
    assert torch.equal(out, torch.zeros(2, 32))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_dominant_activation_costs_its_block_no_precision(
    backend: NativeCpuBackend, dtype: torch.dtype, kind: str, random_blocks: RandomBlocks
) -> None:
    """Rounded with one scale, the others of its block would be wrong by a third."""
    torch.manual_seed(0)
    part = random_blocks(45, 608, kind)
    weight = backend.operations.pack_linear([part], None)
    x = torch.randn(9, 608).to(dtype)
    for row, column in [(0, 0), (0, 255), (0, 256), (3, 31), (3, 607), (8, 300)]:
        x[row, column] = 1000.0 * (-1) ** column
    large = x.abs() > 500
    actual, without = torch.empty(9, 45), torch.empty(9, 45)
    backend.operations.linear(x, weight, actual)
    backend.operations.linear(x.masked_fill(large, 0), weight, without)
    wide = dequantize(part, torch.float32)
    alone = x.float().masked_fill(~large, 0) @ wide.T
    # What is left beside the large ones' own part is as exact as without them.
    bound = 2e-5 * float(alone.abs().max())
    torch.testing.assert_close(actual - alone, without, rtol=0.0, atol=bound)


@pytest.mark.parametrize("rows", [1, 6, 33, 130])
@pytest.mark.parametrize("apart", [0, 1])
def test_every_block_may_have_a_dominant_activation(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    rows: int,
    apart: int,
    random_blocks: RandomBlocks,
) -> None:
    """In a column that all rows share, or (``apart``) in as many columns as there are."""
    torch.manual_seed(0)
    part = random_blocks(70, 672, "Q4_1")
    weight = backend.operations.pack_linear([part], None)
    x = torch.randn(rows, 672)
    for row in range(rows):
        for block in range(21):
            x[row, 32 * block + (apart * row + block) % 32] = 100.0
    x = x.to(dtype)
    actual = torch.empty(rows, 70)
    backend.operations.linear(x, weight, actual)
    wide = dequantize(part, torch.float32)
    # A dominant element is exact; of the others a step of the scale is a 40th of their size.
    rest = x.float().masked_fill(x > 50, 0)
    error = (actual - x.float() @ wide.T).norm(dim=1) / (rest @ wide.T).norm(dim=1)
    assert float(error.max()) < 0.02


def test_parts_are_stacked(backend: NativeCpuBackend, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts: list[WeightPart] = [torch.randn(n, 64).to(dtype) for n in (7, 40, 1)]
    weight = backend.operations.pack_linear(parts, None)
    x = torch.randn(3, 64).to(dtype)
    expected, actual = torch.empty(3, 48), torch.empty(3, 48)
    linear(x, torch.cat([p for p in parts if isinstance(p, torch.Tensor)]), None, expected)
    backend.operations.linear(x, weight, actual)
    assert relative_error(actual, expected) < 3e-6
    assert (weight.out_features, weight.in_features) == (48, 64)


def test_blocks_are_held_in_the_bytes_of_the_file(random_blocks: RandomBlocks) -> None:
    operations = NativeCpuBackend(threads=1).operations
    for kind, block_bytes in [("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)]:
        weight = operations.pack_linear([random_blocks(64, 96, kind)], None)
        assert weight.num_bytes == 64 * 3 * block_bytes


def test_a_tied_head_shares_the_embedding(random_blocks: RandomBlocks) -> None:
    operations = NativeCpuBackend(threads=1).operations
    table = random_blocks(64, 64, "Q8_0")
    assert operations.pack_embedding(table) is operations.pack_linear([table], None)
    other = random_blocks(64, 64, "Q8_0")
    assert operations.pack_linear([other], None) is not operations.pack_embedding(table)

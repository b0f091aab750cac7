"""Low-rank updates chosen token by token, against their plain torch reference."""

from __future__ import annotations

import pytest
import torch

from headrace.kernels import native
from headrace.kernels.low_rank.reference import add_low_rank
from headrace.kernels.low_rank.stack import LowRankStack, LowRankUpdate
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.step import StepInputs

CPU = torch.device("cpu")
NOTHING = torch.empty(0, dtype=torch.int32)


def random_stack(
    dtype: torch.dtype, in_features: int, widths: tuple[int, ...], ranks: list[list[int]]
) -> LowRankStack:
    """Rank 0: the adapter leaves that projection alone."""

    def update(rank: int, width: int) -> LowRankUpdate | None:
        if rank == 0:
            return None
        return LowRankUpdate(torch.randn(rank, in_features), torch.randn(width, rank), 1 / rank)

    adapters = [[update(r, w) for r, w in zip(row, widths, strict=True)] for row in ranks]
    return LowRankStack.build(adapters, widths, in_features, dtype, CPU)


def step_of(adapter_of_token: torch.Tensor) -> StepInputs:
    return StepInputs(*[NOTHING] * 8, 1, 1, adapter_of_token=adapter_of_token)


@pytest.mark.parametrize(
    ("in_features", "widths", "ranks"),
    [
        (576, (576, 192, 192), [[8, 0, 8], [16, 5, 64], [0, 0, 0]]),
        (1537, (577,), [[3], [33]]),
        (7, (5, 90), [[1, 2], [0, 4]]),
    ],
    ids=["attention", "odd sizes", "below a vector"],
)
def test_updates_of_many_adapters_in_one_step(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    in_features: int,
    widths: tuple[int, ...],
    ranks: list[list[int]],
) -> None:
    torch.manual_seed(0)
    stack = random_stack(dtype, in_features, widths, ranks)
    adapter_of_token = torch.randint(-1, len(ranks), (45,), dtype=torch.int32)
    adapter_of_token[9:31] = 1
    x = torch.randn(45, in_features).to(dtype)
    x[adapter_of_token < 0] = float("nan")
    out = torch.randn(45, sum(widths)).to(dtype)
    before, expected = out.clone(), out.clone()
    add_low_rank(x, stack, adapter_of_token, expected)
    backend.operations.add_low_rank(x, stack, step_of(adapter_of_token), out)
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    scale = float(expected.float().std())
    torch.testing.assert_close(
        out.float(), expected.float(), rtol=tolerance, atol=tolerance * scale
    )
    assert torch.equal(out[adapter_of_token < 0], before[adapter_of_token < 0])


@pytest.mark.parametrize("in_features", [100, 12000], ids=["small", "shared by all workers"])
def test_a_token_does_not_depend_on_its_neighbours(
    backend: NativeCpuBackend, dtype: torch.dtype, in_features: int
) -> None:
    torch.manual_seed(0)
    stack = random_stack(dtype, in_features, (70, 40), [[5, 9], [12, 0]])
    x, out = torch.randn(19, in_features).to(dtype), torch.randn(19, 110).to(dtype)
    together, alone = out.clone(), out.clone()
    adapter_of_token = torch.tensor([0] * 9 + [1, -1] * 5, dtype=torch.int32)
    backend.operations.add_low_rank(x, stack, step_of(adapter_of_token), together)
    for token in range(19):
        one = slice(token, token + 1)
        backend.operations.add_low_rank(x[one], stack, step_of(adapter_of_token[one]), alone[one])
    assert torch.equal(together, alone)


def test_an_adapter_that_does_not_exist_is_refused_before_anything_is_computed() -> None:
    backend = NativeCpuBackend(torch.float32, threads=1)
    stack = random_stack(torch.float32, 32, (32,), [[4], [4]])
    out = torch.zeros(3, 32)
    with pytest.raises(IndexError, match=r"adapter_of_token\[2\] is 2"):
        backend.operations.add_low_rank(
            torch.ones(3, 32), stack, step_of(torch.tensor([0, -1, 2], dtype=torch.int32)), out
        )
    assert not out.any()


def test_pieces_outside_their_arrays_are_refused() -> None:
    stack = random_stack(torch.float32, 32, (32,), [[4], [4]])
    program = native.extension().Program(native.choose_instruction_set())
    tokens = torch.zeros(1, dtype=torch.int32)
    wrong = stack.pieces.clone()
    wrong[1, 0, 1] = 5
    with pytest.raises(ValueError, match="pieces"):
        program.low_rank(
            torch.ones(1, 32), stack.down, stack.up, wrong, stack.scales, stack.columns, tokens,
            torch.zeros(1, 32),
        )  # fmt: skip

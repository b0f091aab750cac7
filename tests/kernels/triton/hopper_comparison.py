"""Hopper's kernels of many tokens against float32, at odd sizes, strided and poisoned."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from workbench import Case, relative_error

from headrace.kernels.activation import reference as activation_reference
from headrace.kernels.linear import hopper
from headrace.kernels.linear import reference as linear_reference
from headrace.kernels.triton_launch import GpuTraits

SPARE_ROWS, SPARE_COLUMNS = 130, 24
"""Around the output: they must stay as they were."""

MODES: tuple[hopper.Mode, ...] = ("store", "add", "gated")


def hopper_error(
    mode: hopper.Mode,
    rows: int,
    tokens: int,
    width: int,
    columns: int,
    dtype: torch.dtype,
    traits: GpuTraits,
) -> float:
    """Relative error of one product; infinite where something outside of the output changed."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    x = random(tokens, columns + 16)[:, :columns]
    weight = random(2 * width if mode == "gated" else width, columns) * columns**-0.5
    around = random(tokens + SPARE_ROWS, width + SPARE_COLUMNS)
    before = around.clone()
    out = around[:tokens, :width]
    expected = torch.zeros(tokens, width, device="cuda")
    if mode == "gated":
        both = torch.zeros(tokens, 2 * width, device="cuda")
        linear_reference.linear(x, weight, None, both)
        activation_reference.silu_mul(both, expected)
    else:
        linear_reference.linear(x, weight, None, expected)
    if mode == "add":
        expected += out.float()
    else:
        out.fill_(float("nan"))
    if not hopper.takes(x, weight, out):
        return float("inf")
    hopper.product(x, weight, out, mode, rows, traits)
    beside = torch.equal(around[:, width:], before[:, width:])
    below = torch.equal(around[tokens:], before[tokens:])
    if not (beside and below):
        return float("inf")
    return relative_error(out, expected)


def hopper_cases(dtype: torch.dtype, traits: GpuTraits) -> Iterator[Case]:
    """Every tile in every mode; none where the device has no such kernels."""
    if not traits.warpgroup_kernels:
        return
    name = str(dtype).removeprefix("torch.")
    sizes = ((1, 8, 8), (300, 1000, 72), (513, 4096, 4096), (1000, 2056, 448), (129, 14336, 64))
    for mode in MODES:
        for rows in hopper.GATED_ROWS if mode == "gated" else hopper.ROWS:
            for tokens, width, columns in sizes:
                yield (
                    f"hopper {mode} {rows} {tokens}x{width}x{columns} {name}",
                    partial(hopper_error, mode, rows, tokens, width, columns, dtype, traits),
                )

"""Linears against their references: our own kernels, the library's algorithms, gated products."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from workbench import Case, Workbench, relative_error

from headrace.kernels.activation import reference as activation_reference
from headrace.kernels.linear import cublaslt, triton_gated
from headrace.kernels.linear import reference as linear_reference
from headrace.kernels.linear import triton as linear


def gemv(rows: int, block_k: int, warps: int = 4) -> linear.GemmChoice:
    return linear.GemmChoice(kind="gemv", rows=rows, block_k=block_k, warps=warps)


def skinny(
    rows: int, tokens: int, block_k: int, shares: int, stages: int = 3, warps: int = 4
) -> linear.GemmChoice:
    return linear.GemmChoice(
        kind="skinny", rows=rows, tokens=tokens, block_k=block_k, shares=shares, stages=stages,
        warps=warps, prefetch=block_k,
    )  # fmt: skip


class LinearComparisons(Workbench):
    """Every way to compute a linear."""

    def linear(
        self,
        tokens: int,
        rows: int,
        columns: int,
        choice: linear.GemmChoice,
        bias: bool,
        wide: bool,
    ) -> float:
        x, weight = self.random(tokens, columns), self.random(rows, columns)
        offset = self.random(rows) if bias else None
        dtype = torch.float32 if wide else self.dtype
        out = self.poisoned(tokens, rows, dtype=dtype)
        expected = torch.full_like(out, float("nan"), dtype=torch.float32)
        workspace = linear.GemmWorkspace(self.device)
        linear_reference.linear(x, weight, offset, expected)
        errors = []
        for _ in range(2):
            out.fill_(float("nan"))
            linear.linear(x, weight, offset, out, choice, workspace, self.traits)
            errors.append(relative_error(out, expected))
        if workspace.tickets.any():
            return float("inf")
        return max(errors)

    def library_algorithms(self, tokens: int, rows: int, columns: int, wide: bool) -> float:
        """The worst of cuBLASLt's algorithms, storing and adding; infinite where it has none."""
        x, weight = self.random(tokens, columns), self.random(rows, columns)
        out = self.poisoned(tokens, rows, dtype=torch.float32 if wide else self.dtype)
        before = self.random(tokens, rows, dtype=out.dtype)
        expected = torch.full_like(out, float("nan"), dtype=torch.float32)
        linear_reference.linear(x, weight, None, expected)
        library = cublaslt.loaded(x.device)
        found = [] if library is None else library.algorithms(x, weight, out, 32)
        errors = [] if found else [float("inf")]
        varied = [] if library is None else [library.variants(x, weight, out, a) for a in found[:3]]
        for algorithm in dict.fromkeys([*found, *(other for some in varied for other in some)]):
            choice = linear.GemmChoice(kind="cublaslt", algorithm=algorithm)
            out.fill_(float("nan"))
            linear.linear(x, weight, None, out, choice, linear.GemmWorkspace(x.device), self.traits)
            errors.append(relative_error(out, expected))
            if not wide:
                out.copy_(before)
                linear.add_linear(x, weight, out, choice, self.traits)
                errors.append(relative_error(out, expected + before.float()))
        return max(errors)

    def gated_linear(self, tokens: int, width: int, columns: int, bias: bool) -> float:
        x, weight = self.random(tokens, columns), self.random(2 * width, columns) * columns**-0.5
        offset = self.random(2 * width) if bias else None
        gate_up = self.poisoned(tokens, 2 * width, dtype=torch.float32)
        out = self.poisoned(tokens, width)
        expected = self.poisoned(tokens, width, dtype=torch.float32)
        triton_gated.gated_linear(x, weight, offset, out, self.traits)
        linear_reference.linear(x, weight, offset, gate_up)
        activation_reference.silu_mul(gate_up, expected)
        return relative_error(out, expected)

    def interpreted_cases(self) -> Iterator[Case]:
        """Tiny shapes."""
        for label, tokens, rows, columns, choice, bias, wide in (
            ("gemv", 1, 21, 100, gemv(4, 64), True, False),
            ("gemv even wide", 1, 16, 128, gemv(8, 64), False, True),
            ("skinny", 5, 70, 96, skinny(64, 16, 32, 1), True, False),
            ("skinny split odd", 19, 33, 100, skinny(32, 16, 32, 2), False, True),
        ):
            yield (
                f"linear {label} {self.name}",
                partial(self.linear, tokens, rows, columns, choice, bias, wide),
            )
        for tokens, width, columns, bias in ((1, 7, 100, True), (5, 70, 96, False)):
            yield (
                f"gated_linear {tokens} {self.name}",
                partial(self.gated_linear, tokens, width, columns, bias),
            )

    def gpu_cases(self) -> Iterator[Case]:
        """Real and odd shapes."""
        for tokens, width, columns, bias in (
            (1, 14336, 4096, False),
            (1, 1003, 577, True),
            (8, 14336, 4096, False),
            (19, 1003, 584, True),
            (64, 14336, 4096, False),
            (33, 14336, 4096, True),
        ):
            yield (
                f"gated_linear {tokens}x{width}x{columns} {self.name}",
                partial(self.gated_linear, tokens, width, columns, bias),
            )
        for tokens, rows, columns, choice, bias, wide in (
            (1, 6144, 4096, gemv(8, 1024), False, False),
            (1, 1003, 577, gemv(4, 512), True, True),
            (3, 4096, 4096, skinny(64, 16, 128, 4), False, False),
            (9, 1003, 584, skinny(64, 16, 64, 3), True, True),
            (33, 4096, 14336, skinny(128, 64, 64, 4), False, False),
            (100, 6144, 4096, skinny(128, 128, 64, 2, warps=8), True, False),
            (200, 6144, 4096, skinny(128, 256, 64, 2, warps=8), False, True),
            (70, 6144, 4096, linear.LIBRARY, True, False),
            (70, 6144, 4096, linear.LIBRARY, True, True),
        ):
            yield (
                f"linear {tokens}x{rows}x{columns} {choice.label()} {self.name}",
                partial(self.linear, tokens, rows, columns, choice, bias, wide),
            )
        for tokens, rows, columns, wide in ((128, 4096, 14336, False), (33, 8192, 1024, True)):
            yield (
                f"library algorithms {tokens}x{rows}x{columns} {self.name}",
                partial(self.library_algorithms, tokens, rows, columns, wide),
            )

"""Every Triton kernel agrees with its float32 reference, in Triton's interpreter at tiny shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    "norms", "silu_mul", "embed", "rotate_and_cache", "attention", "linear", "gated_linear",
    "most_likely", "low_rank", "publish",
)  # fmt: skip
EXACT = "sampling draws", "sampling neighbours", "sampling penalties", "sampling feeding"
BOUNDS = {"float16": 1e-3, "float32": 2e-6}


@pytest.fixture(scope="module")
def errors(run_reports: Callable[..., list[dict[str, Any]]]) -> dict[str, float]:
    """Case to relative error."""
    reports = run_reports("comparisons.py", interpret=True)
    return {report["case"]: report["error"] for report in reports}


@pytest.mark.parametrize("way", ["fused", "plain", "adapted"])
def test_decoder_over_the_kernels_agrees_with_plain_torch(
    way: str, errors: dict[str, float]
) -> None:
    assert errors[f"decoder {way} float16"] <= 5e-3


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernel_agrees_with_its_reference(operation: str, errors: dict[str, float]) -> None:
    mine = {case: error for case, error in errors.items() if case.startswith(operation)}
    assert len(mine) >= 2
    for case, error in mine.items():
        assert error <= BOUNDS[case.rsplit(" ", 1)[1]], case


@pytest.mark.parametrize("case", EXACT)
def test_sampled_tokens_are_those_of_the_reference(case: str, errors: dict[str, float]) -> None:
    mine = {name: error for name, error in errors.items() if name.startswith(case)}
    assert mine
    assert not any(mine.values()), mine


def test_logprobs_are_those_of_the_reference(errors: dict[str, float]) -> None:
    (error,) = [error for name, error in errors.items() if name.startswith("sampling logprobs")]
    assert error <= 2e-5

"""Every training kernel agrees with its reference, in Triton's interpreter at tiny shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    "norm_backward", "silu_mul_backward", "rotate", "unrotate", "lora_down", "lora_gradient",
    "lora_input", "cross_entropy", "fp8_rows", "fp8_transpose", "nf4",
)  # fmt: skip
BOUNDS = {"float16": 1.5e-3, "float32": 3e-6}


@pytest.fixture(scope="module")
def errors(run_reports: Callable[..., list[dict[str, Any]]]) -> dict[str, float]:
    """Case to relative error."""
    reports = run_reports("training_comparisons.py", interpret=True)
    return {report["case"]: report["error"] for report in reports}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernel_agrees_with_its_reference(operation: str, errors: dict[str, float]) -> None:
    mine = {case: error for case, error in errors.items() if case.startswith(operation)}
    assert len(mine) >= 2
    for case, error in mine.items():
        assert error <= BOUNDS[case.rsplit(" ", 1)[1]], case

"""Every training kernel agrees with its reference, in Triton's interpreter at tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    "norm_backward", "silu_mul_backward", "rotate", "unrotate", "lora_down", "lora_gradient",
    "lora_input", "cross_entropy", "fp8_rows", "fp8_transpose", "nf4",
)  # fmt: skip
BOUNDS = {"float16": 1.5e-3, "float32": 3e-6}


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Case to relative error; a process of its own, since the interpreter is chosen at import."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3] / "src"),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("training_comparisons.py"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["case"]: report["error"] for report in reports}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_kernel_agrees_with_its_reference(operation: str, errors: dict[str, float]) -> None:
    mine = {case: error for case, error in errors.items() if case.startswith(operation)}
    assert len(mine) >= 2
    for case, error in mine.items():
        assert error <= BOUNDS[case.rsplit(" ", 1)[1]], case

"""Every Triton kernel agrees with its float32 reference, in Triton's interpreter at tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

OPERATIONS = (
    "norms", "silu_mul", "embed", "rotate_and_cache", "attention", "linear", "gated_linear",
    "most_likely", "low_rank",
)  # fmt: skip
BOUNDS = {"float16": 1e-3, "float32": 2e-6}


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Case to relative error; a process of its own, since the interpreter is chosen at import."""
    source = Path(__file__).parents[3] / "src"
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(source),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("comparisons.py"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {report["case"]: report["error"] for report in reports}


@pytest.mark.parametrize("way", ["fused", "adapted"])
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

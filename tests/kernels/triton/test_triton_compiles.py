"""Every Triton kernel compiles ahead of time for NVIDIA and AMD, without spills, within LDS.

The AMD code is compiled for gfx942 (MI300X) and gfx950 (MI350) here; it is not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"sm_90": 232448, "gfx942": 65536, "gfx950": 163840}


def compile_for(target: str) -> list[dict[str, Any]]:
    """A report a kernel; in a process of its own, which a fault of the compiler may end."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), target],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_kernels_compile_for(target: str) -> None:
    reports = compile_for(target)
    assert len(reports) >= 15
    assert {report["dtype"] for report in reports} == {"bf16", "fp16"}
    for report in reports:
        assert report["spills"] == 0, report
        assert report["shared"] <= SHARED_MEMORY[target], report
        if report["dot"]:
            assert report["matrix"] > 0, f"no matrix instructions: {report}"
        if target == "sm_90":
            assert report["dependent"], f"no dependent launch: {report}"

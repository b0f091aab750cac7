"""Every training kernel compiles ahead of time for NVIDIA and AMD and fits their local memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"sm_90": 232448, "gfx942": 65536, "gfx950": 163840}
WITH_DOT = {"down_project_kernel", "down_gradient_kernel", "add_input_gradient_kernel"}


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_training_kernels_compile_for(target: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_training_ahead.py")), target],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reports) == 11
    for report in reports:
        assert report["shared"] <= SHARED_MEMORY[target], report
        assert report["matrix"] or report["kernel"] not in WITH_DOT, report

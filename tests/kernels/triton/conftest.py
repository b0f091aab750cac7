"""Runs this folder's scripts in processes of their own, and reads what they report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RunReports = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def run_reports() -> RunReports:
    """``run_reports(script, *arguments, interpret)``: the JSON lines that the script prints.

    Triton chooses its interpreter at import, and a fault of its compiler may end the process.
    """

    def run(script: str, *arguments: str, interpret: bool) -> list[dict[str, Any]]:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = str(HERE.parents[2] / "src")
        if interpret:
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=560,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run

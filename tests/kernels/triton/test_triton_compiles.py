"""Every Triton kernel compiles ahead of time for NVIDIA and AMD, without spills, within LDS.

The AMD code is compiled for gfx942 (MI300X) and gfx950 (MI350) here; it is not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"sm_90": 232448, "gfx942": 65536, "gfx950": 163840}


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_kernels_compile_for(target: str, run_reports: Callable[..., list[dict[str, Any]]]) -> None:
    reports = run_reports("compile_ahead.py", target, interpret=False)
    assert len(reports) >= 15
    assert {report["dtype"] for report in reports} == {"bf16", "fp16"}
    for report in reports:
        assert report["spills"] == 0, report
        assert report["shared"] <= SHARED_MEMORY[target], report
        if report["dot"]:
            assert report["matrix"] > 0, f"no matrix instructions: {report}"
        if target == "sm_90":
            assert report["dependent"], f"no dependent launch: {report}"

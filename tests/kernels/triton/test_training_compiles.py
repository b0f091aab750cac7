"""Every training kernel compiles ahead of time for NVIDIA and AMD and fits their local memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {"sm_90": 232448, "gfx942": 65536, "gfx950": 163840}
WITH_DOT = {"down_project_kernel", "down_gradient_kernel", "add_input_gradient_kernel"}


@pytest.mark.parametrize("target", SHARED_MEMORY)
def test_training_kernels_compile_for(
    target: str, run_reports: Callable[..., list[dict[str, Any]]]
) -> None:
    reports = run_reports("compile_training_ahead.py", target, interpret=False)
    assert len(reports) == 11
    for report in reports:
        assert report["shared"] <= SHARED_MEMORY[target], report
        assert report["matrix"] or report["kernel"] not in WITH_DOT, report

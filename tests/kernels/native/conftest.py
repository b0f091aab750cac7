"""Native backends of every instruction set that this machine runs.

``HEADRACE_TESTED_EXTENSION`` names another build of the extension to test: ``make test-avx512``
makes one in which AVX-512 is emulated.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

import pytest
import torch

from headrace.kernels import native
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.operations import GGUFBlocks

if _extension := os.environ.get("HEADRACE_TESTED_EXTENSION"):
    _spec = importlib.util.spec_from_file_location("headrace.kernels._native", _extension)
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])

_INSTRUCTION_SETS = native.instruction_sets() if native.available() else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = native.reason_unavailable()
    if reason is None:
        return
    for item in items:
        if item.path.parent.name == "native":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=_INSTRUCTION_SETS or ["none"])
def instruction_set(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind = request.param
    assert isinstance(kind, torch.dtype)
    return kind


@pytest.fixture
def backend(instruction_set: str, dtype: torch.dtype) -> NativeCpuBackend:
    return NativeCpuBackend(dtype, threads=2, instruction_set=instruction_set)


@pytest.fixture
def random_blocks() -> Callable[[int, int, str], GGUFBlocks]:
    """A matrix [n, k] of random GGUF blocks with small scales."""

    def make(n: int, k: int, kind: str) -> GGUFBlocks:
        halves = 2 if kind == "Q4_1" else 1
        quants = torch.randint(0, 256, (n, k // 32, 32 if kind == "Q8_0" else 16))
        scales = ((torch.rand(n, k // 32, halves) - 0.5) * 0.1).half().view(torch.uint8)
        rows = torch.cat((scales, quants.to(torch.uint8)), dim=-1)
        return GGUFBlocks(rows.reshape(n, -1).contiguous(), kind, (n, k))

    return make

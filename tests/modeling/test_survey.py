"""What is told of a GPU's backend; the devices here are descriptions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels import cuda_source
from headrace.modeling.backends import survey


def triton_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], compiler: object
) -> str:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cuda_source, "compiler", lambda: compiler)
    return survey.gpu_finding().detail


def test_kernels_for_hopper_alone_are_told_where_they_would_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert triton_on(monkeypatch, (9, 0), object()).endswith("on A card, with kernels in CUDA C++")
    assert triton_on(monkeypatch, (9, 0), None).endswith(
        "without kernels in CUDA C++: NVRTC is not installed"
    )
    assert triton_on(monkeypatch, (8, 0), None).endswith("on A card")

"""What the machine is asked: device, cores and memory, within the limits around the process."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from headrace.hardware import processor as processors
from headrace.hardware.device import resolve_device
from headrace.hardware.memory import _control_group_bytes_left, available_bytes
from headrace.hardware.processor import _quota_cores, processor, usable_cores
from headrace.link.errors import ConfigurationError


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


def test_an_unknown_device_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="auto, cpu, cuda, got `tpu`"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="--device cuda: "):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("content", "cores"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000", 1), ("1000 100000", 1)],
)
def test_cpu_quota(tmp_path: Path, content: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert _quota_cores(tmp_path / "cpu.max") == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert _quota_cores(tmp_path / "absent") is None
    assert _control_group_bytes_left(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("max", 5, None), ("1000", 400, 600), ("1000", 1400, 0)]
)
def test_control_group_memory(tmp_path: Path, limit: str, used: int, left: int | None) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    assert _control_group_bytes_left(tmp_path) == left


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 23, 1, "zen1"),
        ("AuthenticAMD", 23, 0x31, "zen2"),
        ("AuthenticAMD", 25, 1, "zen3"),
        ("AuthenticAMD", 25, 0x11, "zen4"),
        ("AuthenticAMD", 26, 2, "zen5"),
        ("GenuineIntel", 6, 207, "emeraldrapids"),
        ("GenuineIntel", 6, 1, "some-cpu"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_generation(
    monkeypatch: pytest.MonkeyPatch, vendor: str, family: int, model: int, name: str
) -> None:
    first = {"vendor_id": vendor, "cpu family": str(family), "model": str(model)}
    first["model name"] = "Some CPU"
    monkeypatch.setattr(processors, "_cpuinfo", lambda: (first, 2))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert processor() == f"Some CPU ({name}), 2 CPUs"


def test_a_share_of_a_processor_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17", "model name": "Big"}
    monkeypatch.setattr(processors, "_cpuinfo", lambda: (whole, 16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4})
    assert processor() == "Big (zen4), 2 of 16 CPUs"


def test_threads_stay_within_affinity() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_memory_figures_are_of_this_machine() -> None:
    assert 0 < available_bytes(torch.device("cpu")) <= psutil.virtual_memory().total

"""What is asked of a device follows from what it can do; the devices here are descriptions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels import cuda_source
from headrace.kernels.attention.triton import HEAD_SIZES, choose_decode_tiling
from headrace.kernels.triton_launch import GpuTraits


def describe(
    monkeypatch: pytest.MonkeyPatch,
    hip: str | None,
    major: int,
    shared: int,
    optin: int | None,
    minor: int = 0,
) -> GpuTraits:
    properties = SimpleNamespace(
        multi_processor_count=132, shared_memory_per_block=shared, major=major, minor=minor
    )
    if optin is not None:
        properties.shared_memory_per_block_optin = optin
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return GpuTraits.of(torch.device("cuda"))


def test_hopper_launches_dependents_early(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = describe(monkeypatch, hip=None, major=9, shared=49152, optin=232448)
    assert traits.shared_memory == 232448
    assert traits.launch_options() == {"PDL": True, "launch_pdl": True}
    assert traits.warpgroup_kernels


def test_kernels_for_hopper_alone_are_left_out_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    blackwell = describe(monkeypatch, hip=None, major=10, shared=49152, optin=232448)
    assert blackwell.wide_matrix_unit
    assert not blackwell.warpgroup_kernels
    assert not describe(monkeypatch, hip="6.4", major=9, shared=65536, optin=None).warpgroup_kernels


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_source, "compiler", lambda: None)
    traits = describe(monkeypatch, hip=None, major=9, shared=49152, optin=232448)
    assert traits.wide_matrix_unit
    assert not traits.warpgroup_kernels


def test_ampere_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = describe(monkeypatch, hip=None, major=8, shared=49152, optin=166912)
    assert traits.launch_options() == {"PDL": False}
    assert not traits.wide_matrix_unit


def test_rocm_takes_no_nvidia_option(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = describe(monkeypatch, hip="6.4", major=9, shared=65536, optin=None)
    assert traits.shared_memory == 65536
    assert traits.launch_options() == {"PDL": False}


@pytest.mark.parametrize("shared_memory", [65536, 163840, 232448])
@pytest.mark.parametrize("head_dim", HEAD_SIZES)
@pytest.mark.parametrize("sequences", [1, 7, 33, 256])
def test_decode_tiling_fits_and_never_leaves_the_device_idle(
    shared_memory: int, head_dim: int, sequences: int
) -> None:
    traits = GpuTraits(132, shared_memory, True, True)
    tiling = choose_decode_tiling(sequences, 32, 8, head_dim, 8192, traits)
    padded = 1 << (head_dim - 1).bit_length()
    assert (tiling.stages - 1) * tiling.tile * 2 * padded * 2 <= shared_memory
    assert sequences * 8 // tiling.heads * tiling.shares >= 132

"""Kernels in CUDA C++ compile for Hopper without spills; which shape takes which of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from headrace.kernels import cuda_source
from headrace.kernels.attention import hopper as prompts
from headrace.kernels.hopper_source import ARCHITECTURE
from headrace.kernels.linear import hopper
from headrace.kernels.triton_launch import GpuTraits

H100 = GpuTraits(132, 232448, True, True, warpgroup_kernels=True)
LLAMA_8B = 14336


def check(source: str, name: str) -> None:
    compiled = cuda_source.compile_source(source, ARCHITECTURE)
    assert compiled.cubin[:4] == b"\x7fELF"
    assert f".text.{name}\0".encode() in compiled.cubin
    assert "0 bytes spill stores, 0 bytes spill loads" in compiled.log
    # What ptxas says where it cannot keep matrix instructions in flight.
    assert "serialized" not in compiled.log


@pytest.mark.parametrize("rows", hopper.ROWS)
@pytest.mark.parametrize("mode", ["store", "add"])
def test_a_product_compiles(mode: hopper.Mode, rows: int) -> None:
    check(hopper.source(mode, rows, torch.bfloat16), hopper.kernel_name(mode))


@pytest.mark.parametrize("rows", hopper.GATED_ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gated_product_compiles(rows: int, dtype: torch.dtype) -> None:
    check(hopper.source("gated", rows, dtype), hopper.kernel_name("gated"))


@pytest.mark.parametrize("group", prompts.GROUPS)
@pytest.mark.parametrize("head_dim", prompts.HEAD_SIZES)
def test_attention_of_prompts_compiles(head_dim: int, group: int) -> None:
    dtype = torch.float16 if group == 2 else torch.bfloat16
    check(prompts.source(head_dim, group, dtype), prompts.KERNEL_NAME)


def test_a_wrong_source_is_refused_with_what_the_compiler_says() -> None:
    with pytest.raises(cuda_source.CompilationError, match="undefined_name"):
        cuda_source.compile_source('extern "C" __global__ void f() { undefined_name(); }', "sm_90a")


def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = 'extern "C" __global__ void f() {}'
    first = cuda_source.compile_once(source, ARCHITECTURE)
    monkeypatch.setattr(cuda_source, "compile_source", None)
    assert cuda_source.compile_once(source, ARCHITECTURE) == first


def test_gated_products_of_few_tokens_or_ill_filled_devices_are_left_to_the_library() -> None:
    taken = {tokens: hopper.gated_rows(tokens, LLAMA_8B, H100) for tokens in (128, 384, 640, 896)}
    assert set(taken.values()) == {None}
    for tokens in (256, 512, 1024, 2048, 8192):
        assert hopper.gated_rows(tokens, LLAMA_8B, H100) in hopper.GATED_ROWS
    without = GpuTraits(132, 232448, True, True)
    assert hopper.gated_rows(8192, LLAMA_8B, without) is None


def test_what_the_copy_engine_cannot_fetch_is_refused() -> None:
    x, weight = torch.zeros(300, 64), torch.zeros(128, 64)
    assert hopper.takes(x, weight, torch.zeros(300, 128))
    assert not hopper.takes(x, weight, torch.zeros(300, 128, dtype=torch.float64))
    assert not hopper.takes(x, weight[:127], torch.zeros(300, 127))
    assert not hopper.takes(x[:, 1:], weight[:, 1:], torch.zeros(300, 128))
    assert not hopper.takes(torch.zeros(300, 63), torch.zeros(128, 63), torch.zeros(300, 128))


def test_prompts_take_their_kernel_where_there_is_one() -> None:
    assert prompts.takes(32, 8, 128, None, H100)
    assert not prompts.takes(32, 8, 128, 4096, H100)
    assert not prompts.takes(32, 8, 96, None, H100)
    assert not prompts.takes(9, 3, 64, None, H100)
    assert not prompts.takes(32, 8, 128, None, GpuTraits(132, 232448, True, True))

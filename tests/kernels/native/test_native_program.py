"""What the extension refuses, and steps that bring less than a program has room for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.operations import AttentionShape


@pytest.fixture
def program() -> Any:
    return native.extension().Program(native.choose_instruction_set())


@pytest.fixture
def matrix() -> Any:
    tiles = torch.zeros(64 * 32 * 2, dtype=torch.uint8)
    return native.extension().Matrix(tiles, "bfloat16", 64, 32)


def test_a_matrix_of_the_wrong_size_is_refused() -> None:
    extension = native.extension()
    with pytest.raises(ValueError, match="data has shape"):
        extension.Matrix(torch.zeros(100, dtype=torch.uint8), "bfloat16", 64, 32)
    with pytest.raises(ValueError, match="multiple of 32"):
        extension.Matrix(torch.zeros(100, dtype=torch.uint8), "q4_1", 64, 33)
    with pytest.raises(ValueError, match="unknown matrix format"):
        extension.Matrix(torch.zeros(100, dtype=torch.uint8), "q3_k", 64, 32)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (torch.zeros(4, 31), torch.zeros(4, 64), r"x has shape \[4, 31\], not \[any, 32\]"),
        (torch.zeros(4, 32), torch.zeros(4, 63), "out has shape"),
        (torch.zeros(32, 4).T, torch.zeros(4, 64), "x is not contiguous"),
        (torch.zeros(4, 32, dtype=torch.float64), torch.zeros(4, 64), "neither float32 nor"),
        (torch.zeros(128), torch.zeros(4, 64), "x has shape"),
    ],
)
def test_a_mis_sized_buffer_is_refused(
    program: Any, matrix: Any, x: torch.Tensor, out: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        program.linear(x, matrix, None, out, False)


def test_a_step_beyond_the_buffers_is_refused(program: Any, matrix: Any) -> None:
    pool = native.extension().ThreadPool(1)
    program.linear(torch.zeros(6, 32), matrix, None, torch.zeros(4, 64), False)
    with pytest.raises(ValueError, match="scratch"):
        program.run(pool, 4, 1, 1)
    program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
    program.run(pool, 4, 1, 1)
    with pytest.raises(ValueError, match="5 tokens was given to a program for up to 4"):
        program.run(pool, 5, 1, 1)
    with pytest.raises(ValueError, match="-1 tokens"):
        program.run(pool, -1, 1, 1)


def test_an_empty_step_changes_nothing() -> None:
    operations = NativeCpuBackend(torch.float32, threads=2).operations
    weight = operations.pack_linear([torch.randn(8, 32)], None)
    out = torch.zeros(0, 8)
    operations.linear(torch.zeros(0, 32), weight, out)
    operations.rms_norm(torch.zeros(0, 32), torch.ones(32), 1e-5, torch.zeros(0, 32))
    operations.silu_mul(torch.zeros(0, 64), torch.zeros(0, 32))


def test_only_the_rows_of_a_step_are_written(program: Any) -> None:
    out = torch.full((8, 16), 5.0)
    program.activation(torch.ones(8, 32), out)
    program.set_scratch(torch.empty(0, dtype=torch.uint8))
    program.run(native.extension().ThreadPool(2), 3, 1, 1)
    assert (out[:3] != 5.0).all()
    assert (out[3:] == 5.0).all()


def test_an_index_out_of_range_is_refused(program: Any, matrix: Any) -> None:
    ids = torch.tensor([0, 63, 64], dtype=torch.int32)
    program.embed(ids, matrix, torch.zeros(3, 32))
    program.set_scratch(torch.empty(0, dtype=torch.uint8))
    pool = native.extension().ThreadPool(2)
    program.run(pool, 2, 1, 1)
    with pytest.raises(IndexError, match=r"token_ids\[2\] is 64, which is not in \[0, 64\)"):
        program.run(pool, 3, 1, 1)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("context_lengths", [1], "context_lengths"),
        ("context_lengths", [100], "in blocks"),
        ("rows", [2], "rows"),
        ("block_tables", [[4, 0], [0, 0]], "block_tables"),
        ("query_start", [0, 1], "query_start"),
    ],
)
def test_a_broken_block_table_is_refused(
    program: Any, name: str, values: list[Any], message: str
) -> None:
    shape = AttentionShape(2, 1, 32, 1.0, None)
    operations = NativeCpuBackend(torch.float32, threads=1).operations
    (cache,) = operations.allocate_caches([shape], 4, 16)
    step = {"query_start": [0, 2], "context_lengths": [2], "rows": [0]}
    tables: dict[str, Any] = {**step, "block_tables": [[0, 1], [2, 3]], name: values}
    buffers = {key: torch.tensor(value, dtype=torch.int32) for key, value in tables.items()}
    program.attention(
        torch.zeros(2, 128), 1.0, 0, 2, cache.handle, **buffers, out=torch.zeros(2, 64)
    )
    program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
    with pytest.raises(IndexError, match=message):
        program.run(native.extension().ThreadPool(1), 2, 1, 1)


def test_unusable_settings_name_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="bfloat16 or float32"):
        NativeCpuBackend(torch.float16)
    with pytest.raises(native.NativeKernelsUnavailable, match="'sse9' was asked for"):
        NativeCpuBackend(instruction_set="sse9")
    operations = NativeCpuBackend(threads=1).operations
    with pytest.raises(ConfigurationError, match="head_dim must be a multiple of 32"):
        operations.allocate_caches([AttentionShape(1, 1, 80, 1.0, None)], 1, 16)
    with pytest.raises(ConfigurationError, match="block_size must be a multiple of 16"):
        operations.allocate_caches([AttentionShape(1, 1, 64, 1.0, None)], 1, 8)


def test_the_environment_forces_an_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    slowest = native.instruction_sets()[-1]
    monkeypatch.setenv(native.INSTRUCTION_SET_VARIABLE, slowest)
    assert NativeCpuBackend(threads=1).instruction_set == slowest


def test_an_idle_pool_sleeps() -> None:
    import os
    import time

    extension = native.extension()
    pool = extension.ThreadPool(3)
    logits, token, peak = torch.zeros(9, 64), torch.zeros(9, dtype=torch.int32), torch.zeros(9)
    extension.greedy(pool, native.choose_instruction_set(), logits, token, peak, None)
    time.sleep(0.05)
    before = os.times()
    time.sleep(0.3)
    after = os.times()
    assert (after.user + after.system) - (before.user + before.system) < 0.1

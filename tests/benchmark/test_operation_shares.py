"""Whose time a decode step's kernels are, and the least that each operation needs."""

from __future__ import annotations

import pytest

from headrace.benchmark.latency.operation_shares import (
    GAPS,
    DeviceRates,
    KernelTime,
    floors,
    operation_times,
    shares,
)
from headrace.benchmark.record import Row
from headrace.benchmark.tables import operations_table
from headrace.checkpoint.shapes import shape

LAYER = ("nvjet_qkv", "rotate_and_cache_kernel", "decode_attention_kernel", "nvjet_out")
TAIL = ("rms_norm_kernel", "nvjet_head", "most_likely_kernel")


def trace(names: list[str], each: float = 2.0, apart: float = 0.0) -> list[KernelTime]:
    return [KernelTime(name, index * (each + apart), each) for index, name in enumerate(names)]


def unfused(layers: int) -> list[str]:
    one = ["rms_norm_kernel", *LAYER, "rms_norm_kernel", "Memset (Device)", "nvjet_gate_up"]
    one += ["silu_mul_kernel", "nvjet_down", "splitKreduce_kernel"]
    return ["publish_kernel", "embed_kernel", *one * layers, *TAIL]


def test_products_are_told_apart_by_their_neighbours() -> None:
    times = operation_times(trace(unfused(3)))
    assert times == {
        GAPS: 0.0, "step inputs": 2.0, "embedding": 2.0, "norms": 14.0, "qkv": 6.0,
        "rotation, cache": 6.0, "attention": 6.0, "output": 6.0, "gate and up": 18.0,
        "down": 12.0, "head": 2.0, "sampling": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("gated", ["gated_skinny_kernel", "hopper_gated_product"])
@pytest.mark.parametrize("down", ["skinny_kernel", "hopper_add_product"])
def test_a_gated_product_in_one_launch_is_gate_and_up(gated: str, down: str) -> None:
    names = ["rms_norm_kernel", *LAYER, "rms_norm_kernel", gated, down]
    times = operation_times(trace([*names, *TAIL]))
    assert (times["gate and up"], times["down"], times["head"]) == (2.0, 2.0, 2.0)


def test_times_add_up_to_the_trace_where_kernels_overlap_and_where_they_leave_gaps() -> None:
    overlapping = [
        KernelTime("rms_norm_kernel", 0.0, 3.0),
        KernelTime("nvjet_a", 1.0, 9.0),
        KernelTime("rotate_and_cache_kernel", 2.0, 4.0),
        KernelTime("decode_attention_kernel", 12.0, 5.0),
    ]
    times = operation_times(overlapping)
    assert times == {
        GAPS: 2.0, "norms": 3.0, "qkv": 7.0, "rotation, cache": 0.0, "attention": 5.0
    }  # fmt: skip
    assert sum(times.values()) == 17.0


def test_floors_are_bytes_or_arithmetic_over_the_rates() -> None:
    rates = DeviceRates(3e12, 8e14)
    least = floors(shape("llama3-8b"), 1, 128, 2, rates)
    linears = sum(least[name] for name in ("qkv", "output", "gate and up", "down", "head"))
    assert linears == pytest.approx(5000, rel=0.02)
    assert least["attention"] == pytest.approx(128 * 131072 / 3e12 * 1e6)
    many = floors(shape("llama3-8b"), 4096, 128, 2, rates)
    assert many["down"] == pytest.approx(32 * 2 * 4096 * 4096 * 14336 / 8e14 * 1e6)


def test_shares_are_a_step_s_and_the_table_shows_them_beside_their_floors() -> None:
    found = shares(trace(unfused(1) * 2), 2, {"norms": 3.0})
    norms = next(share for share in found if share.operation == "norms")
    assert (norms.microseconds, norms.floor_microseconds) == (6.0, 3.0)
    assert found[0].microseconds == max(share.microseconds for share in found)
    rows = [
        Row(
            metric="decode_operation_us", value=6.0, unit="us", samples=[6.0], batch=8,
            context=128, conditions={"operation": "norms", "floor_us": 3.0},
        ),
        Row(metric="copy_rate", value=3000.0, unit="GB/s", samples=[3000.0]),
    ]  # fmt: skip
    table = operations_table(rows)
    assert [next(iter(column.cells)) for column in table.columns] == [
        "8", "128", "norms", "6.0", "100.0%", "3.0", "50%"
    ]  # fmt: skip

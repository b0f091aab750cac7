"""Which operations a decode step on a GPU spends its time in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headrace.benchmark.latency.cases import PROFILED_TOKENS
from headrace.benchmark.latency.engine import MeasuredEngine
from headrace.benchmark.latency.generation import BatchGenerator
from headrace.benchmark.latency.operation_shares import (
    DeviceRates,
    KernelTime,
    OperationShare,
    floors,
    operation_row,
    shares,
)
from headrace.benchmark.record import Row, median_row
from headrace.checkpoint.config import ModelConfig
from headrace.hardware.rates import measure_rates

_STEPS = 16
_ITEMSIZE = 2
"""Bytes of a number in either of the types that a GPU computes in."""

_LAST_KERNEL = "most_likely"


def profile_cases(engine: MeasuredEngine, cases: Sequence[tuple[int, int]]) -> list[Row]:
    """Rows of every (batch, context); the rates that their floors follow from are measured first.

    Raises:
        RuntimeError: The rates could not be measured.
    """
    rates = _device_rates(engine.measured.device)
    rows = _rate_rows(rates)
    for batch, context in cases:
        found = profile_decode(engine.generator, engine.config, batch, context, _ITEMSIZE, rates)
        rows += [
            operation_row(
                share.operation, [share.microseconds], share.floor_microseconds, batch, context
            )
            for share in found
        ]
    return rows


def _device_rates(device: torch.device) -> DeviceRates:
    """Copy and bf16 product as measured now.

    Raises:
        RuntimeError: One of them could not be measured.
    """
    copy, product, *_ = measure_rates(device)
    if copy.value is None or product.value is None:
        raise RuntimeError(f"no rates to compare with: {copy.failure or product.failure}")
    return DeviceRates(1e9 * copy.value, 1e12 * product.value)


def profile_decode(
    generator: BatchGenerator,
    config: ModelConfig,
    batch: int,
    context: int,
    itemsize: int,
    rates: DeviceRates,
) -> list[OperationShare]:
    """Operations of a decode step, the largest first, with their floors.

    The last steps of a generation are taken: those before have brought the device to its pace.
    """
    length = PROFILED_TOKENS
    generator.prepare(batch, context + length)
    generator.generate(batch, context, length)
    kernels = _trace(generator, batch, context, length)
    ends = [index for index, kernel in enumerate(kernels) if _LAST_KERNEL in kernel.name]
    # From the end of a step to the end of another, what happens between steps included.
    part = kernels[ends[-1 - _STEPS] : ends[-1] + 1]
    first = part[0]
    part[0] = KernelTime(first.name, first.start + first.duration, 0.0)
    mean_context = context + length - 1 - (_STEPS - 1) / 2
    least = floors(config, batch, mean_context, itemsize, rates)
    return shares(part, _STEPS, least)


def _rate_rows(rates: DeviceRates) -> list[Row]:
    return [
        median_row("copy_rate", [rates.bytes_per_second / 1e9], "GB/s"),
        median_row("matmul_rate", [rates.operations_per_second / 1e12], "TFLOP/s"),
    ]


def _trace(
    generator: BatchGenerator, batch: int, context: int, new_tokens: int
) -> list[KernelTime]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        generator.generate(batch, context, new_tokens)
        torch.cuda.synchronize()
    kernels = [
        KernelTime(event.name(), event.start_ns() / 1e3, event.duration_ns() / 1e3)
        for event in profiler.profiler.kineto_results.events()
        if event.device_type().name == "CUDA"
    ]
    return sorted(kernels, key=lambda kernel: kernel.start)

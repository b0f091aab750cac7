"""Which GPU kernels a decode step spends its time in."""

from __future__ import annotations

import torch

from headrace.benchmark.latency.generation import BatchGenerator

_STEPS = 8


def profile_decode(generator: BatchGenerator, batch: int, context: int) -> list[tuple[str, float]]:
    """Kernel name to microseconds a decode step, largest first.

    The prefill's kernels are taken off: a generation of one token is profiled beside one of more.
    """
    generator.prepare(batch, context + _STEPS + 1)
    generator.generate(batch, context, 2)
    before = _kernel_times(generator, batch, context, 1)
    after = _kernel_times(generator, batch, context, 1 + _STEPS)
    steps = {name: (total - before.get(name, 0.0)) / _STEPS for name, total in after.items()}
    return sorted(steps.items(), key=lambda item: -item[1])


def _kernel_times(
    generator: BatchGenerator, batch: int, context: int, new_tokens: int
) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        generator.generate(batch, context, new_tokens)
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total for event in profiler.key_averages()}

"""What the device reaches at best, measured in the same run: the floors stand on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from headrace.benchmark.kernels.timing import ColdTimer

_RUNS = 8


class Ceilings(NamedTuple):
    """Best of several runs."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, threads: int) -> Ceilings:
    """Memory bandwidth and the rate of a matrix product (on a CPU in float32 too, the better).

    The bandwidth is that of reading on a CPU, where a copy also reads what it will overwrite; on a
    GPU the better of copying and reading.
    """
    on_gpu = device.type != "cpu"
    timer = ColdTimer(device)
    with _torch_threads(threads):
        bandwidth = _bandwidth(timer, device)
        # torch has no fast bf16 on some CPUs, where kernels widen it and multiply in float32.
        kinds = {dtype} if on_gpu else {dtype, torch.float32}
        rate = max(_product_rate(timer, device, kind) for kind in kinds)
    return Ceilings(bandwidth, rate)


def measure_bandwidth(device: torch.device, threads: int) -> float:
    """Bytes a second, as ``measure_ceilings`` measures them."""
    with _torch_threads(threads):
        return _bandwidth(ColdTimer(device), device)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bandwidth(timer: ColdTimer, device: torch.device) -> float:
    on_gpu = device.type != "cpu"
    # Of a smaller array a part is read from caches.
    source = torch.ones(1 << (29 if on_gpu else 28), dtype=torch.float32, device=device)
    bandwidth = source.nbytes / min(timer.seconds(source.sum, _RUNS))
    if on_gpu:
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / min(timer.seconds(lambda: target.copy_(source), _RUNS))
        bandwidth = max(bandwidth, copied)
    return bandwidth


def _product_rate(timer: ColdTimer, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second."""
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if device.type == "cpu":
        # As weights lie in memory: the other way bfloat16 can be ten times slower.
        right = right.t()
    return 2 * size**3 / min(timer.seconds(lambda: left @ right, _RUNS))

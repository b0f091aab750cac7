"""What the device reaches at best, measured in the same run: the floors stand on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

_REPEATS = 8


class Ceilings(NamedTuple):
    """Best of several runs."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, threads: int) -> Ceilings:
    """Memory bandwidth (reading on a CPU, copying on a GPU) and the rate of a matrix product."""
    on_gpu = device.type != "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        items = 1 << (29 if on_gpu else 26)
        source = torch.ones(items, dtype=torch.float32, device=device)
        if on_gpu:
            target = torch.empty_like(source)
            moved, move = 2 * source.nbytes, lambda: target.copy_(source)
        else:
            moved, move = source.nbytes, lambda: source.sum()
        bandwidth = moved / _best(move, device)
        size = 8192 if on_gpu else 1024
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rate = 2 * size**3 / _best(lambda: left @ right, device)
    finally:
        torch.set_num_threads(before)
    return Ceilings(bandwidth, rate)


def _best(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)

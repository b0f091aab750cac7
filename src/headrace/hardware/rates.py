"""How fast this device copies memory and multiplies matrices, measured in about two seconds.

``python -m headrace.hardware.rates`` prints one JSON line a figure: ``headrace doctor`` asks it in
a process of its own, so that nothing that breaks here breaks the doctor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec
import torch

from headrace.hardware.device import resolve_device
from headrace.hardware.processor import usable_cores

_SECONDS_EACH = 0.5
_FEWEST, _MOST = 3, 200
_LONG_SECONDS = 1.0
"""Of a warm-up that is measured enough: bfloat16 on a processor without instructions for it."""

_CPU_COPY_BYTES, _GPU_COPY_BYTES = 256 * 2**20, 2**30
_CPU_SIZE, _GPU_SIZE = 1024, 8192


class Rate(msgspec.Struct, frozen=True):
    """One figure.

    Attributes:
        name: What was measured, and how.
        value: The median of several runs; ``None``: it could not be measured.
        unit: ``GB/s`` (10^9 bytes, read and written) or ``TFLOP/s``.
        failure: Why not, then.
    """

    name: str
    value: float | None
    unit: str
    failure: str | None = None


def measure_rates(device: torch.device) -> list[Rate]:
    """Copy bandwidth, then matrix products in bf16 (and float32 on a CPU, with all its threads).

    A figure that cannot be measured says why; the others are still measured.
    """
    gpu = device.type != "cpu"
    if not gpu:
        torch.set_num_threads(usable_cores())
    dtypes = [torch.bfloat16] if gpu else [torch.bfloat16, torch.float32]
    rates = [_guarded("copy", "GB/s", lambda: _copy(device))]
    for dtype in dtypes:
        size = _GPU_SIZE if gpu else _CPU_SIZE
        name = f"matmul {str(dtype).removeprefix('torch.')} {size}³"

        def product(dtype: torch.dtype = dtype, size: int = size) -> float:
            return _matmul(device, dtype, size)

        rates.append(_guarded(name, "TFLOP/s", product))
    return rates


def _guarded(name: str, unit: str, measure: Callable[[], float]) -> Rate:
    try:
        return Rate(name, measure(), unit)
    except Exception as error:  # a diagnosis reports whatever breaks
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Rate(name, None, unit, lines[0])


def _copy(device: torch.device) -> float:
    size = _CPU_COPY_BYTES if device.type == "cpu" else _GPU_COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device) / 1e9


def _matmul(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if device.type == "cpu":
        # As weights lie in memory: the other way bfloat16 can be ten times slower.
        right = right.t()
    out = torch.empty_like(left)
    return 2 * size**3 / _median_seconds(lambda: torch.mm(left, right, out=out), device) / 1e12


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    def timed() -> float:
        started = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - started

    warm_up = timed()
    if warm_up > _LONG_SECONDS:
        return warm_up
    samples: list[float] = []
    end = time.perf_counter() + _SECONDS_EACH
    while len(samples) < _FEWEST or (time.perf_counter() < end and len(samples) < _MOST):
        samples.append(timed())
    return statistics.median(samples)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    devices = [torch.device("cpu")]
    if resolve_device("auto").type != "cpu":
        devices.append(resolve_device("auto"))
    for where in devices:
        for rate in measure_rates(where):
            named = msgspec.structs.replace(rate, name=f"{where.type} {rate.name}")
            print(msgspec.json.encode(named).decode(), flush=True)

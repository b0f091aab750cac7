"""The time of one piece of work on a device, what it reads not in a cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_COLD_BYTES = 256 << 20
"""Read before every run, so that nothing of it is in a cache: more than any cache holds."""

_WARMUPS = 2


class ColdTimer:
    """Times work again and again.

    On a GPU the work is captured in a graph and timed by events on the device: the read that
    empties the cache still runs while the host launches it, so that no launch is part of the time.

    Args:
        device: Where the work runs.
        capture: Whether it may be captured: a GPU's work that never waits for the host.
    """

    def __init__(self, device: torch.device, *, capture: bool = True) -> None:
        self._device = device
        self._on_gpu = device.type != "cpu"
        self._capture = capture
        self._cold = torch.ones(_COLD_BYTES // 4, dtype=torch.float32, device=device)

    @torch.inference_mode()
    def seconds(self, work: Callable[[], object], runs: int) -> list[float]:
        """One time a run, after warm-ups."""
        if not self._on_gpu:
            return [self._on_host(work) for _ in range(_WARMUPS + runs)][_WARMUPS:]
        for _ in range(_WARMUPS):
            work()
        torch.cuda.synchronize(self._device)
        if self._capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            work = graph.replay
        pairs = [self._between_events(work) for _ in range(_WARMUPS + runs)]
        torch.cuda.synchronize(self._device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs[_WARMUPS:]]

    def _on_host(self, work: Callable[[], object]) -> float:
        self._cold.sum()
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def _between_events(self, work: Callable[[], object]) -> tuple[Any, Any]:
        begin: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._cold.sum()
        begin.record()
        work()
        end.record()
        return begin, end

"""The most memory that is in use while something runs: sampled, since only the system knows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import psutil

_INTERVAL_SECONDS = 0.002


class MemoryWatch:
    """Samples a reading in a thread, from ``with`` on to its end.

    Attributes:
        peak_bytes: The largest reading so far.
    """

    def __init__(self, in_use: Callable[[], int]) -> None:
        self._in_use = in_use
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> MemoryWatch:
        """Begin."""
        self.peak_bytes = self._in_use()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, with a last sample."""
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._in_use())

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._in_use())


def process_bytes() -> Callable[[], int]:
    """Reads the resident memory of this process."""
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


def gpu_bytes() -> Callable[[], int]:
    """Reads what is in use of the first NVIDIA GPU beyond what is in use now, contexts included.

    Call it before the process touches the GPU. NVML is asked, not CUDA: a graph may be captured
    meanwhile.
    """
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def used() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)

    before = used()
    return lambda: used() - before

"""How much memory a device has left, as the limits around this process allow it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Bytes that could still be allocated on ``device``.

    On a CPU the smaller of what the machine has free and what the control group leaves. On a GPU
    what the driver has free; torch's own cached blocks are given back first.
    """
    if device.type == "cpu":
        machine = int(psutil.virtual_memory().available)
        group = _control_group_bytes_left()
        return machine if group is None else min(machine, group)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


class PeakAllocation:
    """How much more than now a computation on a GPU held at its worst: no room for a cache."""

    def __init__(self, device: torch.device) -> None:
        """Begin to watch torch's allocations on ``device``."""
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)

    def transient_bytes(self) -> int:
        """Largest amount held since the beginning beyond what is held now."""
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        return max(0, peak - torch.cuda.memory_allocated(self._device))


def _control_group_bytes_left(root: Path = _CGROUP) -> int | None:
    """What a limited container may still take; ``None``: no limit."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)

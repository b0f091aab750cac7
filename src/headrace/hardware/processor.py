"""How many threads a CPU computation should use on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores that this process may use: the least of cores, affinity and quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    physical = psutil.cpu_count(logical=False)
    counts = [count for count in (affinity, physical, _quota_cores()) if count]
    return max(1, min(counts, default=1))


def _quota_cores(path: Path = _QUOTA) -> int | None:
    """Whole cores that a container's CPU quota grants; ``None``: no quota."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))

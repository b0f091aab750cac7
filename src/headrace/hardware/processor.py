"""Which processor this machine has, and how many threads a computation should use on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


_ZEN4 = (1, 6, 7, 10)
"""High digits of the model numbers of AMD's family 25 that are Zen 4; the others are Zen 3."""

_FIRST_ZEN2 = 3
"""The same digit of family 23, from which on a processor is Zen 2; those before are Zen 1."""

_INTEL = {85: "cascadelake", 106: "icelake", 143: "sapphirerapids", 207: "emeraldrapids"}


def processor() -> str:
    """The CPU's name, its microarchitecture and the number of CPUs: ``AMD EPYC (zen4), 2 CPUs``.

    Where this process may use some of them only, both numbers: ``2 of 16 CPUs``. A hypervisor gives
    processors of several generations one name.
    """
    first, count = _cpuinfo()
    name = first.get("model name") or platform.processor() or platform.machine()
    usable = _affinity() or count
    share = f"{usable} of " if usable < count else ""
    return f"{name} ({_microarchitecture()}), {share}{count} CPUs"


def usable_cores() -> int:
    """Physical cores that this process may use: the least of cores, affinity and quota."""
    physical = psutil.cpu_count(logical=False)
    counts = [count for count in (_affinity(), physical, _quota_cores()) if count]
    return max(1, min(counts, default=1))


def _affinity() -> int | None:
    """CPUs that the system lets this process run on; ``None``: unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _quota_cores(path: Path = _QUOTA) -> int | None:
    """Whole cores that a container's CPU quota grants; ``None``: no quota."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def _cpuinfo() -> tuple[dict[str, str], int]:
    """The first processor's entry of /proc/cpuinfo and the number of entries."""
    try:
        entries = Path("/proc/cpuinfo").read_text().strip().split("\n\n")
    except OSError:
        return {}, os.cpu_count() or 1
    pairs = (line.partition(":") for line in entries[0].splitlines())
    first = {key.strip(): value.strip() for key, _, value in pairs}
    return first, sum(entry.startswith("processor") for entry in entries)


def _microarchitecture() -> str:
    first, _ = _cpuinfo()
    vendor = first.get("vendor_id")
    if vendor not in ("AuthenticAMD", "GenuineIntel"):
        return _slug(first.get("model name") or platform.machine())
    family, model = int(first["cpu family"]), int(first["model"])
    if vendor == "GenuineIntel":
        known = _INTEL.get(model) if family == 6 else None
    else:
        high = model >> 4
        zen = {
            23: "zen2" if high >= _FIRST_ZEN2 else "zen1",
            25: "zen4" if high in _ZEN4 else "zen3",
            26: "zen5",
        }
        known = zen.get(family)
    return known or _slug(first["model name"])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

"""The machine: processor, memory, system; from /proc, cgroups and psutil."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_GIB = 1024**3
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "sve": "SVE",
    "i8mm": "i8mm",
}


def describe_machine() -> list[tuple[str, str]]:
    """Pairs of a name and what is known, for people."""
    cpuinfo = _cpuinfo()
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    cores = f"{physical or '?'} physical, {logical} logical, {usable} usable by this process"
    quota = cpu_quota()
    if quota is not None:
        cores += f", quota of {quota:g} CPUs"
    memory = psutil.virtual_memory()
    return [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", cpuinfo.get("model name", platform.processor() or "unknown")),
        ("cores", cores),
        ("instructions", _instructions(cpuinfo)),
        (
            "memory",
            f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB available",
        ),
    ]


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the control group (version 2) may use at once; ``None``: unlimited."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty elsewhere than on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _instructions(cpuinfo: dict[str, str]) -> str:
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    known = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    return ", ".join(known) or "none of those that headrace has kernels for"

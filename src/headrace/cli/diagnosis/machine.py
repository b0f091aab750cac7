"""The machine: processor, memory, system; from /proc and psutil."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from headrace.hardware.processor import usable_cores

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
    cores = f"{physical or '?'} physical, {logical} logical; {usable_cores()} are used unless told"
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

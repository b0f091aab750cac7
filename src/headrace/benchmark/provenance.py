"""Where a figure comes from: device, driver, versions, commit and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import headrace

_ZEN4 = (1, 6, 7, 10)
"""High digits of the model numbers of AMD's family 25 that are Zen 4; the others are Zen 3."""

_INTEL = {85: "cascadelake", 106: "icelake", 143: "sapphirerapids", 207: "emeraldrapids"}
_GPU = re.compile(r"\b(MI\d{3}[AX]?|[A-Z]{1,3}\d{2,4}[A-Z]?)\b")
_GIT_SECONDS = 10


def processor() -> str:
    """The CPU's name and the number of CPUs."""
    first, count = _cpuinfo()
    name = first.get("model name")
    return f"{name}, {count} CPUs" if name else platform.processor() or platform.machine()


def device_slug(device: str) -> str:
    """A device's name as records' file names begin: ``h100``, ``mi300x``, ``cpu-zen4``.

    Args:
        device: What the driver calls a GPU, or ``processor()``.
    """
    if device == processor():
        return f"cpu-{_microarchitecture()}"
    found = _GPU.search(device)
    return _slug(found[1] if found else device)


def gpu_driver() -> str | None:
    """The kernel driver's version, where ``nvidia-smi`` or the amdgpu module tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
    try:
        return Path("/sys/module/amdgpu/version").read_text().strip() or None
    except OSError:
        return None


def commit_of(checkout: Path) -> str:
    """The commit that is measured; ``HEADRACE_COMMIT`` tells it outside a checkout."""
    named = os.environ.get("HEADRACE_COMMIT")
    if named:
        return named
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def own_commit() -> str:
    """The commit of the headrace that runs; ``unknown`` where it was installed without one."""
    source = Path(headrace.__file__).resolve().parent
    # An installation inside somebody's checkout must not report that checkout's commit.
    return commit_of(source) if source.parent.name == "src" else commit_of(Path(os.sep))


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Python and of those ``packages`` that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command of this process, as one would type it.

    Args:
        arguments: ``sys.argv`` unless given.
    """
    program, *rest = sys.argv if arguments is None else arguments
    path = Path(program)
    if path.name == "headrace" or path.parts[-3:] == ("headrace", "cli", "__main__.py"):
        return shlex.join(["headrace", *rest])
    return shlex.join(["python", program, *rest])


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
        zen = {23: "zen2", 25: "zen4" if model >> 4 in _ZEN4 else "zen3", 26: "zen5"}
        known = zen.get(family)
    return known or _slug(first["model name"])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

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

_GPU = re.compile(r"\b(MI\d{3}[AX]?|[A-Z]{1,3}\d{2,4}[A-Z]?)\b")
_CPU = re.compile(r"\(([a-z0-9-]+)\), (?:\d+ of )?\d+ CPUs$")
_GIT_SECONDS = 10


def device_slug(device: str) -> str:
    """A device's name as records' file names begin: ``h100``, ``mi300x``, ``cpu-zen4``.

    Args:
        device: What the driver calls a GPU, or ``processor()``.
    """
    if found := _CPU.search(device):
        return f"cpu-{found[1]}"
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


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

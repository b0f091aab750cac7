"""GPUs and their drivers, as the vendors' own tools tell them."""

from __future__ import annotations

import subprocess

_TOOLS = {
    "nvidia-smi": [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ],
    "rocm-smi": ["rocm-smi", "--showproductname", "--showdriverversion", "--csv"],
}
_SECONDS = 20


def describe_drivers() -> list[tuple[str, str]]:
    """One pair a tool: its lines, or why there are none."""
    return [(name, _ask(command)) for name, command in _TOOLS.items()]


def _ask(command: list[str]) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        return "not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    said = (answer.stdout if answer.returncode == 0 else answer.stdout + answer.stderr).strip()
    if answer.returncode != 0:
        return f"failed: {said.splitlines()[-1] if said else answer.returncode}"
    return "; ".join(line.strip() for line in said.splitlines() if line.strip()) or "no GPU"

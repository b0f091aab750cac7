"""Which backends work here, asked of a process of its own: the command line never loads torch."""

from __future__ import annotations

import subprocess
import sys

import msgspec

_SECONDS = 120
_SURVEY = [sys.executable, "-m", "headrace.modeling.backends.survey"]


class Backend(msgspec.Struct, frozen=True):
    """A backend, whether it works on this machine, and with what or why not."""

    name: str
    works: bool
    detail: str


def find_backends() -> list[Backend]:
    """Every backend that headrace knows."""
    try:
        answer = subprocess.run(_SURVEY, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return [Backend("torch", False, f"importing it took longer than {_SECONDS} s")]
    if answer.returncode != 0:
        reason = answer.stderr.strip().rpartition("\n")[2] or f"exit status {answer.returncode}"
        return [Backend("torch", False, f"importing it ended the process: {reason}")]
    # Libraries may print something of their own while they are imported.
    lines = (line for line in answer.stdout.splitlines() if line.startswith("{"))
    return [msgspec.json.decode(line, type=Backend) for line in lines]

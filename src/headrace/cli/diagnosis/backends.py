"""Which backends work here, asked of a process of its own: the command line never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

_SECONDS = 120

# What is printed last is the answer: libraries may say something while they are imported.
_PROBE = """
import importlib, json

found = {}
try:
    import torch
except Exception as error:
    found["torch"] = [False, f"{type(error).__name__}: {error}"]
else:
    found["torch"] = [True, f"plain torch {torch.__version__} on the CPU"]
    try:
        if torch.cuda.is_available():
            names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
            importlib.import_module("triton")
            found["triton"] = [True, ", ".join(sorted(names))]
        elif torch.version.cuda is None and torch.version.hip is None:
            found["triton"] = [False, "this build of torch has no GPU support"]
        else:
            found["triton"] = [False, "torch finds no GPU"]
    except Exception as error:
        found["triton"] = [False, f"{type(error).__name__}: {error}"]
    try:
        importlib.import_module("headrace.kernels._native")
        found["native"] = [True, "the extension for CPUs is built"]
    except Exception as error:
        found["native"] = [False, f"the extension for CPUs cannot be loaded ({error})"]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Backend:
    """Whether a backend works on this machine, and with what or why not."""

    name: str
    works: bool
    detail: str


def find_backends() -> list[Backend]:
    """Every backend that headrace knows."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return [Backend("torch", False, f"importing it took longer than {_SECONDS} s")]
    try:
        found = json.loads(probe.stdout.strip().rpartition("\n")[2])
    except ValueError:
        reason = probe.stderr.strip().rpartition("\n")[2] or f"exit status {probe.returncode}"
        return [Backend("torch", False, f"importing it ended the process: {reason}")]
    return [
        Backend(name, works, " ".join(detail.split())) for name, (works, detail) in found.items()
    ]

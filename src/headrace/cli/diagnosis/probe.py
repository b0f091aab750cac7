"""Asking a process of its own: what breaks or hangs there does neither to the command line."""

from __future__ import annotations

import subprocess
import sys


class ProbeFailed(Exception):
    """The process ended badly or too late; the message says which in one line."""


def json_lines(module: str, seconds: float) -> list[str]:
    """The JSON objects that ``python -m module`` prints, one a line.

    Raises:
        ProbeFailed: it took longer than ``seconds``, died, or could not be started.
    """
    command = [sys.executable, "-m", module]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"it took longer than {seconds:g} s") from None
    except OSError as error:
        raise ProbeFailed(f"it could not be started ({error})") from None
    if answer.returncode != 0:
        reason = answer.stderr.strip().rpartition("\n")[2] or f"exit status {answer.returncode}"
        raise ProbeFailed(f"it ended the process: {reason}")
    # Libraries may print something of their own while they are imported.
    return [line for line in answer.stdout.splitlines() if line.startswith("{")]

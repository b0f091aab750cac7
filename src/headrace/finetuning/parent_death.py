"""Ends a training process whose launcher was killed: it gets SIGTERM, saves and exits."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies; elsewhere than on Linux nothing is done."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have died before it was asked for.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)

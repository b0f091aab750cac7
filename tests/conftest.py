"""For every test: OpenMP threads that sleep, since several test processes share the cores."""

from __future__ import annotations

import os

# Read when torch is loaded, in this process and in those that tests start. A thread that spins at
# a barrier takes the core from the one that it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

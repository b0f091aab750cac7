"""When requests are due: a Poisson process, a fixed rate, or all at once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from headrace.link.errors import ConfigurationError

ARRIVALS = ("poisson", "fixed")


def due_times(rate: float, arrival: str, seed: int) -> Iterator[float]:
    """Seconds after the beginning at which each request is due, without end.

    Args:
        rate: Requests a second; infinite: each as soon as the concurrency permits.
        arrival: ``poisson`` (independent arrivals, exponential gaps) or ``fixed`` (equal gaps).

    Raises:
        ConfigurationError: another arrival process.
    """
    if arrival not in ARRIVALS:
        raise ConfigurationError(f"--arrival must be one of {', '.join(ARRIVALS)}, got `{arrival}`")
    return _times(rate, arrival, random.Random(seed))


def _times(rate: float, arrival: str, chance: random.Random) -> Iterator[float]:
    due = 0.0
    while True:
        yield due
        if not math.isinf(rate):
            due += chance.expovariate(rate) if arrival == "poisson" else 1 / rate

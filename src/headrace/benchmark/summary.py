"""What is said of a list of samples: average, lowest, highest, percentiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """The columns of every table of samples, in the samples' unit."""

    average: float
    lowest: float
    highest: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise at least one sample.

        Raises:
            ValueError: there is none.
        """
        if not samples:
            raise ValueError("a summary needs at least one sample")
        ordered = sorted(samples)
        return cls(
            statistics.fmean(ordered),
            ordered[0],
            ordered[-1],
            *(percentile(ordered, share) for share in (0.5, 0.9, 0.99)),
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ascending samples lie, interpolated between two."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

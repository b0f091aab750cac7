"""When a difference between two rows is more than noise.

The rule: the 95 % confidence intervals of the two medians overlap, or the medians differ by less
than a share that two runs of one command may differ by. A median's interval is taken from order
statistics (the sign test's, exact for any distribution): with n samples the ranks around n/2 that
a binomial(n, 1/2) leaves out with at most 5 %. With fewer than six samples no such ranks exist and
the interval is their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import comb, inf, sqrt

from headrace.benchmark.record import Row

REPEATABILITY = 0.03
"""By how much the medians of two runs of the same command on an idle device may differ."""

_OUTSIDE = 0.05
_NORMAL_QUANTILE = 1.96
_EXACT_SAMPLES = 500
_HIGHER_IS_BETTER = ("1/s", "share")


@dataclass(frozen=True, slots=True)
class Difference:
    """How a row stands to the first series' row.

    Attributes:
        gain: How many times as good: a time divided by this time, this rate divided by a rate.
        within_noise: Whether the rule above calls it noise.
    """

    gain: float
    within_noise: bool

    def __str__(self) -> str:
        return f"{self.gain:.2f}×" + (" ≈" if self.within_noise else "")


def difference(first: Row, other: Row, repeatability: float = REPEATABILITY) -> Difference:
    """Compare two rows of the same metric and conditions."""
    up = first.unit in _HIGHER_IS_BETTER
    worse, better = (first.value, other.value) if up else (other.value, first.value)
    if worse == better:
        return Difference(1.0, True)
    gain = better / worse if worse else inf
    (low, high), (other_low, other_high) = map(median_interval, (first.samples, other.samples))
    overlap = low <= other_high and other_low <= high
    close = abs(other.value - first.value) < repeatability * abs(first.value)
    # Whoever summarises otherwise than by the median has no interval to look at.
    return Difference(gain, overlap or close)


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median; the range of fewer than six samples."""
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return ordered[rank], ordered[-1 - rank]


def _rank(count: int) -> int:
    """How many samples lie outside the interval on either side."""
    if count > _EXACT_SAMPLES:
        return max(0, int((count - _NORMAL_QUANTILE * sqrt(count)) / 2))
    tails = accumulate(comb(count, k) for k in range(count // 2))
    return max(0, sum(1 for tail in tails if 2 * tail <= _OUTSIDE * 2**count) - 1)

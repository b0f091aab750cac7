"""Who gives up its blocks when none is left."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.scheduling.sequence import Sequence


def choose_victim(candidates: Iterable[Sequence]) -> Sequence:
    """The candidate of lowest effective priority, the youngest among equals.

    The sequence that ranks first is never chosen while another is there, and ranks never
    change, so the first one always runs to its end: preemption cannot starve or livelock.

    Raises:
        ValueError: There is no candidate.
    """
    return max(candidates, key=lambda sequence: (sequence.order_key, sequence.number))

"""Requests that wait, by effective priority."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from headrace.scheduling.sequence import Sequence, SequenceStatus

_COMPACTION_MINIMUM = 64


class WaitingQueue:
    """A heap over ``(order_key, number)``; a removed sequence is skipped when it comes up.

    Effective priority grows with waiting time at the same rate for all, so the order of any two
    never changes and a key computed once is enough.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._removed = 0

    def __len__(self) -> int:
        return len(self._heap) - self._removed

    def __iter__(self) -> Iterator[Sequence]:
        """Waiting sequences in no particular order."""
        return (entry[2] for entry in self._heap if entry[2].status is SequenceStatus.WAITING)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence whose status is ``WAITING``."""
        heappush(self._heap, (sequence.order_key, sequence.number, sequence))

    def pop(self) -> Sequence:
        """Take the sequence of highest effective priority, the oldest among equals.

        Raises:
            IndexError: Nothing waits.
        """
        while True:
            sequence = heappop(self._heap)[2]
            if sequence.status is SequenceStatus.WAITING:
                return sequence
            self._removed -= 1

    def discard_ended(self) -> None:
        """Take note that one queued sequence has just been marked ``ENDED``."""
        self._removed += 1
        if self._removed > _COMPACTION_MINIMUM and 2 * self._removed > len(self._heap):
            self._heap = [e for e in self._heap if e[2].status is SequenceStatus.WAITING]
            heapify(self._heap)
            self._removed = 0

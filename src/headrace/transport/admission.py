"""Who is let in: a bound on the sequences in flight, with Retry-After from the drain rate."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from math import ceil

from headrace.link.errors import ErrorCode
from headrace.transport.errors import RequestFailure

_WINDOW_SECONDS = 30.0
_LONGEST_RETRY_SECONDS = 60


class Admission:
    """Counts sequences from a request's arrival to the last byte of its reply.

    Args:
        limit: Most sequences in flight.
        clock: Monotonic seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._in_flight = 0
        self._ends: deque[float] = deque(maxlen=4096)
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Sequences admitted and not yet over."""
        return self._in_flight

    @property
    def closed(self) -> bool:
        """Whether the server drains: nothing more is let in."""
        return self._closed

    def enter(self, sequences: int) -> None:
        """Admit ``sequences`` or refuse all of them.

        Raises:
            RequestFailure: overloaded, or shutting down.
        """
        if self._closed:
            raise RequestFailure.of_code(
                ErrorCode.SHUTTING_DOWN, "the server is shutting down", retry_after=5
            )
        if self._in_flight + sequences > self._limit:
            raise RequestFailure.of_code(
                ErrorCode.OVERLOADED,
                f"the server is at its limit of {self._limit} concurrent sequences",
                retry_after=self.retry_after(sequences),
            )
        self._in_flight += sequences
        self._idle.clear()

    def leave(self, sequences: int) -> None:
        """``sequences`` are over, however they ended."""
        self._in_flight -= sequences
        self._ends.extend([self._clock()] * sequences)
        if self._in_flight == 0:
            self._idle.set()

    def drain_rate(self) -> float:
        """Sequences that end in a second, over a sliding window; 0.0 when none ended in it."""
        now = self._clock()
        while self._ends and self._ends[0] < now - _WINDOW_SECONDS:
            self._ends.popleft()
        if not self._ends:
            return 0.0
        # At least a second: a burst of ends in one instant says little about the next.
        return len(self._ends) / max(now - self._ends[0], 1.0)

    def retry_after(self, sequences: int = 1) -> int:
        """Whole seconds after which ``sequences`` more should find room at the current rate."""
        rate = self.drain_rate()
        missing = max(self._in_flight + sequences - self._limit, 1)
        if rate <= 0.0:
            return _LONGEST_RETRY_SECONDS
        return min(max(ceil(missing / rate), 1), _LONGEST_RETRY_SECONDS)

    def close(self) -> None:
        """Let nothing more in."""
        self._closed = True

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

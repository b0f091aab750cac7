"""How fast the waiting queue drains at present."""

from __future__ import annotations

from collections import deque

_WINDOW = 64
_SHORTEST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0


class DrainRate:
    """Rate of the latest departures from the queue."""

    def __init__(self) -> None:
        self._departures: deque[float] = deque(maxlen=_WINDOW)

    def record(self, now: float) -> None:
        """One request left the queue."""
        self._departures.append(now)

    def per_second(self, now: float) -> float:
        """Departures a second from the oldest one remembered until now; 0 if none is."""
        if not self._departures:
            return 0.0
        return len(self._departures) / max(now - self._departures[0], 1e-3)

    def seconds_to_drain(self, waiting: int, now: float) -> float:
        """Time for ``waiting`` requests to leave at the current rate, between 1 s and 60 s."""
        rate = self.per_second(now)
        if rate == 0.0:
            return _LONGEST_WAIT_SECONDS
        return min(max(waiting / rate, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)

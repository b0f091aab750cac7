"""When a dead engine is started again: a growing back-off, and an end to it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """At most ``max_restarts`` in any ``window_seconds``, each after twice the delay of the last.

    Attributes:
        first_delay_seconds: Delay before the first restart of a quiet window.
        max_delay_seconds: Upper bound of a delay.
    """

    max_restarts: int = 5
    window_seconds: float = 600.0
    first_delay_seconds: float = 0.25
    max_delay_seconds: float = 8.0
    _restarts: deque[float] = field(default_factory=deque)

    def next_delay(self, now: float) -> float | None:
        """Seconds to wait before a restart at time ``now``; ``None``: give up."""
        while self._restarts and now - self._restarts[0] > self.window_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self.max_restarts:
            return None
        delay = self.first_delay_seconds * 2 ** len(self._restarts)
        self._restarts.append(now)
        return float(min(delay, self.max_delay_seconds))

"""What became of one request, and the times that are taken from it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

FORMULAS = """\
TTFT  = first output event - request sent
ITL   = output event - the output event before it
E2E   = last output event - request sent
TPOT  = (E2E - TTFT) / (output tokens - 1)
within limits = requests that succeed and keep every --limit / all requests
overhead = processor time of this process / output events"""


@dataclass(slots=True)
class Outcome:
    """One request. Times are seconds of ``time.perf_counter``.

    Attributes:
        due: When it should have been sent.
        sent: When it was, a new connection's handshake included in what follows.
        first: When the first event with output came.
        last: When the last did.
        gaps: Between successive ones, in seconds.
        events: Events with output.
        output_tokens: As the server counts; one an event where it does not say.
        error: Kind of failure; empty: it succeeded.
        message: What the server said of it.
    """

    due: float
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    gaps: array[float] = field(default_factory=lambda: array("d"))
    events: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""
    message: str = ""

    def take_output(self, now: float) -> None:
        """Count an event with output."""
        if self.events:
            self.gaps.append(now - self.last)
        else:
            self.first = now
        self.last = now
        self.events += 1

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first - self.sent

    @property
    def e2e(self) -> float:
        """Time to the last token."""
        return self.last - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; ``None``: there is one only."""
        tokens = self.output_tokens or self.events
        return (self.e2e - self.ttft) / (tokens - 1) if tokens > 1 else None

    def keeps(self, limits: dict[str, float]) -> bool:
        """Whether it succeeded within ``limits``, in seconds; ``itl`` is its longest gap."""
        if self.error:
            return False
        longest = max(self.gaps, default=0.0)
        times = {"ttft": self.ttft, "e2e": self.e2e, "tpot": self.tpot or 0.0, "itl": longest}
        return all(times[name] <= limit for name, limit in limits.items())

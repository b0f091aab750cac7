"""What a scheduler refuses, and what it reports when its own books do not balance."""

from __future__ import annotations

from headrace.link.errors import ErrorCode, HeadraceError


class QueueFull(HeadraceError):
    """The waiting queue is at its bound; the client should come back later.

    Attributes:
        waiting: Requests in the queue.
        retry_after_seconds: Time in which the queue would empty at its current drain rate.
    """

    code = ErrorCode.OVERLOADED

    def __init__(self, waiting: int, retry_after_seconds: float) -> None:
        self.waiting = waiting
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            f"the queue is full ({waiting} requests wait), "
            f"retry in {retry_after_seconds:.0f} seconds"
        )


class IntegrityError(HeadraceError):
    """Blocks, rows or queues contradict each other: a bug of the scheduler, never of a request."""

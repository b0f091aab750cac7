"""The bound on what is in flight, on a fake clock."""

from __future__ import annotations

import pytest

from headrace.transport.admission import Admission
from headrace.transport.errors import RequestFailure


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_bound_and_release() -> None:
    admission = Admission(3)
    admission.enter(2)
    with pytest.raises(RequestFailure) as refused:
        admission.enter(2)
    assert refused.value.status == 429
    admission.enter(1)
    admission.leave(3)
    assert admission.in_flight == 0


def test_retry_after_follows_the_drain_rate() -> None:
    clock = Clock()
    admission = Admission(100, clock)
    admission.enter(100)
    assert admission.retry_after() == 60
    for _ in range(20):
        clock.now += 5.0
        admission.leave(1)
        admission.enter(1)
    assert admission.drain_rate() == pytest.approx(0.2, rel=0.25)
    assert 4 <= admission.retry_after() <= 6
    assert admission.retry_after(4) > 2 * admission.retry_after()
    for _ in range(100):
        clock.now += 0.01
        admission.leave(1)
        admission.enter(1)
    assert admission.retry_after() == 1
    clock.now += 60
    assert admission.drain_rate() == 0.0


async def test_close_lets_nothing_in_and_waits_for_the_last() -> None:
    admission = Admission(2)
    admission.enter(1)
    admission.close()
    with pytest.raises(RequestFailure) as refused:
        admission.enter(1)
    assert refused.value.status == 503
    admission.leave(1)
    await admission.wait_idle()

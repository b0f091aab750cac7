"""Who runs first: priorities, ageing, bounded bypass, the bounded queue."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.link.errors import ConfigurationError, ErrorCode, InvalidRequest
from headrace.scheduling import QueueFull, Request, SchedulerLimits

NEVER = frozenset({-1})


def unique_prompt(request: int, length: int) -> list[int]:
    return [1000 * (request + 1) + position for position in range(length)]


def test_equal_priorities_are_served_in_order_of_arrival(simulate: Any) -> None:
    simulation = simulate(max_running=1)
    for request in range(5):
        simulation.add(unique_prompt(request, 3), 2, eos_token_ids=NEVER)
    simulation.run()
    assert simulation.finish_order == [0, 1, 2, 3, 4]


def test_higher_priority_is_served_first(simulate: Any) -> None:
    simulation = simulate(max_running=1)
    for request, priority in enumerate((0, 2, 1, 2)):
        simulation.add(unique_prompt(request, 3), 2, priority=priority, eos_token_ids=NEVER)
    simulation.run()
    assert simulation.finish_order == [1, 3, 2, 0]


def test_waiting_outweighs_priority_after_ageing(simulate: Any) -> None:
    simulation = simulate(max_running=1, ageing_seconds=10.0)
    low = simulation.add(unique_prompt(0, 3), 2, priority=0)
    simulation.clock.now += 29.0
    younger = simulation.add(unique_prompt(1, 3), 2, priority=3)
    simulation.clock.now += 2.0
    youngest = simulation.add(unique_prompt(2, 3), 2, priority=3)
    simulation.run()
    assert simulation.finish_order == [younger, low, youngest]


def test_a_stream_of_urgent_requests_starves_nobody(simulate: Any) -> None:
    simulation = simulate(max_running=1, ageing_seconds=1.0)
    patient = simulation.add(unique_prompt(0, 4), 2, priority=0)
    for request in range(1, 200):
        simulation.add(unique_prompt(request, 4), 1, priority=5, eos_token_ids=NEVER)
        simulation.clock.now += 0.5
        simulation.step()
        if patient in simulation.finished:
            break
    assert patient in simulation.finished
    assert 5.0 <= simulation.first_facts[patient].queue_seconds <= 7.0


def test_a_large_request_does_not_block_smaller_ones_behind_it(simulate: Any) -> None:
    simulation = simulate(num_blocks=8, max_running=4, max_bypasses=10)
    running = simulation.add(unique_prompt(0, 16), 4, ignore_eos=True)
    simulation.step()
    large = simulation.add(unique_prompt(1, 24), 2, ignore_eos=True)
    small = simulation.add(unique_prompt(2, 2), 1)
    simulation.run()
    assert simulation.finish_order.index(small) < simulation.finish_order.index(large)
    assert running in simulation.finished
    simulation.check_at_rest()


@pytest.mark.parametrize("max_bypasses", [0, 1, 2])
def test_a_large_request_is_overtaken_a_bounded_number_of_times(
    simulate: Any, max_bypasses: int
) -> None:
    simulation = simulate(num_blocks=8, max_running=3, max_bypasses=max_bypasses)
    simulation.add(unique_prompt(0, 16), 8, ignore_eos=True)
    simulation.step()
    large = simulation.add(unique_prompt(1, 24), 2, ignore_eos=True)
    overtook = 0
    for request in range(2, 200):
        # There is always a small one to overtake with.
        small = simulation.add(unique_prompt(request, 2), 6, ignore_eos=True)
        plan = simulation.step()
        admitted = [sequence.id for sequence in plan.admitted] if plan else []
        if large in admitted:
            break
        overtook += len(admitted)
        assert small not in simulation.finished
    assert large in admitted
    assert overtook == max_bypasses


def test_urgent_requests_may_still_pass_before_a_large_one_that_waits_for_blocks(
    simulate: Any,
) -> None:
    simulation = simulate(num_blocks=8, max_running=3, max_bypasses=0)
    simulation.add(unique_prompt(0, 16), 8, ignore_eos=True)
    simulation.step()
    large = simulation.add(unique_prompt(1, 24), 2)
    simulation.step()
    urgent = simulation.add(unique_prompt(2, 2), 2, priority=1)
    simulation.run()
    assert simulation.finish_order.index(urgent) < simulation.finish_order.index(large)


def test_a_full_queue_refuses_and_says_when_to_come_back(simulate: Any) -> None:
    simulation = simulate(max_running=1, max_waiting=3)
    for request in range(3):
        simulation.add(unique_prompt(request, 2), 1)
    with pytest.raises(QueueFull) as refused:
        simulation.scheduler.add(Request(id=99, token_ids=[1], max_new_tokens=1))
    assert refused.value.code is ErrorCode.OVERLOADED
    assert refused.value.waiting == 3
    # Nothing has left the queue yet, so there is no rate to promise anything by.
    assert refused.value.retry_after_seconds == 60.0
    simulation.step()
    assert simulation.add(unique_prompt(3, 2), 1) == 3
    simulation.run()
    simulation.check_at_rest()


def test_retry_after_follows_the_drain_rate(simulate: Any) -> None:
    simulation = simulate(max_running=1, max_waiting=10)
    for request in range(10):
        simulation.add(unique_prompt(request, 2), 1, eos_token_ids=NEVER)
    for request in range(10, 30):
        simulation.step()
        simulation.clock.now += 2.0
        simulation.add(unique_prompt(request, 2), 1, eos_token_ids=NEVER)
    with pytest.raises(QueueFull) as refused:
        simulation.add([1], 1)
    assert refused.value.retry_after_seconds == pytest.approx(20.0, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [1, -1]}, "token_ids"),
        ({"token_ids": [2**31]}, "token_ids"),
        ({"token_ids": ["1"]}, "token_ids"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 60}, "inputs tokens + max_new_tokens"),
    ],
)
def test_what_can_never_run_is_refused_by_name(
    simulate: Any, fields: dict[str, Any], culprit: str
) -> None:
    simulation = simulate()
    with pytest.raises(InvalidRequest) as refused:
        simulation.scheduler.add(
            Request(**({"id": 0, "token_ids": [1, 2], "max_new_tokens": 4} | fields))
        )
    assert refused.value.field == culprit
    assert not simulation.scheduler.has_work


def test_what_exceeds_the_kv_cache_alone_is_refused_and_what_just_fits_runs(simulate: Any) -> None:
    simulation = simulate(num_blocks=4, block_size=4)
    # 17 tokens in all: the last one is never computed, so 16 places are enough.
    simulation.add(unique_prompt(0, 10), 7, ignore_eos=True)
    with pytest.raises(InvalidRequest, match="KV cache"):
        simulation.scheduler.add(Request(id=1, token_ids=[1] * 10, max_new_tokens=8))
    simulation.run()
    simulation.check_at_rest()


def test_an_id_in_use_is_refused_and_free_again_afterwards(simulate: Any) -> None:
    scheduler = simulate().scheduler
    request = Request(id=7, token_ids=[1], max_new_tokens=1)
    scheduler.add(request)
    with pytest.raises(InvalidRequest):
        scheduler.add(request)
    scheduler.abort(7)
    scheduler.add(request)


@pytest.mark.parametrize(
    "fields",
    [
        {"token_budget": 3},
        {"block_size": 0},
        {"num_blocks": 0},
        {"ageing_seconds": 0.0},
        {"ageing_seconds": float("nan")},
        {"max_prefill_chunk": 0},
        {"max_bypasses": -1},
    ],
)
def test_limits_are_held_against_their_bounds(fields: dict[str, Any]) -> None:
    good = {
        "token_budget": 8,
        "max_running": 4,
        "max_waiting": 4,
        "block_size": 4,
        "num_blocks": 4,
        "max_sequence_length": 16,
    }
    SchedulerLimits(**good)
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        SchedulerLimits(**(good | fields))


def test_many_aborted_waiting_requests_leave_the_order_as_it_was(simulate: Any) -> None:
    simulation = simulate(max_running=1, max_waiting=500)
    ids = [simulation.add(unique_prompt(n, 2), 1, priority=n % 3) for n in range(400)]
    for request_id in ids:
        if request_id % 10:
            simulation.abort(request_id)
    simulation.scheduler.check_integrity()
    assert simulation.scheduler.stats().waiting == 40
    simulation.run()
    kept = [request_id for request_id in ids if request_id % 10 == 0]
    assert simulation.finish_order == sorted(kept, key=lambda n: (-(n % 3), n))
    simulation.check_at_rest()

"""KV blocks: sharing of prefixes, eviction, preemption by recompute."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.scheduling import IntegrityError

PREFIX = list(range(1, 13))


def cached_tokens(simulation: Any, request_id: int) -> int:
    return simulation.first_facts[request_id].cached_tokens


def served(simulation: Any, prompt: list[int], **fields: Any) -> int:
    """Run one request to its end; the prompt tokens it took from the cache."""
    request_id = simulation.add(prompt, 2, ignore_eos=True, **fields)
    simulation.run()
    return cached_tokens(simulation, request_id)


def test_equal_prefixes_are_computed_once(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    assert served(simulation, [*PREFIX, 20, 21]) == 0
    assert served(simulation, [*PREFIX, 30]) == 12
    assert served(simulation, [*PREFIX[:8], 40, 41, 42, 43, 44]) == 8
    assert served(simulation, [9, *PREFIX]) == 0
    stats = simulation.scheduler.stats()
    assert stats.prefix_hit_tokens_total == 20
    simulation.check_at_rest()


def test_at_least_the_last_prompt_token_is_computed(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    assert served(simulation, PREFIX) == 0
    assert served(simulation, PREFIX) == 8
    simulation.check_at_rest()


def test_a_running_request_shares_its_blocks(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    simulation.add([*PREFIX, 20], 10, ignore_eos=True)
    simulation.step()
    simulation.add([*PREFIX, 30], 10, ignore_eos=True)
    plan = simulation.step()
    assert plan.admitted[0].block_table[:3] == plan.scheduled[0].sequence.block_table[:3]
    assert simulation.scheduler.stats().kv_blocks_used == 5
    simulation.abort(0)
    simulation.run()
    simulation.check_at_rest()


def test_generated_tokens_are_cached_for_the_next_turn(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    first = simulation.add(PREFIX, 9, ignore_eos=True)
    simulation.run()
    conversation = PREFIX + simulation.outputs[first]
    assert served(simulation, [*conversation, 50]) == 20


def test_salts_keep_users_apart(simulate: Any) -> None:
    simulation = simulate(num_blocks=64)
    prompt = [*PREFIX, 20]
    assert served(simulation, prompt, cache_salt="alice") == 0
    assert served(simulation, prompt, cache_salt="bob") == 0
    assert served(simulation, prompt) == 0
    assert served(simulation, prompt, cache_salt="alice") == 12
    simulation.check_at_rest()


def test_adapters_share_no_blocks_whatever_salt_a_client_sends(simulate: Any) -> None:
    simulation = simulate(num_blocks=64)
    prompt = [*PREFIX, 20]
    assert served(simulation, prompt, adapter="poet") == 0
    assert served(simulation, prompt) == 0
    assert served(simulation, prompt, adapter="lawyer") == 0
    for salt in ("poet", "poet\0", "\0poet", "\0"):
        assert served(simulation, prompt, cache_salt=salt) == 0
    assert served(simulation, prompt, adapter="poet", cache_salt="alice") == 0
    assert served(simulation, prompt, adapter="poet") == 12
    assert served(simulation, prompt) == 12
    simulation.check_at_rest()


def test_prompt_logits_skip_the_lookup_but_fill_the_cache(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    prompt = [*PREFIX, 20]
    assert served(simulation, prompt, needs_prompt_logits=True) == 0
    assert served(simulation, prompt, needs_prompt_logits=True) == 0
    assert served(simulation, prompt) == 12
    simulation.check_at_rest()


def test_the_cache_can_be_switched_off(simulate: Any) -> None:
    simulation = simulate(prefix_cache=False)
    assert served(simulation, PREFIX) == 0
    assert served(simulation, PREFIX) == 0
    assert simulation.scheduler.stats().kv_blocks_cached == 0


def test_a_flush_forgets_what_nobody_holds(simulate: Any) -> None:
    simulation = simulate(num_blocks=32)
    served(simulation, PREFIX)
    assert simulation.scheduler.flush_prefix_cache() == 3
    assert served(simulation, PREFIX) == 0
    simulation.check_at_rest()


def test_the_least_recently_used_prefix_is_evicted_first(simulate: Any) -> None:
    simulation = simulate(num_blocks=8)
    old, recent = [1] * 9, [2] * 9
    served(simulation, old)
    served(simulation, recent)
    served(simulation, old)
    # Needs six blocks: four free ones and two of the four cached.
    served(simulation, [3] * 23)
    assert served(simulation, old) == 8
    assert served(simulation, recent) == 0


def test_the_beginning_of_a_prefix_outlives_its_end(simulate: Any) -> None:
    simulation = simulate(num_blocks=6)
    served(simulation, [1] * 17)
    # Needs three blocks of the six; two are free, so one of the four cached is dropped.
    served(simulation, [2] * 10)
    assert served(simulation, [1] * 17) == 12


def test_cached_blocks_are_evicted_before_anyone_is_preempted(simulate: Any) -> None:
    simulation = simulate(num_blocks=8)
    served(simulation, [1] * 20)
    simulation.add([2] * 4, 12, ignore_eos=True)
    simulation.add([3] * 4, 12, ignore_eos=True)
    simulation.run()
    assert simulation.scheduler.stats().preemptions_total == 0
    simulation.check_at_rest()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preempted_requests_generate_the_same_tokens(
    simulate: Any, depth: int, prefix_cache: bool
) -> None:
    simulation = simulate(depth=depth, num_blocks=8, prefix_cache=prefix_cache)
    for request in range(6):
        simulation.add([request + 1] * 4, 20, ignore_eos=True)
    simulation.run()
    assert simulation.scheduler.stats().preemptions_total > 0
    simulation.check_at_rest()


@pytest.mark.parametrize(
    ("priorities", "survivor"), [((0, 0), 0), ((1, 0), 0), ((0, 1), 1), ((0, 3), 1)]
)
def test_the_lowest_priority_then_the_youngest_is_preempted(
    simulate: Any, priorities: tuple[int, int], survivor: int
) -> None:
    simulation = simulate(num_blocks=6)
    for request, priority in enumerate(priorities):
        simulation.add([request + 1] * 4, 16, priority=priority, ignore_eos=True)
    simulation.run()
    assert simulation.scheduler.stats().preemptions_total >= 1
    assert simulation.finish_order == [survivor, 1 - survivor]
    simulation.check_at_rest()


def test_a_preempted_request_waits_until_it_can_stay(simulate: Any) -> None:
    """The request that was preempted is not admitted just to be preempted again."""
    simulation = simulate(num_blocks=12, max_running=3, prefix_cache=False)
    for request in range(3):
        simulation.add([request + 1] * 8, 30, ignore_eos=True)
    simulation.run()
    assert 1 <= simulation.scheduler.stats().preemptions_total <= 4
    simulation.check_at_rest()


def test_admission_leaves_room_for_those_that_run(simulate: Any) -> None:
    simulation = simulate(num_blocks=4, max_running=2, prefix_cache=False)
    simulation.add([1] * 6, 5, ignore_eos=True)
    simulation.step()
    # Two blocks are left. This one would take both, and the first soon needs one.
    simulation.add([2] * 8, 5, ignore_eos=True)
    assert simulation.step().admitted == []
    simulation.run()
    assert simulation.scheduler.stats().preemptions_total == 0
    simulation.check_at_rest()


def test_steps_in_flight_give_back_blocks_before_anyone_is_preempted(simulate: Any) -> None:
    simulation = simulate(num_blocks=7, max_running=3, depth=2, prefix_cache=False)
    simulation.add([1] * 4, 5, ignore_eos=True)
    needy = simulation.add([2] * 4, 6, ignore_eos=True)
    simulation.add([3] * 5, 6, ignore_eos=True)
    for _ in range(5):
        assert len(simulation.step().scheduled) == 3
    # The first has ended, but its last step is in flight: one more step without the needy one.
    assert needy not in [item.sequence.id for item in simulation.step().scheduled]
    assert needy in [item.sequence.id for item in simulation.step().scheduled]
    simulation.run()
    assert simulation.scheduler.stats().preemptions_total == 0
    simulation.check_at_rest()


def test_the_integrity_check_sees_a_leaked_block(simulate: Any) -> None:
    simulation = simulate()
    simulation.add([1] * 9, 5, ignore_eos=True)
    plan = simulation.step()
    simulation.scheduler.check_integrity()
    plan.scheduled[0].sequence.block_table.pop()
    with pytest.raises(IntegrityError, match="holders"):
        simulation.scheduler.check_integrity()


def test_nobody_is_admitted_in_the_step_that_preempts(simulate: Any) -> None:
    simulation = simulate(num_blocks=16, max_running=4, prefix_cache=False)
    for request in range(30):
        long = request % 3 == 0
        simulation.add([request + 1] * (12 if long else 1), 24 if long else 12, ignore_eos=True)
    steps_that_preempt = 0
    while simulation.scheduler.has_work:
        before = simulation.scheduler.stats().preemptions_total
        plan = simulation.step()
        if simulation.scheduler.stats().preemptions_total > before:
            steps_that_preempt += 1
            assert plan.admitted == []
    assert steps_that_preempt
    simulation.check_at_rest()

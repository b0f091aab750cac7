"""What goes into a step: decode first, chunks under the budget, plans ahead, ends."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.scheduling import Request


def shape(plan: Any) -> list[tuple[int, int, int, bool]]:
    """(request, start, tokens, samples) of each scheduled sequence."""
    return [
        (item.sequence.id, item.start, item.num_tokens, item.samples) for item in plan.scheduled
    ]


def test_decode_comes_first_then_running_prompts_then_admission(simulate: Any) -> None:
    simulation = simulate(token_budget=10, max_running=4, num_blocks=64, prefix_cache=False)
    decoding = simulation.add([1, 2], 20, ignore_eos=True)
    simulation.step()
    long = simulation.add([3] * 14, 5, ignore_eos=True)
    assert shape(simulation.step()) == [(decoding, 2, 1, True), (long, 0, 9, False)]
    short = simulation.add([4, 5], 5, ignore_eos=True)
    assert shape(simulation.step()) == [
        (decoding, 3, 1, True),
        (long, 9, 5, True),
        (short, 0, 2, True),
    ]
    # Whose context is longest comes first.
    assert shape(simulation.step()) == [
        (long, 14, 1, True),
        (decoding, 4, 1, True),
        (short, 2, 1, True),
    ]
    simulation.run()
    simulation.check_at_rest()


def test_a_chunk_cap_lets_prompts_share_a_step(simulate: Any) -> None:
    simulation = simulate(token_budget=8, max_prefill_chunk=3, num_blocks=64)
    for token in (1, 2):
        simulation.add([token] * 7, 2)
    assert shape(simulation.step()) == [(0, 0, 3, False), (1, 0, 3, False)]
    assert shape(simulation.step()) == [(0, 3, 3, False), (1, 3, 3, False)]
    assert shape(simulation.step()) == [(0, 6, 1, True), (1, 6, 1, True)]


def test_prompts_fill_a_smaller_budget_beside_sequences_that_decode(simulate: Any) -> None:
    simulation = simulate(token_budget=30, mixed_token_budget=6, num_blocks=64, prefix_cache=False)
    simulation.add([1] * 20, 20, ignore_eos=True)
    # Alone a prompt has the whole budget.
    assert shape(simulation.step()) == [(0, 0, 20, True)]
    simulation.add([2] * 9, 20, ignore_eos=True)
    assert shape(simulation.step()) == [(0, 20, 1, True), (1, 0, 5, False)]
    assert shape(simulation.step()) == [(0, 21, 1, True), (1, 5, 4, True)]
    simulation.run()
    simulation.check_at_rest()


def test_however_many_decode_prompts_get_as_many_tokens(simulate: Any) -> None:
    simulation = simulate(token_budget=30, max_running=8, mixed_token_budget=1, num_blocks=128)
    for token in range(1, 6):
        simulation.add([token], 30, ignore_eos=True)
    simulation.step()
    simulation.add([7] * 8, 5, ignore_eos=True)
    assert [item.num_tokens for item in simulation.step().scheduled] == [1] * 5 + [5]
    assert [item.num_tokens for item in simulation.step().scheduled] == [1] * 5 + [3]
    simulation.run()
    simulation.check_at_rest()


def test_every_running_sequence_advances_in_every_step(simulate: Any) -> None:
    simulation = simulate(token_budget=4, max_running=4, num_blocks=64)
    for token in range(1, 5):
        simulation.add([token], 10, ignore_eos=True)
    simulation.step()
    for _ in range(9):
        assert len(simulation.step().scheduled) == 4


def test_row_and_block_changes_are_told_once(simulate: Any) -> None:
    simulation = simulate(num_blocks=8, max_running=2)
    simulation.add([1, 2, 3], 6, ignore_eos=True)
    first = simulation.step()
    assert [sequence.id for sequence in first.admitted] == [0]
    assert (first.appended, first.freed_rows) == ([], [])
    row = first.admitted[0].row
    second = simulation.step()
    assert (second.admitted, second.appended, second.freed_rows) == ([], [], [])
    third = simulation.step()
    assert [(change.row, change.table_index) for change in third.appended] == [(row, 1)]
    simulation.run()
    simulation.add([5], 1)
    again = simulation.step()
    assert again.freed_rows == [row]
    assert [sequence.id for sequence in again.admitted] == [1]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_end_by_length_is_never_planned_past(simulate: Any, depth: int) -> None:
    simulation = simulate(depth=depth)
    simulation.add([1, 2, 3, 4, 5], 4, ignore_eos=True)
    planned = 0
    while simulation.scheduler.has_work:
        plan = simulation.step()
        planned += plan.num_tokens if plan else 0
    assert planned == 5 + 3
    assert simulation.finished == {0: "length"}
    simulation.check_at_rest()


def request_that_ends_early(model_output: Any) -> list[int]:
    """A prompt after which the simulated model soon says end of sequence, though not at once."""
    for first in range(1000):
        output = model_output(
            Request(id=0, token_ids=[first], max_new_tokens=30, eos_token_ids=frozenset({0}))
        )
        if 3 <= len(output) <= 6 and output[-1] == 0:
            return [first]
    raise AssertionError("the model never ends")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tokens_computed_past_the_end_of_sequence_are_dropped(
    simulate: Any, model_output: Any, depth: int
) -> None:
    simulation = simulate(depth=depth)
    prompt = request_that_ends_early(model_output)
    simulation.add(prompt, 30)
    planned = 0
    while simulation.scheduler.has_work:
        plan = simulation.step()
        planned += plan.num_tokens if plan else 0
    output = simulation.outputs[0]
    assert output[-1] == 0
    assert simulation.finished == {0: "eos_token"}
    assert planned == len(prompt) + len(output) - 1 + (depth - 1)
    simulation.check_at_rest()


def test_min_new_tokens_and_ignore_eos_outlast_an_end_of_sequence(
    simulate: Any, model_output: Any
) -> None:
    simulation = simulate()
    prompt = request_that_ends_early(model_output)
    ending = simulation.add(prompt, 30)
    ignoring = simulation.add(prompt, 30, ignore_eos=True)
    patient = simulation.add(prompt, 30, min_new_tokens=6)
    simulation.run()
    assert len(simulation.outputs[ending]) <= 6
    assert len(simulation.outputs[ignoring]) == 30
    assert len(simulation.outputs[patient]) > 6
    simulation.check_at_rest()


def test_min_new_tokens_counts_the_ending_token_itself(simulate: Any, model_output: Any) -> None:
    prompt = request_that_ends_early(model_output)
    natural = len(
        model_output(
            Request(id=0, token_ids=prompt, max_new_tokens=30, eos_token_ids=frozenset({0}))
        )
    )
    simulation = simulate()
    simulation.add(prompt, 30, min_new_tokens=natural - 1)
    simulation.add(prompt, 30, min_new_tokens=natural)
    simulation.run()
    assert len(simulation.outputs[0]) == natural
    assert len(simulation.outputs[1]) > natural


def test_one_new_token_needs_no_decode_step(simulate: Any) -> None:
    simulation = simulate()
    simulation.add([1, 2, 3], 1)
    simulation.step()
    assert simulation.finished[0] in ("length", "eos_token")
    simulation.check_at_rest()


def test_first_output_tells_queue_time_and_cached_tokens(simulate: Any) -> None:
    simulation = simulate(max_running=1, num_blocks=32)
    prompt = list(range(1, 14))
    simulation.add(prompt, 3, ignore_eos=True)
    simulation.add(prompt, 3, ignore_eos=True)
    simulation.clock.now += 2.5
    simulation.step()
    simulation.clock.now += 1.0
    simulation.run()
    first, second = simulation.first_facts[0], simulation.first_facts[1]
    assert (first.queue_seconds, first.cached_tokens) == (2.5, 0)
    assert (second.queue_seconds, second.cached_tokens) == (3.5, 12)


def test_an_abort_frees_everything_at_once_when_nothing_is_in_flight(simulate: Any) -> None:
    simulation = simulate(max_running=1)
    simulation.add([1, 2, 3, 4, 5], 20, ignore_eos=True)
    waiting = simulation.add([6], 5)
    simulation.step()
    assert simulation.abort(0)
    assert not simulation.abort(0)
    assert simulation.abort(waiting)
    simulation.check_at_rest()


def test_an_abort_in_flight_keeps_blocks_and_row_until_the_step_completes(simulate: Any) -> None:
    simulation = simulate(max_running=1, depth=2)
    simulation.add([1, 2, 3, 4, 5], 20, ignore_eos=True)
    simulation.launch()
    simulation.abort(0)
    assert simulation.scheduler.stats().kv_blocks_used == 2
    simulation.add([6], 5, ignore_eos=True)
    assert simulation.launch() is None
    assert simulation.land() == []
    assert simulation.scheduler.stats().kv_blocks_used == 0
    assert [sequence.id for sequence in simulation.launch().admitted] == [1]
    simulation.run()
    simulation.check_at_rest()


def test_aborting_one_request_leaves_the_tokens_of_its_batch(simulate: Any) -> None:
    simulation = simulate(depth=2, num_blocks=64)
    for token in range(1, 5):
        simulation.add([token, token + 1], 12, ignore_eos=True)
    for _ in range(4):
        simulation.step()
    simulation.abort(2)
    simulation.run()
    simulation.check_at_rest()
    assert set(simulation.finished) == {0, 1, 3}


def test_plans_are_completed_once_and_in_order(simulate: Any) -> None:
    scheduler = simulate().scheduler
    scheduler.add(Request(id=0, token_ids=[1], max_new_tokens=5))
    first, second = scheduler.plan(), scheduler.plan()
    with pytest.raises(ValueError, match="order"):
        scheduler.complete(second, [3])
    with pytest.raises(ValueError, match="samples 1 tokens, got 2"):
        scheduler.complete(first, [3, 4])
    scheduler.complete(first, [3])
    with pytest.raises(ValueError, match="order"):
        scheduler.complete(first, [3])
    scheduler.complete(second, [4])
    scheduler.check_integrity()

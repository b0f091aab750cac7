"""Whatever comes in, in whatever order: nothing is lost, mixed up, leaked or starved."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headrace.link.errors import InvalidRequest
from headrace.scheduling import QueueFull

SALTS = ("", "alice", "bob\0")
ADAPTERS = (None, "alice", "bob")


def machine_over(make_simulation: Callable[..., Any]) -> type[RuleBasedStateMachine]:
    """The state machine over the simulated device that the fixture provides."""

    class SchedulerMachine(RuleBasedStateMachine):
        @initialize(
            depth=st.integers(1, 3),
            block_size=st.integers(1, 5),
            num_blocks=st.integers(4, 24),
            max_running=st.integers(1, 6),
            spare_budget=st.integers(0, 12),
            chunk=st.none() | st.integers(1, 6),
            mixed=st.none() | st.integers(1, 9),
            prefix_cache=st.booleans(),
            max_bypasses=st.integers(0, 3),
            lookahead=st.integers(1, 4),
        )
        def start(
            self,
            depth: int,
            block_size: int,
            num_blocks: int,
            max_running: int,
            spare_budget: int,
            chunk: int | None,
            mixed: int | None,
            prefix_cache: bool,
            max_bypasses: int,
            lookahead: int,
        ) -> None:
            self.simulation = make_simulation(
                depth=depth,
                block_size=block_size,
                num_blocks=num_blocks,
                max_running=max_running,
                token_budget=max_running + spare_budget,
                max_waiting=8,
                max_sequence_length=48,
                max_prefill_chunk=chunk,
                mixed_token_budget=mixed,
                prefix_cache=prefix_cache,
                max_bypasses=max_bypasses,
                admission_lookahead=lookahead,
            )

        @rule(
            shared=st.integers(0, 20),
            own=st.lists(st.integers(0, 3), min_size=1, max_size=8),
            max_new_tokens=st.integers(1, 20),
            priority=st.integers(-2, 2),
            salt=st.sampled_from(SALTS),
            adapter=st.sampled_from(ADAPTERS),
            ignore_eos=st.booleans(),
            min_new_tokens=st.integers(0, 3),
            needs_prompt_logits=st.booleans(),
        )
        def add(self, shared: int, own: list[int], max_new_tokens: int, **fields: Any) -> None:
            simulation = self.simulation
            tokens = [1, 2, 3, 4, 5] * 4
            fields["cache_salt"] = fields.pop("salt")
            limits = simulation.limits
            total = shared + len(own) + max_new_tokens
            too_long = (
                total > limits.max_sequence_length
                or total - 1 > limits.num_blocks * limits.block_size
            )
            full = simulation.scheduler.stats().waiting >= limits.max_waiting
            try:
                simulation.add(tokens[:shared] + own, max_new_tokens, **fields)
            except InvalidRequest:
                assert too_long
            except QueueFull:
                assert full
            else:
                assert not too_long
                assert not full

        @precondition(lambda self: self.simulation.requests)
        @rule(data=st.data())
        def abort(self, data: st.DataObject) -> None:
            request_id = data.draw(st.integers(0, len(self.simulation.requests) - 1))
            self.simulation.abort(request_id)

        @rule(seconds=st.floats(0, 5))
        def wait(self, seconds: float) -> None:
            self.simulation.clock.now += seconds

        @rule(turns=st.integers(1, 6))
        def step(self, turns: int) -> None:
            for _ in range(turns):
                self.simulation.step()

        @precondition(lambda self: len(self.simulation.flight) < self.simulation.depth)
        @rule()
        def launch(self) -> None:
            self.simulation.launch()

        @precondition(lambda self: self.simulation.flight)
        @rule()
        def land(self) -> None:
            self.simulation.land()

        @rule()
        def flush(self) -> None:
            self.simulation.scheduler.flush_prefix_cache()

        @invariant()
        def books_balance(self) -> None:
            self.simulation.scheduler.check_integrity()

        def teardown(self) -> None:
            if hasattr(self, "simulation"):
                self.simulation.run()
                self.simulation.check_at_rest()

    return SchedulerMachine


def test_any_order_of_events(simulate: Any) -> None:
    run_state_machine_as_test(
        machine_over(simulate),
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [12, 24, 80])
def test_long_random_load(simulate: Any, depth: int, num_blocks: int) -> None:
    """Hundreds of requests with shared prefixes through a cache of little to ample size."""
    rng = random.Random(f"{depth}/{num_blocks}")
    simulation = simulate(
        depth=depth,
        num_blocks=num_blocks,
        max_running=8,
        token_budget=24,
        max_waiting=20,
        max_sequence_length=48,
        max_bypasses=4,
    )
    prefixes = [[rng.randint(1, 9) for _ in range(16)] for _ in range(4)]
    while len(simulation.requests) < 400:
        simulation.clock.now += rng.random()
        for _ in range(rng.choice((0, 0, 1, 3))):
            if simulation.scheduler.stats().waiting < simulation.limits.max_waiting:
                prompt = rng.choice(prefixes)[: rng.randint(0, 16)]
                prompt = prompt + [rng.randint(0, 9) for _ in range(rng.randint(1, 8))]
                simulation.add(
                    prompt,
                    rng.randint(1, 24),
                    priority=rng.randint(0, 3),
                    cache_salt=rng.choice(SALTS),
                    adapter=rng.choice(ADAPTERS),
                    ignore_eos=rng.random() < 0.5,
                )
        if simulation.requests and rng.random() < 0.1:
            simulation.abort(rng.randrange(len(simulation.requests)))
        simulation.step()
        simulation.scheduler.check_integrity()
    simulation.run()
    simulation.check_at_rest()
    stats = simulation.scheduler.stats()
    assert stats.prefix_hit_tokens_total > 0
    if num_blocks == 12:
        assert stats.preemptions_total > 0

"""A device in miniature: runs plans over a simulated KV cache and a deterministic model.

Every cache slot holds a digest of the salt and of all tokens up to its position, which is what a
transformer's keys and values depend on. The model's next token is read from the slot of the last
token, so any mix-up of tokens, positions, blocks or salts changes what is generated.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from headrace.scheduling import (
    Request,
    ScheduledSequence,
    Scheduler,
    SchedulerLimits,
    SequenceOutput,
    StepPlan,
)

VOCABULARY = 11
EOS = 0


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def first_digest(request: Request) -> int:
    return zlib.crc32(repr((request.adapter, request.cache_salt)).encode())


def extend(digest: int, token: int) -> int:
    return hash((digest, token))


def next_token(digest: int) -> int:
    return digest % VOCABULARY


def expected_output(request: Request) -> list[int]:
    """What the model generates for a request that has the device to itself."""
    digest = first_digest(request)
    for token in request.token_ids:
        digest = extend(digest, token)
    output: list[int] = []
    while len(output) < request.max_new_tokens:
        output.append(next_token(digest))
        digest = extend(digest, output[-1])
        may_end = not request.ignore_eos and len(output) > request.min_new_tokens
        if may_end and output[-1] in request.eos_token_ids:
            break
    return output


@dataclass
class Launch:
    """A step as the device got it at planning time: known tokens and tables are copied."""

    plan: StepPlan
    inputs: list[tuple[ScheduledSequence, int, list[int], list[int]]] = field(default_factory=list)

    def writes(self, block_size: int) -> dict[int, int]:
        """Block to the request that writes to it."""
        return {
            table[position // block_size]: item.sequence.id
            for item, _, _, table in self.inputs
            for position in range(item.start, item.start + item.num_tokens)
        }


class Simulation:
    """A scheduler with its device; holds every plan against the promises of the face."""

    def __init__(self, *, depth: int = 1, **limits: object) -> None:
        values: dict[str, object] = {
            "token_budget": 16,
            "max_running": 4,
            "max_waiting": 100,
            "block_size": 4,
            "num_blocks": 16,
            "max_sequence_length": 60,
        }
        self.clock = FakeClock()
        self.limits = SchedulerLimits(**(values | limits))  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.limits, self.clock)
        self.depth = depth
        self.flight: deque[Launch] = deque()
        self.requests: dict[int, Request] = {}
        self.outputs: dict[int, list[int]] = {}
        self.first_facts: dict[int, SequenceOutput] = {}
        self.finished: dict[int, str] = {}
        self.aborted: set[int] = set()
        self.finish_order: list[int] = []
        self._tables: dict[int, list[int]] = {}
        self._owner: dict[int, int] = {}
        self._last_token: dict[int, int] = {}
        self._cache: dict[int, int] = {}

    # What a client does.

    def add(self, token_ids: list[int], max_new_tokens: int, **fields: object) -> int:
        request_id = len(self.requests)
        values: dict[str, object] = {"eos_token_ids": frozenset({EOS})}
        request = Request(
            id=request_id,
            token_ids=token_ids,
            max_new_tokens=max_new_tokens,
            **(values | fields),  # type: ignore[arg-type]
        )
        self.scheduler.add(request)
        self.requests[request_id] = request
        self.outputs[request_id] = []
        return request_id

    def abort(self, request_id: int) -> bool:
        known = self.scheduler.abort(request_id)
        assert known == (request_id not in self.finished and request_id not in self.aborted)
        if known:
            self.aborted.add(request_id)
        return known

    # What an engine does.

    def launch(self) -> StepPlan | None:
        """Plan one step and hand it to the device."""
        plan = self.scheduler.plan()
        if plan is None:
            assert self.flight or not self.scheduler.has_work, "stuck with nothing in flight"
            return None
        block_size = self.limits.block_size
        assert plan.scheduled
        assert plan.num_tokens == sum(item.num_tokens for item in plan.scheduled)
        assert plan.num_tokens <= self.limits.token_budget
        assert plan.num_samples == sum(item.samples for item in plan.scheduled)
        self._apply_table_changes(plan)
        launch = Launch(plan)
        seen: set[int] = set()
        for item in plan.scheduled:
            sequence = item.sequence
            row = sequence.row
            assert self._owner[row] == sequence.id
            assert row not in seen
            seen.add(row)
            assert item.num_tokens >= 1
            known = list(sequence.tokens[item.start : item.start + item.num_tokens])
            # Only a lone token may still lie on the device.
            assert len(known) == item.num_tokens or item.num_tokens == 1
            assert item.samples == (item.start + item.num_tokens >= len(sequence.tokens))
            table = list(self._tables[row])
            assert table == sequence.block_table
            assert len(table) * block_size >= item.start + item.num_tokens
            launch.inputs.append((item, row, known, table))
        self.flight.append(launch)
        return plan

    def _apply_table_changes(self, plan: StepPlan) -> None:
        """Follow the plan's deltas; nothing that a step in flight writes may change hands."""
        for row in plan.freed_rows:
            del self._tables[row]
            del self._owner[row]
        given: list[tuple[int, int]] = []
        for sequence in plan.admitted:
            assert 0 <= sequence.row < self.limits.max_running
            assert sequence.row not in self._tables
            self._tables[sequence.row] = list(sequence.block_table)
            self._owner[sequence.row] = sequence.id
            given += [(block, sequence.id) for block in sequence.block_table]
        for row, table_index, block in plan.appended:
            assert len(self._tables[row]) == table_index
            self._tables[row].append(block)
            given.append((block, self._owner[row]))
        for launch in self.flight:
            written = launch.writes(self.limits.block_size)
            for block, owner in given:
                assert written.get(block, owner) == owner, "a block in flight changed hands"
            for row in (sequence.row for sequence in plan.admitted):
                assert all(row != used for _, used, _, _ in launch.inputs), "a row in flight"

    def land(self) -> list[SequenceOutput]:
        """Compute the oldest step in flight, as late as possible, and complete it."""
        launch = self.flight.popleft()
        sampled = self._compute(launch)
        outputs = self.scheduler.complete(launch.plan, sampled)
        for output in outputs:
            self._take(output, sampled)
        return outputs

    def _compute(self, launch: Launch) -> list[int]:
        sampled: list[int] = []
        for item, row, known, table in launch.inputs:
            tokens = known or [self._last_token[row]]
            request = item.sequence.request
            truth = [*request.token_ids, *self._model_output(request)]
            digest = first_digest(request)
            for position in range(item.start):
                digest = extend(digest, truth[position])
                assert self._cache[self._slot(table, position)] == digest, "wrong context"
            for position, token in enumerate(tokens, start=item.start):
                digest = extend(digest, token)
                self._cache[self._slot(table, position)] = digest
            if item.samples:
                self._last_token[row] = next_token(digest)
                sampled.append(self._last_token[row])
        return sampled

    def _model_output(self, request: Request) -> list[int]:
        unending = Request(
            id=request.id,
            token_ids=request.token_ids,
            max_new_tokens=request.max_new_tokens,
            cache_salt=request.cache_salt,
            adapter=request.adapter,
        )
        return expected_output(unending)

    def _slot(self, table: list[int], position: int) -> int:
        block_size = self.limits.block_size
        return table[position // block_size] * block_size + position % block_size

    def _take(self, output: SequenceOutput, sampled: list[int]) -> None:
        request_id = output.sequence.id
        assert request_id not in self.finished
        assert request_id not in self.aborted
        assert output.token_id == sampled[output.sample_index]
        if not self.outputs[request_id]:
            assert output.queue_seconds is not None
            assert output.queue_seconds >= 0
            assert output.cached_tokens is not None
            assert 0 <= output.cached_tokens < len(self.requests[request_id].token_ids)
            assert output.cached_tokens % self.limits.block_size == 0
            self.first_facts[request_id] = output
        else:
            assert output.queue_seconds is None
            assert output.cached_tokens is None
        self.outputs[request_id].append(output.token_id)
        if output.finish_reason is not None:
            self.finished[request_id] = output.finish_reason
            self.finish_order.append(request_id)

    def step(self) -> StepPlan | None:
        """One turn of an engine that keeps ``depth`` steps in flight."""
        plan = self.launch()
        if self.flight and (plan is None or len(self.flight) >= self.depth):
            self.land()
        return plan

    def run(self, max_steps: int = 100_000) -> int:
        """Step until nothing is left; the number of turns."""
        for turn in range(max_steps):
            if not self.scheduler.has_work:
                return turn
            self.step()
        raise AssertionError(f"work is left after {max_steps} steps")

    def check_at_rest(self) -> None:
        """Nothing is lost, and every request got exactly what the model says."""
        assert not self.scheduler.has_work
        self.scheduler.check_integrity()
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        for request_id, request in self.requests.items():
            expected = expected_output(request)
            if request_id in self.aborted:
                assert self.outputs[request_id] == expected[: len(self.outputs[request_id])]
                continue
            assert self.outputs[request_id] == expected
            ended_by_length = len(expected) == request.max_new_tokens
            if not ended_by_length:
                assert self.finished[request_id] == "eos_token"
            assert self.finished[request_id] in ("length", "eos_token")


@pytest.fixture
def simulate() -> Callable[..., Simulation]:
    """Makes a ``Simulation``; keyword arguments override its limits and ``depth``."""
    return Simulation


@pytest.fixture
def model_output() -> Callable[[Request], list[int]]:
    """What the simulated model generates for a request alone."""
    return expected_output

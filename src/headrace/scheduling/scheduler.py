"""Continuous batching: plans each step under a token budget and takes in what it sampled."""

from __future__ import annotations

import collections.abc
import time
from collections import deque
from collections.abc import Callable
from operator import attrgetter

from headrace.link.errors import InvalidRequest
from headrace.scheduling.admission import Admission
from headrace.scheduling.block_manager import BlockManager
from headrace.scheduling.drain_rate import DrainRate
from headrace.scheduling.errors import IntegrityError, QueueFull
from headrace.scheduling.limits import SchedulerLimits
from headrace.scheduling.preemption import choose_victim
from headrace.scheduling.prefix_cache import PrefixCache, extend_hash_chain
from headrace.scheduling.request import Request
from headrace.scheduling.sequence import NO_ROW, Sequence, SequenceStatus
from headrace.scheduling.stats import SchedulerStats
from headrace.scheduling.step_plan import AppendedBlock, SequenceOutput, StepPlan
from headrace.scheduling.waiting_queue import WaitingQueue

_start = attrgetter("start")
_RUNNING = SequenceStatus.RUNNING
_PREEMPTED = SequenceStatus.PREEMPTED
_ENDED = SequenceStatus.ENDED


class Scheduler:
    """Decides who computes how many tokens in each step, and in which blocks.

    There is no prefill phase and no decode phase: a step first advances every sequence that
    lacks one token, then continues prompts chunk by chunk, then admits from the queue, all under
    one token budget (iteration-level scheduling as in Orca, OSDI 2022; chunked prefill as in
    Sarathi-Serve, arXiv:2403.02310; paged blocks as in PagedAttention, arXiv:2309.06180).

    A plan may be made before the previous one is completed. Its sequences then have a token
    that only the device knows; blocks and rows of a sequence that ends or is preempted meanwhile
    stay untouched until the last step that holds it has completed.

    A row is in one of three places: ``_decoding`` (one token lacks), ``_prefilling`` (a prompt
    or a recomputation is under way), ``_leaving`` (nothing more to plan; a step in flight still
    holds it).

    Args:
        limits: Bounds and policies.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, limits: SchedulerLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._cache = PrefixCache()
        self._blocks = BlockManager(limits.num_blocks, self._cache)
        self._queue = WaitingQueue()
        self._admission = Admission(limits, self._queue, self._blocks, self._cache)
        self._drain_rate = DrainRate()
        self._live: dict[int, Sequence] = {}
        self._decoding: dict[int, Sequence] = {}
        self._prefilling: dict[int, Sequence] = {}
        self._leaving: dict[int, Sequence] = {}
        self._free_rows = list(range(limits.max_running - 1, -1, -1))
        self._freed_rows: list[int] = []
        self._in_flight: deque[StepPlan] = deque()
        self._arrivals = 0
        self._prefix_hit_tokens = 0
        self._prefix_query_tokens = 0
        self._preemptions = 0
        self._steps = 0
        self._completed_steps = 0
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._batch_tokens = 0

    # Requests come and go.

    def add(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            InvalidRequest: It could never run: too long for a sequence or for the KV cache, or
                its id is in use.
            QueueFull: ``max_waiting`` requests wait already.
        """
        limits = self.limits
        prompt_length = len(request.token_ids)
        total = prompt_length + request.max_new_tokens
        if request.id in self._live:
            raise InvalidRequest("request_id", request.id, "unused by another live request")
        if total > limits.max_sequence_length:
            raise InvalidRequest(
                "inputs tokens + max_new_tokens", total, f"<= {limits.max_sequence_length}"
            )
        # The last sampled token is never computed, so it needs no place.
        if limits.blocks_for(total - 1) > limits.num_blocks:
            raise InvalidRequest(
                "inputs tokens + max_new_tokens",
                total,
                f"<= {limits.num_blocks * limits.block_size + 1}, which the KV cache can hold",
            )
        now = self._clock()
        if len(self._queue) >= limits.max_waiting:
            raise QueueFull(
                len(self._queue), self._drain_rate.seconds_to_drain(len(self._queue), now)
            )
        sequence = Sequence(request, self._arrivals, now, limits.ageing_seconds)
        self._arrivals += 1
        self._live[request.id] = sequence
        self._queue.push(sequence)
        return sequence

    def abort(self, request_id: int) -> bool:
        """Forget a request; its blocks come free when no step in flight holds them.

        Returns:
            Whether the request was live. No output of it appears from now on.
        """
        sequence = self._live.get(request_id)
        if sequence is None:
            return False
        if sequence.row == NO_ROW:
            self._end(sequence)
            self._queue.discard_ended()
        else:
            self._end(sequence)
            self._vacate_unless_in_flight(sequence)
        return True

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs, or any planned step is not completed."""
        return bool(self._live) or bool(self._in_flight)

    # Planning.

    def plan(self) -> StepPlan | None:
        """Plan the next step.

        Returns:
            ``None`` if nothing can be computed before a step in flight completes, or at all.
            With no step in flight, ``None`` means that there is no request.
        """
        plan = StepPlan(self._steps + 1)
        anyone_preempted = self._make_room()
        self._plan_decoding(plan)
        budget = self._budget_beside(plan.num_tokens)
        self._plan_prefilling(plan, budget)
        if not anyone_preempted:
            self._plan_admissions(plan, budget)
        if not plan.scheduled:
            return None
        plan.freed_rows, self._freed_rows = self._freed_rows, []
        self._in_flight.append(plan)
        self._steps = plan.number
        self._batch_tokens = plan.num_tokens
        return plan

    def _make_room(self) -> bool:
        """Preempt until every decoding sequence can grow; whether anyone was preempted."""
        if self._blocks.num_available >= len(self._decoding):
            return False
        anyone_preempted = False
        while len(self._decoding) + len(self._prefilling) > 1:
            growing = sum(self._needs_block(sequence) for sequence in self._decoding.values())
            # Blocks that come back with a step in flight are waited for, not preempted for.
            returning = sum(
                self._blocks.num_held_alone(sequence.block_table)
                for sequence in self._leaving.values()
            )
            if growing <= self._blocks.num_available + returning:
                break
            self._preempt(choose_victim([*self._decoding.values(), *self._prefilling.values()]))
            anyone_preempted = True
        return anyone_preempted

    def _needs_block(self, sequence: Sequence) -> bool:
        return sequence.num_computed == len(sequence.block_table) * self.limits.block_size

    def _append_block(self, plan: StepPlan, sequence: Sequence) -> None:
        block = self._blocks.allocate()
        plan.appended.append(AppendedBlock(sequence.row, len(sequence.block_table), block))
        sequence.block_table.append(block)

    def _plan_decoding(self, plan: StepPlan) -> None:
        block_size = self.limits.block_size
        scheduled = plan.scheduled
        for sequence in list(self._decoding.values()):
            if not sequence.num_computed % block_size and self._needs_block(sequence):
                if not self._blocks.num_available:
                    continue
                self._append_block(plan, sequence)
            scheduled.append(sequence.plan_tokens(1, plan.number))
            if sequence.length == sequence.max_length:
                self._leaving[sequence.row] = self._decoding.pop(sequence.row)
        # Attention takes as long as a context is: those that begin with the longest end together.
        scheduled.sort(key=_start, reverse=True)
        plan.num_tokens = plan.num_samples = len(scheduled)
        self._decode_tokens += len(scheduled)

    def _budget_beside(self, num_decoding: int) -> int:
        """Tokens of a step in which so many sequences decode; prompts get at least as many."""
        limits = self.limits
        if limits.mixed_token_budget is None or not num_decoding:
            return limits.token_budget
        return min(limits.token_budget, max(limits.mixed_token_budget, 2 * num_decoding))

    def _plan_prefilling(self, plan: StepPlan, budget: int) -> None:
        for sequence in list(self._prefilling.values()):
            if plan.num_tokens >= budget:
                return
            self._plan_chunk(plan, sequence, budget)

    def _plan_admissions(self, plan: StepPlan, budget: int) -> None:
        if not self._queue:
            return
        now = self._clock()
        while self._free_rows and plan.num_tokens < budget:
            sequence = self._admission.next_fitting(self._num_running)
            if sequence is None:
                break
            sequence.status = _RUNNING
            sequence.row = self._free_rows.pop()
            self._prefilling[sequence.row] = sequence
            self._drain_rate.record(now)
            if sequence.queue_seconds is None:
                sequence.queue_seconds = now - sequence.arrival
                sequence.cached_tokens = sequence.num_computed
                self._prefix_hit_tokens += sequence.num_computed
                self._prefix_query_tokens += sequence.prompt_length
            plan.admitted.append(sequence)
            self._plan_chunk(plan, sequence, budget)
        self._admission.end_round()

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> None:
        num_tokens = min(sequence.length - sequence.num_computed, budget - plan.num_tokens)
        if self.limits.max_prefill_chunk is not None:
            num_tokens = min(num_tokens, self.limits.max_prefill_chunk)
        chunk = sequence.plan_tokens(num_tokens, plan.number)
        plan.scheduled.append(chunk)
        plan.num_tokens += num_tokens
        self._prefill_tokens += num_tokens
        if chunk.samples:
            plan.num_samples += 1
            del self._prefilling[sequence.row]
            exhausted = sequence.length == sequence.max_length
            (self._leaving if exhausted else self._decoding)[sequence.row] = sequence

    # Completion.

    def complete(
        self, plan: StepPlan, sampled_token_ids: collections.abc.Sequence[int]
    ) -> list[SequenceOutput]:
        """Take in the tokens that the oldest step in flight sampled.

        Args:
            plan: The oldest plan not completed yet.
            sampled_token_ids: ``plan.num_samples`` ids in the order of ``plan.scheduled``.

        Returns:
            What each sequence got; nothing for those that ended or were aborted meanwhile.

        Raises:
            ValueError: ``plan`` is not the oldest in flight, or the number of ids is wrong.
        """
        if not self._in_flight or self._in_flight[0] is not plan:
            raise ValueError("plans must be completed once each, in the order they were made")
        if len(sampled_token_ids) != plan.num_samples:
            raise ValueError(
                f"the plan samples {plan.num_samples} tokens, got {len(sampled_token_ids)}"
            )
        self._in_flight.popleft()
        self._completed_steps = plan.number
        outputs: list[SequenceOutput] = []
        sample_index = 0
        block_size = self.limits.block_size
        registers = self.limits.prefix_cache
        for scheduled in plan.scheduled:
            sequence = scheduled.sequence
            if sequence.status is _ENDED:
                sample_index += scheduled.samples
                continue
            start = scheduled.start
            end = start + scheduled.num_tokens
            if registers and start // block_size != end // block_size:
                self._register_full_blocks(sequence, end // block_size)
            if scheduled.samples:
                token_id = sampled_token_ids[sample_index]
                finish_reason = sequence.accept(token_id)
                output = SequenceOutput(sequence, sample_index, token_id, finish_reason, None, None)
                if finish_reason is not None:
                    self._end(sequence)
                if sequence.cached_tokens is not None:
                    self._tell_first_facts(sequence, output)
                outputs.append(output)
                sample_index += 1
        for sequence in list(self._leaving.values()):
            self._vacate_unless_in_flight(sequence)
        return outputs

    def _tell_first_facts(self, sequence: Sequence, output: SequenceOutput) -> None:
        """Add to a sequence's first output what is told once."""
        output.queue_seconds = sequence.queue_seconds
        output.cached_tokens = sequence.cached_tokens
        sequence.cached_tokens = None

    def _register_full_blocks(self, sequence: Sequence, num_full: int) -> None:
        """Offer the blocks that a completed step filled to the prefix cache."""
        block_size = self.limits.block_size
        hashes = sequence.block_hashes
        extend_hash_chain(
            hashes, sequence.tokens, num_full, block_size, sequence.request.prefix_salt
        )
        for index in range(sequence.registered_blocks, num_full):
            self._cache.insert(hashes[index], sequence.block_table[index])
        sequence.registered_blocks = num_full

    # Ends and preemptions.

    def _end(self, sequence: Sequence) -> None:
        del self._live[sequence.id]
        sequence.status = _ENDED
        self._stop_planning(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._preemptions += 1
        sequence.status = _PREEMPTED
        self._stop_planning(sequence)
        self._vacate_unless_in_flight(sequence)

    def _stop_planning(self, sequence: Sequence) -> None:
        for running in (self._decoding, self._prefilling):
            if running.pop(sequence.row, None):
                self._leaving[sequence.row] = sequence

    def _vacate_unless_in_flight(self, sequence: Sequence) -> None:
        """Free row and blocks once no step in flight holds them; if preempted, wait again."""
        if sequence.last_step > self._completed_steps:
            return
        row = sequence.row
        del self._leaving[row]
        self._free_rows.append(row)
        self._freed_rows.append(row)
        self._blocks.release(sequence.block_table)
        sequence.forget_computation()
        if sequence.status is _PREEMPTED:
            sequence.status = SequenceStatus.WAITING
            self._queue.push(sequence)

    # What is known from outside.

    @property
    def _num_running(self) -> int:
        return self.limits.max_running - len(self._free_rows)

    def stats(self) -> SchedulerStats:
        """Current counts and totals."""
        return SchedulerStats(
            running=self._num_running,
            waiting=len(self._queue),
            kv_blocks_used=self._blocks.num_blocks - self._blocks.num_available,
            kv_blocks_total=self._blocks.num_blocks,
            kv_blocks_cached=self._cache.num_cached,
            prefix_hit_tokens_total=self._prefix_hit_tokens,
            prefix_query_tokens_total=self._prefix_query_tokens,
            preemptions_total=self._preemptions,
            steps_total=self._steps,
            prefill_tokens_total=self._prefill_tokens,
            decode_tokens_total=self._decode_tokens,
            batch_tokens=self._batch_tokens,
        )

    def flush_prefix_cache(self) -> int:
        """Forget all cached blocks that no sequence holds; how many there were."""
        return self._blocks.flush_cache()

    def check_integrity(self) -> None:
        """Blocks, rows, queue and steps in flight agree with each other.

        Takes time in proportion to the KV cache: for tests, and for an engine that is idle.

        Raises:
            IntegrityError: naming the contradiction.
        """
        holding: list[Sequence] = []
        for place in (self._decoding, self._prefilling, self._leaving):
            for row, sequence in place.items():
                if sequence.row != row:
                    raise IntegrityError(f"request {sequence.id} is filed under row {row}")
                holding.append(sequence)
        rows = sorted([*self._free_rows, *(sequence.row for sequence in holding)])
        if rows != list(range(self.limits.max_running)):
            raise IntegrityError(f"rows are lost or held twice: {rows}")
        self._blocks.check_integrity(sequence.block_table for sequence in holding)
        waiting = list(self._queue)
        if len(waiting) != len(self._queue):
            raise IntegrityError(f"{len(waiting)} requests wait, counted {len(self._queue)}")
        live = {sequence.id for sequence in [*waiting, *holding] if sequence.status is not _ENDED}
        if live != set(self._live):
            raise IntegrityError(f"requests lost or not forgotten: {live ^ set(self._live)}")
        for plan in self._in_flight:
            for scheduled in plan.scheduled:
                if scheduled.sequence not in holding:
                    raise IntegrityError(f"a step in flight uses request {scheduled.sequence.id}")
        for sequence in self._leaving.values():
            if sequence.last_step <= self._completed_steps:
                raise IntegrityError(f"request {sequence.id} leaves but no step holds it")

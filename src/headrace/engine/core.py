"""``Engine``: a step is planned by the scheduler and computed by the model runner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.link.adapters import check_adapter
from headrace.link.errors import ErrorCode, InvalidRequest
from headrace.link.messages import EngineStats, RequestFailed, RequestOutput, Submit
from headrace.link.sampling import SamplingParams
from headrace.modeling.adapters.adapter_set import NO_ADAPTER
from headrace.modeling.runner import ModelRunner, PendingStep, ScheduledTokens, StepResult
from headrace.scheduling.request import Request
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.step_plan import ScheduledSequence, SequenceOutput, StepPlan


class StepEvents(NamedTuple):
    """What one step brought to the requests; a request that failed has ended."""

    outputs: list[RequestOutput]
    failures: list[RequestFailed]


@dataclass(slots=True)
class _Live:
    """What the engine remembers of a request beside the scheduler."""

    sampling: SamplingParams
    adapter: int = NO_ADAPTER
    prompt_logprobs: list[float] = field(default_factory=list)


class Engine:
    """Continuous batching over one model.

    Up to ``depth`` steps are in flight: with 2, a step is planned and launched while the one
    before runs, and its sampled ids never wait for the host.

    Args:
        scheduler: Who computes what.
        runner: Computes it.
        eos_token_ids: Ids that end a sequence.
        max_input_tokens: Longest prompt.
        adapters: Names of the adapters that ``runner`` carries, by index.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        *,
        eos_token_ids: Iterable[int],
        max_input_tokens: int,
        depth: int = 1,
        adapters: Sequence[str] = (),
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_input_tokens = max_input_tokens
        self._depth = depth
        self._adapters = {name: index for index, name in enumerate(adapters)}
        self._live: dict[int, _Live] = {}
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()
        self._forward_seconds = 0.0
        self._schedule_seconds = 0.0

    def submit(self, request: Submit) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it can never run; names field, value and bound.
            QueueFull: too many wait.
        """
        sampling = request.sampling
        sampling.check()
        self._check(request)
        self._scheduler.add(
            Request(
                id=request.request_id,
                token_ids=request.token_ids,
                max_new_tokens=sampling.max_new_tokens or 0,
                eos_token_ids=self._eos_token_ids,
                ignore_eos=sampling.ignore_eos,
                min_new_tokens=sampling.min_new_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                adapter=request.adapter,
                needs_prompt_logits=sampling.decoder_input_details,
            )
        )
        adapter = NO_ADAPTER if request.adapter is None else self._adapters[request.adapter]
        self._live[request.request_id] = _Live(sampling, adapter)

    def _check(self, request: Submit) -> None:
        check_adapter("adapter", request.adapter, self._adapters)
        vocab_size = self._runner.vocab_size
        length = len(request.token_ids)
        if length > self._max_input_tokens:
            raise InvalidRequest(
                "inputs", f"{length} tokens", f"<= {self._max_input_tokens} tokens"
            )
        if request.token_ids and max(request.token_ids) >= vocab_size:
            raise InvalidRequest("inputs", max(request.token_ids), f"token ids below {vocab_size}")
        if any(not 0 <= token < vocab_size for token in request.sampling.logit_bias):
            raise InvalidRequest(
                "logit_bias", list(request.sampling.logit_bias), f"token ids below {vocab_size}"
            )

    def abort(self, request_ids: Iterable[int]) -> None:
        """Forget these requests; unknown ids are ignored."""
        for request_id in request_ids:
            if self._scheduler.abort(request_id):
                del self._live[request_id]

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return self._scheduler.has_work

    def step(self) -> StepEvents:
        """Launch what may be launched, then take in the oldest step in flight."""
        while len(self._in_flight) < self._depth and self._launch():
            pass
        if not self._in_flight:
            return StepEvents([], [])
        plan, pending = self._in_flight.popleft()
        started = time.perf_counter()
        result = pending.wait()
        computed = time.perf_counter()
        self._forward_seconds += computed - started
        events = self._take_in(plan, result)
        self._schedule_seconds += time.perf_counter() - computed
        return events

    def _launch(self) -> bool:
        """Plan and launch one step; whether there was one."""
        started = time.perf_counter()
        plan = self._scheduler.plan()
        if plan is None:
            return False
        planned = time.perf_counter()
        self._schedule_seconds += planned - started
        runner = self._runner
        for row in plan.freed_rows:
            runner.clear_row(row)
        for sequence in plan.admitted:
            live = self._live[sequence.id]
            sampling = live.sampling
            prompt, output = (
                sequence.tokens[: sequence.prompt_length],
                sequence.tokens[sequence.prompt_length :],
            )
            eos_token_ids = () if sampling.ignore_eos else tuple(self._eos_token_ids)
            runner.set_row(
                sequence.row, sampling, prompt, eos_token_ids, output, adapter=live.adapter
            )
            runner.set_blocks(sequence.row, 0, sequence.block_table)
        for appended in plan.appended:
            runner.set_blocks(appended.row, appended.table_index, [appended.block])
        pending = runner.launch([_tokens_of(scheduled) for scheduled in plan.scheduled])
        self._forward_seconds += time.perf_counter() - planned
        self._in_flight.append((plan, pending))
        return True

    def _take_in(self, plan: StepPlan, result: StepResult) -> StepEvents:
        for index, logprobs in result.prompt_logprobs.items():
            scheduled = plan.scheduled[index]
            live = self._live.get(scheduled.sequence.id)
            if live is not None:
                # By position: a sequence that was preempted computes its prompt again.
                live.prompt_logprobs[scheduled.start :] = logprobs
        # Before ``complete``: what a broken request computed must not enter the prefix cache.
        failures = [self._fail(plan, number) for number in result.invalid]
        outputs = [
            self._output(output, result)
            for output in self._scheduler.complete(plan, result.token_ids)
        ]
        return StepEvents(outputs, [failure for failure in failures if failure is not None])

    def _output(self, output: SequenceOutput, result: StepResult) -> RequestOutput:
        request_id, number = output.sequence.id, output.sample_index
        first = output.queue_seconds is not None
        live = self._live[request_id]
        if output.finish_reason is not None:
            del self._live[request_id]
        logprob = result.logprobs.get(number)
        top = result.top_tokens.get(number)
        wants_prompt = first and live.sampling.decoder_input_details
        return RequestOutput(
            request_id,
            [output.token_id],
            [] if logprob is None else [logprob],
            [] if top is None else [top],
            output.finish_reason,
            live.prompt_logprobs if wants_prompt else None,
            output.queue_seconds,
            output.cached_tokens,
        )

    def _fail(self, plan: StepPlan, number: int) -> RequestFailed | None:
        """End the request whose sampled token has that number; ``None`` if it ended before."""
        sampling = [scheduled for scheduled in plan.scheduled if scheduled.samples]
        request_id = sampling[number].sequence.id
        if not self._scheduler.abort(request_id):
            return None
        del self._live[request_id]
        return RequestFailed(
            request_id,
            ErrorCode.GENERATION,
            "the model's logits for this request are not finite numbers",
        )

    def stats(self) -> EngineStats:
        """Counters since the start, and what runs now."""
        stats = self._scheduler.stats()
        return EngineStats(
            running=stats.running,
            waiting=stats.waiting,
            kv_blocks_used=stats.kv_blocks_used,
            kv_blocks_total=stats.kv_blocks_total,
            prefix_hit_tokens_total=stats.prefix_hit_tokens_total,
            prefix_query_tokens_total=stats.prefix_query_tokens_total,
            preemptions_total=stats.preemptions_total,
            steps_total=stats.steps_total,
            prefill_tokens_total=stats.prefill_tokens_total,
            decode_tokens_total=stats.decode_tokens_total,
            forward_seconds_total=self._forward_seconds,
            schedule_seconds_total=self._schedule_seconds,
            batch_tokens=stats.batch_tokens,
        )

    def check_integrity(self) -> None:
        """The scheduler's books balance.

        Raises:
            IntegrityError: naming the contradiction.
        """
        self._scheduler.check_integrity()


def _tokens_of(scheduled: ScheduledSequence) -> ScheduledTokens:
    """The scheduled tokens as the runner wants them."""
    sequence, start = scheduled.sequence, scheduled.start
    end = start + scheduled.num_tokens
    known = end <= len(sequence.tokens)
    return ScheduledTokens(
        sequence.row, start, sequence.tokens[start:end] if known else None, scheduled.samples
    )

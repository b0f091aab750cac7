"""One HTTP request's generation, whatever dialect it came in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from headrace.link.adapters import check_adapter
from headrace.link.errors import ErrorCode, InvalidRequest
from headrace.link.messages import EngineReady, Submit
from headrace.link.sampling import MAX_SEED, SamplingParams
from headrace.transport.engine_client import ClientGone, ReplyStream
from headrace.transport.errors import RequestFailure
from headrace.transport.identifiers import random_seed
from headrace.transport.prompts import Prompt
from headrace.transport.request_context import RequestContext
from headrace.transport.sequence import GeneratedSequence, Piece

if TYPE_CHECKING:
    from headrace.transport.service import Service

# An odd constant near 2**64 / golden ratio: neighbouring seeds land far apart (Steele, Lea and
# Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
_SEED_STRIDE = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """A validated request.

    Attributes:
        prompts: One or several.
        sampling: ``max_new_tokens`` and ``seed`` may be absent: they are filled in later.
        sequences: How many to generate for each prompt.
        prompt_field: What the client calls the prompt.
        length_field: What the client calls ``max_new_tokens``.
        adapter: Name of the adapter that computes it; ``None``: the base model alone.
    """

    prompts: Sequence[Prompt]
    sampling: SamplingParams
    sequences: int = 1
    priority: int = 0
    cache_salt: str = ""
    prompt_field: str = "inputs"
    length_field: str = "max_new_tokens"
    adapter: str | None = None

    @property
    def total_sequences(self) -> int:
        """Sequences of all prompts."""
        return len(self.prompts) * self.sequences


@dataclass(slots=True)
class Timing:
    """When what happened, in monotonic seconds."""

    arrived: float
    validated: float = 0.0
    queue_seconds: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


class Generation:
    """Sequences under way for one HTTP request.

    Attributes:
        sequences: In the order of the reply.
        timing: When what happened.
        adapter: Name of the adapter that computes it, or ``None``.
    """

    def __init__(
        self,
        service: Service,
        stream: ReplyStream,
        sequences: list[GeneratedSequence],
        sampling: SamplingParams,
        context: RequestContext,
        adapter: str | None,
    ) -> None:
        self._service = service
        self._stream = stream
        self._by_id = {sequence.request_id: sequence for sequence in sequences}
        self._unfinished = len(sequences)
        self._context = context
        self._closed = False
        self._last_tokens = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self.sequences = sequences
        self.sampling = sampling
        self.adapter = adapter
        self.timing = Timing(arrived=context.arrived, validated=time.monotonic())
        if context.timeout is not None:
            remaining = context.arrived + context.timeout - time.monotonic()
            self._deadline = asyncio.get_running_loop().call_later(
                remaining, self._miss_deadline, context.timeout
            )

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return self._unfinished == 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        prompts = {id(sequence.prompt_ids): sequence.prompt_ids for sequence in self.sequences}
        return sum(map(len, prompts.values()))

    @property
    def generated_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(sequence.tokens for sequence in self.sequences)

    async def receive(self) -> list[Piece]:
        """The next pieces, of all sequences.

        Raises:
            RequestFailure: a sequence failed, the deadline passed, or the engine was lost.
            ClientGone: nobody waits any more.
        """
        try:
            outputs = await self._stream.receive()
        except RequestFailure as failure:
            if failure.status == 429 and failure.retry_after is None:
                failure.retry_after = self._service.admission.retry_after()
            raise
        now = time.monotonic()
        pieces: list[Piece] = []
        for output in outputs:
            sequence = self._by_id[output.request_id]
            if sequence.finish_reason is not None:
                continue
            if not output.token_ids:
                raise RequestFailure.of_code(
                    ErrorCode.INCOMPLETE_GENERATION, "the engine sent an output without tokens"
                )
            if output.queue_seconds is not None:
                self.timing.queue_seconds = max(self.timing.queue_seconds, output.queue_seconds)
            sequence.advance(output, pieces)
            if sequence.finish_reason is not None:
                self._unfinished -= 1
                self._stream.abort(output.request_id)
        if self._last_tokens:
            self._service.metrics.inter_token_latency.observe(now - self._last_tokens)
        else:
            self.timing.first_token = now
            self._service.metrics.time_to_first_token.observe(now - self.timing.arrived)
        self._last_tokens = now
        return pieces

    def client_gone(self) -> None:
        """The client closed its connection: abort at once."""
        self._stream.end(ClientGone())

    def close(self) -> None:
        """Abort what runs and free what the request holds; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._stream.close()
        self._service.admission.leave(len(self.sequences))
        self.timing.ended = time.monotonic()
        self._context.prompt_tokens = self.prompt_tokens
        self._context.generated_tokens = self.generated_tokens
        self._context.adapter = self.adapter
        if self.finished:
            self._service.metrics.count_generation(self)

    def _miss_deadline(self, seconds: float) -> None:
        self._stream.end(
            RequestFailure.of_code(
                ErrorCode.DEADLINE_EXCEEDED, f"not finished within {seconds:g} seconds"
            )
        )


async def start(service: Service, spec: GenerationSpec, context: RequestContext) -> Generation:
    """Admit, tokenize, hold against the engine's limits and submit.

    Raises:
        HeadraceError: refused, before anything was sent to the engine.
    """
    count = spec.total_sequences
    check_adapter("adapter_id", spec.adapter, service.client.require_ready().adapters)
    service.admission.enter(count)
    try:
        prompts = [await service.encoder.encode(prompt) for prompt in spec.prompts]
        limits = service.client.require_ready()
        fitted = [_fit(spec, prompt_ids, limits) for prompt_ids in prompts]
        return _submit(service, spec, fitted, context)
    except BaseException:
        service.admission.leave(count)
        raise


def _fit(
    spec: GenerationSpec, prompt_ids: list[int], limits: EngineReady
) -> tuple[list[int], SamplingParams]:
    """Cut the prompt where asked for and fill in ``max_new_tokens``."""
    sampling = spec.sampling
    if not prompt_ids:
        raise InvalidRequest(spec.prompt_field, "", "at least one token long")
    for token_id in sampling.logit_bias:
        if token_id >= limits.vocab_size:
            raise InvalidRequest(
                "logit_bias", token_id, f"keyed by token ids from 0 to {limits.vocab_size - 1}"
            )
    if sampling.truncate is not None:
        if sampling.truncate > limits.max_input_tokens:
            raise InvalidRequest(
                "truncate",
                sampling.truncate,
                f"at most max_input_tokens ({limits.max_input_tokens})",
            )
        prompt_ids = prompt_ids[-sampling.truncate :]
    length = len(prompt_ids)
    if length > limits.max_input_tokens:
        raise InvalidRequest(
            spec.prompt_field, f"{length} tokens", f"at most {limits.max_input_tokens} tokens long"
        )
    if min(prompt_ids) < 0 or max(prompt_ids) >= limits.vocab_size:
        wrong = next(i for i in prompt_ids if not 0 <= i < limits.vocab_size)
        raise InvalidRequest(
            spec.prompt_field, wrong, f"token ids from 0 to {limits.vocab_size - 1}"
        )
    room = limits.max_total_tokens - length
    if room < 1:
        raise InvalidRequest(
            spec.prompt_field,
            f"{length} tokens",
            f"shorter than max_total_tokens ({limits.max_total_tokens})",
        )
    wanted = room if sampling.max_new_tokens is None else sampling.max_new_tokens
    if wanted > room:
        raise InvalidRequest(
            spec.length_field,
            wanted,
            f"at most {room}: {length} prompt tokens of {limits.max_total_tokens} tokens in all",
        )
    if sampling.min_new_tokens > wanted:
        raise InvalidRequest("min_new_tokens", sampling.min_new_tokens, f"at most {wanted}")
    top_k = sampling.top_k
    return prompt_ids, msgspec.structs.replace(
        sampling,
        max_new_tokens=wanted,
        truncate=None,
        # More than the vocabulary asks for nothing.
        top_k=None if top_k is not None and top_k >= limits.vocab_size else top_k,
    )


def _submit(
    service: Service,
    spec: GenerationSpec,
    fitted: Sequence[tuple[list[int], SamplingParams]],
    context: RequestContext,
) -> Generation:
    seed = spec.sampling.seed
    if seed is None:
        seed = random_seed()
    submits: list[Submit] = []
    sequences: list[GeneratedSequence] = []
    for prompt_ids, sampling in fitted:
        for _ in range(spec.sequences):
            index = len(submits)
            own_seed = (seed + index * _SEED_STRIDE) & MAX_SEED
            submit = Submit(
                request_id=service.client.new_request_id(),
                token_ids=prompt_ids,
                sampling=msgspec.structs.replace(sampling, seed=own_seed, stop=()),
                priority=spec.priority,
                cache_salt=spec.cache_salt,
                adapter=spec.adapter,
            )
            submits.append(submit)
            sequences.append(
                GeneratedSequence(
                    index=index,
                    request_id=submit.request_id,
                    prompt_ids=prompt_ids,
                    seed=own_seed,
                    tokenizer=service.model.tokenizer,
                    stop=sampling.stop,
                )
            )
    stream = service.client.submit(submits)
    return Generation(service, stream, sequences, fitted[0][1], context, spec.adapter)

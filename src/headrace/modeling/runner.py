"""``ModelRunner``: a model's buffers, caches and sampler rows; computes one step at a time.

It knows rows, not requests. A row is a slot of device-side state (a block table, sampling
parameters, the token sampled last) that belongs to one sequence from ``set_row`` to ``clear_row``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.checkpoint.config import ModelConfig
from headrace.link.errors import ConfigurationError
from headrace.link.sampling import SamplingParams
from headrace.modeling.activations import Activations
from headrace.modeling.adapters.adapter_set import NO_ADAPTER, AdapterSet
from headrace.modeling.backends.backend import Backend, CapturesGraphs, TimesCalls
from headrace.modeling.batch import ScheduledTokens, StepSize, write_batch
from headrace.modeling.decoder import Decoder
from headrace.modeling.sampling.choices import HasTokenChoices
from headrace.modeling.sampling.sampled_tokens import SampledTokens
from headrace.modeling.sampling.sampler import Sampler
from headrace.modeling.sampling.token_sampler import MakesSampler, TokenSampler
from headrace.modeling.step_buffers import HostStep, Int32Array, PublishesSteps, StepBuffers
from headrace.modeling.step_result import PendingStep, PromptLogprobs, StepResult

__all__ = [
    "ModelRunner",
    "PendingStep",
    "RunnerLimits",
    "ScheduledTokens",
    "StepResult",
    "cache_bytes_per_block",
]


WARMUP_SAMPLING = (
    SamplingParams(
        do_sample=True,
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        typical_p=0.95,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        logprobs=True,
        top_n_tokens=5,
        seed=0,
    ),
    SamplingParams(do_sample=True, typical_p=0.95, seed=0),
)
"""What the rows of a GPU's warm-up ask for: everything, then what needs no candidates."""


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """The sizes that buffers are allocated for.

    Attributes:
        max_tokens: Most tokens of one step.
        max_rows: Most sequences that run at once.
        max_length: Longest sequence in tokens, prompt and output.
        block_size: Tokens of one cache block.
        num_blocks: Cache blocks; their ids are 0 to ``num_blocks - 1``.
    """

    max_tokens: int
    max_rows: int
    max_length: int
    block_size: int
    num_blocks: int

    def check(self) -> None:
        """Refuse sizes that make no sense.

        Raises:
            ConfigurationError: Names the first.
        """
        for name in ("max_tokens", "max_rows", "max_length", "block_size", "num_blocks"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"{name} must be >= 1, got {value}")


@dataclass(frozen=True, slots=True)
class _PromptLogits:
    """Which logits of a step are wanted for prompt log-probabilities, after the sampled ones."""

    entry: int
    count: int


def cache_bytes_per_block(decoder: Decoder, block_size: int) -> int:
    """Bytes that one cache block takes over all layers."""
    return sum(
        decoder.operations.cache_bytes_per_block(layer.attention, block_size)
        for layer in decoder.layers
    )


class ModelRunner:
    """One model on one device.

    Args:
        config: Its architecture.
        decoder: Its weights, packed by ``backend.operations``.
        backend: Who computes.
        limits: What buffers are allocated for.
        adapters: What rows may choose from, by index; ``None``: nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        decoder: Decoder,
        backend: Backend,
        limits: RunnerLimits,
        adapters: AdapterSet | None = None,
    ) -> None:
        limits.check()
        operations = backend.operations
        self.limits = limits
        self.vocab_size = config.vocab_size
        self._device = operations.device
        max_blocks = -(-limits.max_length // limits.block_size)
        self._buffers = StepBuffers(
            limits.max_tokens,
            limits.max_rows,
            max_blocks,
            limits.block_size,
            self._device,
            backend if isinstance(backend, PublishesSteps) else None,
        )
        self._activations = Activations.allocate(
            config, operations, limits.max_tokens, min(limits.max_rows, limits.max_tokens)
        )
        self._caches = operations.allocate_caches(
            [layer.attention for layer in decoder.layers], limits.num_blocks, limits.block_size
        )
        caches = self._caches
        inputs, activations = self._buffers.inputs, self._activations
        self._body = backend.compile(
            lambda step, buffers: decoder.body(step, buffers, caches), inputs, activations
        )
        self._adapter_of_row: Int32Array | None = None
        self._adapted_body = self._body
        if adapters is not None:
            # Apart, so that steps without an adapter cost what they cost without adapters.
            self._adapter_of_row = np.full(limits.max_rows, NO_ADAPTER, dtype=np.int32)
            self._adapted_body = backend.compile(
                lambda step, buffers: decoder.body(step, buffers, caches, adapters.layers),
                inputs,
                activations,
            )
        self._head = backend.compile(
            lambda _, buffers: decoder.compute_logits(buffers), inputs, activations
        )
        self._sampler = _sampler_of(backend, limits, config.vocab_size)
        self._prompts: dict[int, list[int]] = {}

    def set_row(
        self,
        row: int,
        sampling: SamplingParams,
        prompt_token_ids: Sequence[int],
        eos_token_ids: Sequence[int] = (),
        output_token_ids: Sequence[int] = (),
        adapter: int = NO_ADAPTER,
    ) -> None:
        """Give ``row`` to a sequence.

        Args:
            row: A free row.
            sampling: ``seed`` filled in; ``None`` counts as 0.
            prompt_token_ids: Its whole prompt.
            eos_token_ids: Ids that ``min_new_tokens`` keeps out.
            output_token_ids: What it has generated, where it comes back after a preemption.
            adapter: Index of the adapter that computes all of its tokens, or ``NO_ADAPTER``.
        """
        if self._adapter_of_row is not None:
            self._adapter_of_row[row] = adapter
        prompt, output = list(prompt_token_ids), list(output_token_ids)
        self._sampler.set_row(row, sampling, prompt, output, tuple(eos_token_ids))
        self._prompts.pop(row, None)
        # Whoever has generated has had its prompt's log-probabilities.
        if sampling.decoder_input_details and not output:
            self._prompts[row] = prompt

    def clear_row(self, row: int) -> None:
        """Forget the sequence of ``row``."""
        self._sampler.clear_row(row)
        self._prompts.pop(row, None)

    def set_blocks(self, row: int, first_index: int, block_ids: Sequence[int]) -> None:
        """Write cache blocks into a row's table, from the block of that index on."""
        self._buffers.set_blocks(row, first_index, list(block_ids))

    @torch.inference_mode()
    def launch(self, batch: Sequence[ScheduledTokens]) -> PendingStep:
        """Begin a step over at least one token; on a GPU returns before it is computed.

        Raises:
            ValueError: The batch is empty, feeds no token in one of its entries, or exceeds
                ``limits.max_tokens`` or ``limits.max_rows``.
        """
        host = self._buffers.begin()
        size = write_batch(
            host,
            batch,
            self._buffers.block_tables,
            self.limits.block_size,
            self._adapter_of_row,
        )
        sampling = [index for index, entry in enumerate(batch) if entry.samples]
        prompt_logits, num_logits = self._ask_for_logits(host, batch, sampling)
        self._buffers.publish(size.num_tokens, size.num_sequences)
        if size.num_fed:
            self._sampler.feed(
                self._buffers.inputs.token_ids,
                self._buffers.section("fed_tokens")[: size.num_fed],
                self._buffers.section("fed_rows")[: size.num_fed],
            )
        body = self._adapted_body if size.uses_adapters else self._body
        body.run(
            size.num_tokens,
            size.num_sequences,
            max(num_logits, 1),
            size.max_query_length,
            size.max_context_length,
        )
        if not num_logits:
            return PendingStep(self._device, None, [], PromptLogprobs([], []))
        first_logits = min(num_logits, self._activations.logits.shape[0])
        self._compute_logits(size, first_logits)
        sampled: SampledTokens | None = None
        wanted: list[tuple[bool, int]] = []
        if sampling:
            rows = host.sampling_rows[: len(sampling)]
            positions = host.positions[host.sampled_tokens[: len(sampling)]] + 1
            on_device = self._buffers.section("sampling_rows")[: len(sampling)]
            sampled = self._sampler.sample(
                self._activations.logits[: len(sampling)], rows, positions, on_device
            )
            if sampled.logprobs is not None:
                wanted = [self._sampler.wanted(row) for row in rows.tolist()]
        logprobs = self._prompt_logprobs(size, prompt_logits, len(sampling), first_logits)
        return PendingStep(self._device, sampled, wanted, logprobs)

    def execute(self, batch: Sequence[ScheduledTokens]) -> StepResult:
        """Compute one step and wait for it."""
        return self.launch(batch).wait()

    def warm_up(self, most_tokens: int | None = None) -> None:
        """Compute dummy steps of the largest shapes: one prompt, then one token of every row.

        On a GPU the rows ask for everything that the sampler can do, so that its kernels are
        compiled and its memory is taken. Keys and values go to the first cache blocks, so this is
        for an engine that has not served.

        Args:
            most_tokens: Of the prompt, and most rows; ``None``: as many as the limits permit.
        """
        limits = self.limits
        most = limits.max_tokens if most_tokens is None else min(most_tokens, limits.max_tokens)
        longest = min(most, limits.max_length, limits.num_blocks * limits.block_size)
        blocks = list(range(-(-longest // limits.block_size)))
        rows = range(min(limits.max_rows, most))
        for row in rows:
            self.set_blocks(row, 0, blocks)
        every_row = [ScheduledTokens(row, longest - 1, [0], samples=True) for row in rows]
        adapter_of_row = self._adapter_of_row
        for adapter in (NO_ADAPTER,) if adapter_of_row is None else (0, NO_ADAPTER):
            if adapter_of_row is not None:
                adapter_of_row[:] = adapter
            self.execute([ScheduledTokens(0, 0, [0] * longest, samples=True)])
            self.execute(every_row)
            self.execute([ScheduledTokens(0, longest - 1, [0], samples=True)])
        if self._device.type != "cpu":
            # A position below the last, since a penalty remembers the token that is drawn after it.
            last = max(0, min(longest, limits.max_length - 1) - 1)
            drawing = [ScheduledTokens(row, last, [0], samples=True) for row in rows]
            for sampling in WARMUP_SAMPLING:
                for row in rows:
                    self.set_row(row, sampling, [0])
                self.execute(drawing)
            for row in rows:
                self.clear_row(row)
            self.execute([ScheduledTokens(0, last, None, samples=True)])
            self.set_row(0, SamplingParams(decoder_input_details=True), [0] * longest)
            self.execute([ScheduledTokens(0, 0, [0] * longest, samples=True)])
            self.clear_row(0)

    @property
    def timed_programs(self) -> list[TimesCalls]:
        """What computes a step without adapters, where it can time its calls."""
        return [program for program in (self._body, self._head) if isinstance(program, TimesCalls)]

    def capture_graphs(self) -> None:
        """Capture what the backend can replay; nothing where it cannot."""
        for program in {id(p): p for p in (self._body, self._adapted_body, self._head)}.values():
            if isinstance(program, CapturesGraphs):
                program.capture()

    @property
    def num_bytes(self) -> int:
        """Bytes of the step's buffers, logits included, weights and cache not."""
        return self._activations.num_bytes

    def _ask_for_logits(
        self, host: HostStep, batch: Sequence[ScheduledTokens], sampling: list[int]
    ) -> tuple[list[_PromptLogits], int]:
        """Fill the sampled tokens: those to choose after, then those of prompt logprobs."""
        last_tokens = host.query_start[1 : len(batch) + 1] - 1
        # A body needs at least one sampled token; where no logits are wanted, token 0 stands in.
        host.sampled_tokens[0] = 0
        host.sampled_tokens[: len(sampling)] = last_tokens[sampling]
        host.sampling_rows[: len(sampling)] = host.rows[sampling]
        wanted: list[_PromptLogits] = []
        total = len(sampling)
        if self._prompts:
            for index, entry in enumerate(batch):
                prompt = self._prompts.get(entry.row)
                if prompt is None or entry.start + 1 >= len(prompt):
                    continue
                first = int(host.query_start[index])
                count = int(host.query_start[index + 1]) - first
                targets = prompt[entry.start + 1 : entry.start + 1 + count]
                wanted.append(_PromptLogits(index, len(targets)))
                host.sampled_tokens[total : total + len(targets)] = np.arange(
                    first, first + len(targets)
                )
                place = total - len(sampling)
                host.prompt_targets[place : place + len(targets)] = targets
                total += len(targets)
        return wanted, total

    def _compute_logits(self, size: StepSize, num_rows: int) -> None:
        self._head.run(
            size.num_tokens,
            size.num_sequences,
            num_rows,
            size.max_query_length,
            size.max_context_length,
        )

    def _prompt_logprobs(
        self, size: StepSize, wanted: list[_PromptLogits], first: int, computed: int
    ) -> PromptLogprobs:
        """Log-probabilities of prompt tokens, as many rows of logits at once as the buffer holds.

        Args:
            first: Number of the first such row among the step's sampled tokens.
            computed: Rows of logits that the buffer holds already.
        """
        targets = self._buffers.section("prompt_targets")
        final, logits = self._activations.final, self._activations.logits
        buffer_start, done, total = 0, first, first + sum(part.count for part in wanted)
        parts: list[torch.Tensor] = []
        while done < total:
            if done == computed:
                count = min(logits.shape[0], total - computed)
                # A compiled head reads the first rows; those are no longer needed.
                final[:count] = final[computed : computed + count]
                self._compute_logits(size, count)
                buffer_start, computed = computed, computed + count
            parts.append(
                self._sampler.token_logprobs(
                    logits, done - buffer_start, targets, done - first, computed - done
                )
            )
            done = computed
        return PromptLogprobs([(part.entry, part.count) for part in wanted], parts)


def _sampler_of(backend: Backend, limits: RunnerLimits, vocab_size: int) -> TokenSampler:
    if isinstance(backend, MakesSampler):
        return backend.make_sampler(
            limits.max_rows, limits.max_length, limits.max_tokens, vocab_size
        )
    choices = backend.token_choices if isinstance(backend, HasTokenChoices) else None
    device = backend.operations.device
    return Sampler(limits.max_rows, limits.max_length, vocab_size, device, choices)

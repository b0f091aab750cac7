"""A computation that replays captured CUDA or HIP graphs where launches would cost more than work.

A graph belongs to a bucket. Pure decode steps have buckets by number of sequences; steps with
prompts in them, up to a number of tokens from which launches no longer matter, by tokens and
sequences. A smaller step runs in the next larger bucket: its spare sequences have no tokens and no
context and its spare tokens no cache slot, which the kernels take as nothing to do.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import torch

from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import Computation
from headrace.modeling.step import StepInputs

_PADDING_SLOT = -1


def decode_buckets(most: int) -> list[int]:
    """Numbers of sequences that graphs are captured for, up to ``most`` and including it."""
    sizes = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    sizes += [*range(80, 129, 16), *range(160, 257, 32), *range(320, 1025, 64)]
    return [*(size for size in sizes if size < most), most]


MIXED_TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of tokens that steps with prompts in them are captured for."""

MIXED_SEQUENCES = (1, 8, 64, 256)
"""Numbers of sequences that such steps are captured for."""


def step_views(
    step: StepInputs,
    num_tokens: int,
    num_sequences: int,
    num_sampled: int,
    max_query_length: int,
    max_context_length: int,
    whole_prompts: bool,
) -> StepInputs:
    """The first T, S and R entries of a step's inputs; shares memory."""
    return replace(
        step,
        token_ids=step.token_ids[:num_tokens],
        positions=step.positions[:num_tokens],
        cache_slots=step.cache_slots[:num_tokens],
        query_start=step.query_start[: num_sequences + 1],
        context_lengths=step.context_lengths[:num_sequences],
        rows=step.rows[:num_sequences],
        sampled_tokens=step.sampled_tokens[:num_sampled],
        adapter_of_token=step.adapter_of_token[:num_tokens],
        max_query_length=max_query_length,
        max_context_length=max_context_length,
        whole_prompts=whole_prompts,
    )


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes of one graph; as many sampled tokens as sequences."""

    num_tokens: int
    num_sequences: int

    @property
    def decodes(self) -> bool:
        """One new token a sequence."""
        return self.num_tokens == self.num_sequences

    @property
    def max_query_length(self) -> int:
        """What the launch choice is told."""
        return 1 if self.decodes else self.num_tokens


class GraphProgram:
    """One computation on its buffers.

    Args:
        computation: Issues the operations.
        step: Buffers at capacity.
        activations: The same.
        most_sequences: Of captured steps.
    """

    def __init__(
        self,
        computation: Computation,
        step: StepInputs,
        activations: Activations,
        most_sequences: int,
    ) -> None:
        self._computation = computation
        self._step = step
        self._activations = activations
        self._decode_sizes = decode_buckets(most_sequences) if most_sequences else []
        capacity = step.token_ids.shape[0]
        self._mixed_tokens = [tokens for tokens in MIXED_TOKENS if tokens <= capacity]
        self._mixed_sequences = [count for count in MIXED_SEQUENCES if count <= most_sequences]
        buckets = [Bucket(size, size) for size in self._decode_sizes]
        buckets += [
            Bucket(tokens, count)
            for tokens in self._mixed_tokens
            for count in self._mixed_sequences
            if count < tokens
        ]
        self._buckets = buckets
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Capture a graph a bucket; until then every step is launched kernel by kernel."""
        # Everything once before anything is captured: kernels are compiled and workspaces grow.
        for bucket in self._buckets:
            self._run_bucket(bucket)
        pool = torch.cuda.graph_pool_handle() if self._buckets else None
        self._graphs = {bucket: self._capture(bucket, pool) for bucket in self._buckets}

    @torch.inference_mode()
    def run(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
    ) -> None:
        """Queue one step on the current stream; see ``backend.Program``."""
        decodes = max_query_length == 1 and num_tokens == num_sequences
        bucket = self._bucket(num_tokens, num_sequences, decodes)
        graph = self._graphs.get(bucket) if bucket is not None else None
        if graph is None or bucket is None or num_sampled > num_sequences:
            whole = max_context_length == max_query_length
            self._run_eagerly(
                num_tokens,
                num_sequences,
                num_sampled,
                max_query_length,
                max_context_length,
                whole and num_tokens == num_sequences * max_query_length,
            )
            return
        if bucket.num_tokens > num_tokens:
            self._step.cache_slots[num_tokens : bucket.num_tokens].fill_(_PADDING_SLOT)
        if bucket.num_sequences > num_sequences:
            self._step.context_lengths[num_sequences : bucket.num_sequences].zero_()
            self._step.query_start[num_sequences + 1 : bucket.num_sequences + 1].fill_(num_tokens)
        graph.replay()

    def _bucket(self, num_tokens: int, num_sequences: int, decodes: bool) -> Bucket | None:
        if decodes:
            size = _next_size(self._decode_sizes, num_sequences)
            return None if size is None else Bucket(size, size)
        count = _next_size(self._mixed_sequences, num_sequences)
        if count is None:
            return None
        # As many tokens as sequences would be a decode graph, which computes one token of each.
        tokens = _next_size(self._mixed_tokens, max(num_tokens, count + 1))
        return None if tokens is None else Bucket(tokens, count)

    def _run_eagerly(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
        whole_prompts: bool,
    ) -> None:
        self._computation(
            step_views(
                self._step,
                num_tokens,
                num_sequences,
                num_sampled,
                max_query_length,
                max_context_length,
                whole_prompts,
            ),
            self._activations.view(num_tokens, num_sampled),
        )

    @torch.inference_mode()
    def _run_bucket(self, bucket: Bucket) -> None:
        self._run_eagerly(
            bucket.num_tokens,
            bucket.num_sequences,
            bucket.num_sequences,
            bucket.max_query_length,
            self._step.max_context_length,
            whole_prompts=False,
        )

    def _capture(self, bucket: Bucket, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._run_bucket(bucket)
        return graph


def _next_size(sizes: list[int], wanted: int) -> int | None:
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else None

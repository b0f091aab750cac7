"""A computation that replays captured CUDA or HIP graphs for decode steps, and runs others eagerly.

A graph belongs to a bucket, a number of sequences with one new token each. A smaller step runs in
the next larger bucket: its spare sequences have no context and its spare tokens no cache slot,
which the kernels take as nothing to do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import Computation
from headrace.modeling.step import StepInputs

GraphPool = Any
"""What ``torch.cuda.graph_pool_handle`` returns."""

_PADDING_SLOT = -1


def decode_buckets(most: int) -> list[int]:
    """Numbers of sequences that graphs are captured for, up to ``most`` and including it."""
    sizes = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    sizes += [*range(80, 129, 16), *range(160, 257, 32), *range(320, 1025, 64)]
    return [*(size for size in sizes if size < most), most]


def step_views(
    step: StepInputs,
    num_tokens: int,
    num_sequences: int,
    num_sampled: int,
    max_query_length: int,
    max_context_length: int,
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
        max_query_length=max_query_length,
        max_context_length=max_context_length,
    )


class GraphProgram:
    """One computation on its buffers.

    Args:
        computation: Issues the operations.
        step: Buffers at capacity.
        activations: The same.
        most_sequences: Largest bucket.
        pool: Memory pool that all graphs of a device share.
    """

    def __init__(
        self,
        computation: Computation,
        step: StepInputs,
        activations: Activations,
        most_sequences: int,
        pool: GraphPool,
    ) -> None:
        self._computation = computation
        self._step = step
        self._activations = activations
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._bucket_of = [0] * (most_sequences + 1)
        buckets = decode_buckets(most_sequences) if most_sequences else []
        # Everything once before anything is captured: kernels are compiled and workspaces grow.
        for bucket in buckets:
            self._run_decode(bucket)
        for bucket in buckets:
            self._graphs[bucket] = self._capture(bucket, pool)
        smallest = iter(buckets)
        bucket = 0
        for size in range(1, most_sequences + 1):
            if size > bucket:
                bucket = next(smallest)
            self._bucket_of[size] = bucket

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
        decodes = max_query_length == 1 and num_tokens == num_sequences >= num_sampled
        if not decodes or num_sequences >= len(self._bucket_of):
            self._run_eagerly(
                num_tokens, num_sequences, num_sampled, max_query_length, max_context_length
            )
            return
        bucket = self._bucket_of[num_sequences]
        if bucket > num_sequences:
            self._step.context_lengths[num_sequences:bucket].zero_()
            self._step.cache_slots[num_tokens:bucket].fill_(_PADDING_SLOT)
        self._graphs[bucket].replay()

    def _run_eagerly(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
    ) -> None:
        self._computation(
            step_views(
                self._step,
                num_tokens,
                num_sequences,
                num_sampled,
                max_query_length,
                max_context_length,
            ),
            self._activations.view(num_tokens, num_sampled),
        )

    @torch.inference_mode()
    def _capture(self, bucket: int, pool: GraphPool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._run_decode(bucket)
        return graph

    @torch.inference_mode()
    def _run_decode(self, bucket: int) -> None:
        self._run_eagerly(bucket, bucket, bucket, 1, self._step.max_context_length)

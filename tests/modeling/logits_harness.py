"""Logits of every position of every sequence, computed through a backend step by step."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from headrace.checkpoint.config import ModelConfig
from headrace.modeling.activations import Activations
from headrace.modeling.adapters.adapter_set import NO_ADAPTER, AdapterSet
from headrace.modeling.backends.backend import Backend
from headrace.modeling.batch import ScheduledTokens, write_batch
from headrace.modeling.decoder import Decoder
from headrace.modeling.step_buffers import Int32Array, StepBuffers

BLOCK_SIZE = 16


class LogitsHarness:
    """Runs batches and keeps all logits, where a ``ModelRunner`` keeps only sampled ones."""

    def __init__(
        self,
        config: ModelConfig,
        decoder: Decoder,
        backend: Backend,
        num_blocks: int = 64,
        adapters: AdapterSet | None = None,
    ) -> None:
        ops = backend.operations
        self.num_blocks = num_blocks
        self._buffers = StepBuffers(256, 8, num_blocks, BLOCK_SIZE, ops.device)
        self._activations = Activations.allocate(config, ops, 256, 256)
        caches = ops.allocate_caches(
            [layer.attention for layer in decoder.layers], num_blocks, BLOCK_SIZE
        )
        self._body = backend.compile(
            lambda step, buffers: decoder.body(step, buffers, caches),
            self._buffers.inputs,
            self._activations,
        )
        self._adapter_of_row: Int32Array | None = None
        self._adapted_body = self._body
        if adapters is not None:
            self._adapter_of_row = np.full(8, NO_ADAPTER, dtype=np.int32)
            self._adapted_body = backend.compile(
                lambda step, buffers: decoder.body(step, buffers, caches, adapters.layers),
                self._buffers.inputs,
                self._activations,
            )
        self._head = backend.compile(
            lambda _, buffers: decoder.compute_logits(buffers),
            self._buffers.inputs,
            self._activations,
        )

    def set_blocks(self, row: int, blocks: list[int]) -> None:
        self._buffers.set_blocks(row, 0, blocks)

    def set_adapter(self, row: int, adapter: int) -> None:
        if self._adapter_of_row is not None:
            self._adapter_of_row[row] = adapter

    def step(self, batch: Sequence[tuple[int, int, Sequence[int]]]) -> list[torch.Tensor]:
        """One step over (row, start, token ids) entries; logits [tokens, vocab] of each."""
        lengths = [len(ids) for _, _, ids in batch]
        return list(self.sampled(batch, range(sum(lengths))).split(lengths))

    def sampled(
        self, batch: Sequence[tuple[int, int, Sequence[int]]], tokens: Sequence[int]
    ) -> torch.Tensor:
        """One step over (row, start, token ids) entries; logits of these among all its tokens."""
        entries = [ScheduledTokens(row, start, ids, samples=True) for row, start, ids in batch]
        host = self._buffers.begin()
        size = write_batch(
            host, entries, self._buffers.block_tables, BLOCK_SIZE, self._adapter_of_row
        )
        host.sampled_tokens[: len(tokens)] = tokens
        self._buffers.publish(size.num_tokens, size.num_sequences)
        numbers = (
            size.num_tokens,
            size.num_sequences,
            len(tokens),
            size.max_query_length,
            size.max_context_length,
        )
        (self._adapted_body if size.uses_adapters else self._body).run(*numbers)
        self._head.run(*numbers)
        return self._activations.logits[: len(tokens)].clone().cpu()


def in_one_go(harness: LogitsHarness, ids: list[int]) -> torch.Tensor:
    harness.set_blocks(0, list(range(8)))
    return harness.step([(0, 0, ids)])[0]


def in_chunks(harness: LogitsHarness, ids: list[int]) -> torch.Tensor:
    harness.set_blocks(1, [9, 3, 17, 4, 30, 6, 5, 2])
    parts, start = [], 0
    for length in (7, 16, 1, 9, len(ids)):
        chunk = ids[start : start + length]
        if chunk:
            parts += harness.step([(1, start, chunk)])
        start += length
    return torch.cat(parts)


def one_by_one(harness: LogitsHarness, ids: list[int]) -> torch.Tensor:
    harness.set_blocks(2, list(range(20, 28)))
    return torch.cat([harness.step([(2, i, [token])])[0] for i, token in enumerate(ids)])


def _beside_others(harness: LogitsHarness, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Beside a decoding, a short and a prefix-sharing neighbour, over shuffled blocks.

    Returns the logits of ``ids``, and of the same ids over the first sequence's leading blocks.
    """
    rng = random.Random(3)
    blocks = list(range(harness.num_blocks))
    rng.shuffle(blocks)
    own, neighbour, short = blocks[:8], blocks[8:16], blocks[16:24]
    shared = 2 * BLOCK_SIZE
    for row, table in ((3, own), (4, neighbour), (5, short), (6, own[:2] + blocks[24:30])):
        harness.set_blocks(row, table)
    other = ids[::-1]
    harness.step([(4, 0, other[:5])])
    parts = harness.step([(4, 5, other[5:6]), (3, 0, ids[:20]), (5, 0, [1, 2])])[1:2]
    parts.append(harness.step([(4, 6, other[6:7]), (5, 2, [3]), (3, 20, ids[20:33])])[2])
    # Row 6 reads the first blocks of row 3 and computes the rest itself.
    mixed = harness.step(
        [(4, 7, other[7:8]), (3, 33, ids[33:34]), (5, 3, [4]), (6, shared, ids[shared:])]
    )
    parts.append(mixed[1])
    for position in range(34, len(ids)):
        parts.append(harness.step([(5, position - 30, [7]), (3, position, ids[position:][:1])])[1])
    own_logits = torch.cat(parts)
    return own_logits, torch.cat((own_logits[:shared], mixed[3]))


def in_mixed_batches(harness: LogitsHarness, ids: list[int]) -> torch.Tensor:
    return _beside_others(harness, ids)[0]


def over_shared_blocks(harness: LogitsHarness, ids: list[int]) -> torch.Tensor:
    return _beside_others(harness, ids)[1]


WAYS = {
    "one go": in_one_go,
    "chunks": in_chunks,
    "one by one": one_by_one,
    "mixed": in_mixed_batches,
    "shared blocks": over_shared_blocks,
}

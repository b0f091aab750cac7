"""From a batch, row by row, to the flat arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.modeling.step_buffers import HostStep, Int32Array


@dataclass(slots=True)
class ScheduledTokens:
    """The tokens of one row in one step.

    Attributes:
        row: Whose.
        start: Position of the first.
        token_ids: The tokens to compute; ``None``: the one token that the row sampled last, which
            may still be on the device.
        samples: Choose the token that follows the last one.
    """

    row: int
    start: int
    token_ids: Sequence[int] | Int32Array | None
    samples: bool


@dataclass(frozen=True, slots=True)
class StepSize:
    """How much of the buffers one step fills.

    Attributes:
        num_tokens: T.
        num_sequences: S.
        max_query_length: Most new tokens of one sequence.
        max_context_length: Longest context, new tokens included.
        num_fed: Tokens that still lie on the device.
        uses_adapters: Whether any token has one.
    """

    num_tokens: int
    num_sequences: int
    max_query_length: int
    max_context_length: int
    num_fed: int
    uses_adapters: bool = False


def write_batch(
    host: HostStep,
    batch: Sequence[ScheduledTokens],
    block_tables: Int32Array,
    block_size: int,
    adapter_of_row: Int32Array | None = None,
) -> StepSize:
    """Fill a step's inputs, all but what it samples.

    Args:
        adapter_of_row: [max_rows] adapter index or -1; ``None``: the model carries no adapters.

    Raises:
        ValueError: The batch is empty, feeds no token in one of its entries, or exceeds the
            capacity of ``host``.
    """
    counts = [1 if entry.token_ids is None else len(entry.token_ids) for entry in batch]
    num_sequences, num_tokens = len(batch), sum(counts)
    if not 1 <= num_sequences <= len(host.rows) or num_tokens > len(host.token_ids):
        raise ValueError(
            f"a step takes 1 to {len(host.rows)} sequences and at most {len(host.token_ids)} "
            f"tokens, got {num_sequences} and {num_tokens}"
        )
    if min(counts) < 1:
        raise ValueError("an entry of a step must feed at least one token")
    num_fed = token = 0
    for entry, count in zip(batch, counts, strict=True):
        if entry.token_ids is None:
            host.fed_tokens[num_fed] = token
            host.fed_rows[num_fed] = entry.row
            num_fed += 1
        elif count == 1:
            host.token_ids[token] = entry.token_ids[0]
        else:
            host.token_ids[token : token + count] = entry.token_ids
        token += count
    rows = host.rows[:num_sequences]
    rows[:] = [entry.row for entry in batch]
    starts = np.array([entry.start for entry in batch], dtype=np.int32)
    lengths = np.array(counts, dtype=np.int32)
    query_start = host.query_start[: num_sequences + 1]
    query_start[0] = 0
    np.cumsum(lengths, out=query_start[1:])
    host.context_lengths[:num_sequences] = starts + lengths
    positions = host.positions[:num_tokens]
    if num_tokens == num_sequences:
        positions[:] = starts
        rows_of_tokens = rows
    else:
        positions[:] = np.arange(num_tokens, dtype=np.int32)
        positions += np.repeat(starts - query_start[:-1], lengths)
        rows_of_tokens = np.repeat(rows, lengths)
    blocks, offsets = np.divmod(positions, np.int32(block_size))
    host.cache_slots[:num_tokens] = block_tables[rows_of_tokens, blocks] * block_size + offsets
    uses_adapters = False
    if adapter_of_row is not None:
        adapters = adapter_of_row[rows_of_tokens]
        host.adapter_of_token[:num_tokens] = adapters
        uses_adapters = bool((adapters >= 0).any())
    return StepSize(
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        num_fed=num_fed,
        uses_adapters=uses_adapters,
        max_query_length=max(counts),
        max_context_length=int(host.context_lengths[:num_sequences].max()),
    )

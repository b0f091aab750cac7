"""What a scheduler tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats:
    """A snapshot; fields named ``*_total`` only grow.

    Attributes:
        running: Sequences that hold a row.
        waiting: Sequences in the queue.
        kv_blocks_used: Blocks held by sequences; idle cached blocks count as free.
        kv_blocks_total: Blocks of the KV cache.
        kv_blocks_cached: Blocks with an entry in the prefix cache, held or idle.
        prefix_hit_tokens_total: Prompt tokens taken from the prefix cache at first admission.
        prefix_query_tokens_total: Prompt tokens of all first admissions.
        preemptions_total: Sequences that gave up their blocks.
        steps_total: Plans made.
        prefill_tokens_total: Planned tokens of prompts and of recomputation.
        decode_tokens_total: Planned tokens of sequences that advance one by one.
        batch_tokens: Tokens of the latest plan.
    """

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    kv_blocks_cached: int
    prefix_hit_tokens_total: int
    prefix_query_tokens_total: int
    preemptions_total: int
    steps_total: int
    prefill_tokens_total: int
    decode_tokens_total: int
    batch_tokens: int

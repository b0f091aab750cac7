"""Sizes of paged attention: keys and values are read once, scores only below the diagonal."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def attention_case(
    config: ModelConfig, sequences: int, new_tokens: int, context: int, item_bytes: int = 2
) -> KernelCase:
    """Attention of one layer without a window.

    Args:
        new_tokens: Of each sequence, the last of its ``context``.
    """
    cached = 2 * sequences * context * config.kv_size
    queries = 2 * sequences * new_tokens * config.q_size
    # Query i of n sees all keys but the n - 1 - i that follow it.
    pairs = new_tokens * context - new_tokens * (new_tokens - 1) // 2
    return KernelCase(
        "attention",
        sequences * new_tokens,
        sequences,
        context,
        (cached + queries) * item_bytes,
        4 * sequences * pairs * config.q_size,
    )

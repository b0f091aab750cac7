"""Sizes of rotary embedding with the write of keys and values to their pages."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def rotary_case(config: ModelConfig, tokens: int, item_bytes: int = 2) -> KernelCase:
    """Reads and writes queries; reads keys and values, and writes them to the cache."""
    values = 2 * (config.q_size + 2 * config.kv_size)
    rotated = config.q_size + config.kv_size
    return KernelCase(
        "rotary_and_cache", tokens, tokens, 1, tokens * values * item_bytes, 3 * tokens * rotated
    )

"""Sizes of the embedding's gather."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def embedding_case(
    config: ModelConfig, tokens: int, item_bytes: int = 2, residual_bytes: int = 2
) -> KernelCase:
    """Reads a row of the table a token, writes it to the residual stream."""
    moved = tokens * config.hidden_size * (item_bytes + residual_bytes)
    return KernelCase("embed", tokens, tokens, 1, moved, 0)

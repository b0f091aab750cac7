"""Sizes of the fused residual addition and RMSNorm."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def norm_case(
    config: ModelConfig, tokens: int, item_bytes: int = 2, residual_bytes: int = 2
) -> KernelCase:
    """Reads the sum and what is added to it; writes the sum and its norm."""
    moved = tokens * config.hidden_size * (2 * item_bytes + 2 * residual_bytes)
    return KernelCase("add_rms_norm", tokens, tokens, 1, moved, 6 * tokens * config.hidden_size)

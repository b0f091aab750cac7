"""Sizes of SiLU times gate."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def activation_case(config: ModelConfig, tokens: int, item_bytes: int = 2) -> KernelCase:
    """Reads gate and up, writes their product."""
    moved = 3 * tokens * config.intermediate_size * item_bytes
    return KernelCase("silu_mul", tokens, tokens, 1, moved, 5 * tokens * config.intermediate_size)

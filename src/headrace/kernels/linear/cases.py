"""Sizes of a model's linears: the weight is read once, however many tokens there are."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase


def linear_cases(
    config: ModelConfig, tokens: int, weight_bytes: float = 2.0, item_bytes: int = 2
) -> list[KernelCase]:
    """Query-key-value, output, gate-up with its activation, down, and the head.

    Args:
        weight_bytes: Of one weight; block formats have fractions.
        item_bytes: Of one activation; logits are float32.
    """
    hidden, inner = config.hidden_size, config.intermediate_size

    def case(kernel: str, rows: int, columns: int, written: int) -> KernelCase:
        moved = int(rows * columns * weight_bytes) + tokens * columns * item_bytes + written
        return KernelCase(kernel, tokens, tokens, 1, moved, 2 * tokens * rows * columns)

    def plain(kernel: str, rows: int, columns: int) -> KernelCase:
        return case(kernel, rows, columns, tokens * rows * item_bytes)

    return [
        plain("qkv", config.q_size + 2 * config.kv_size, hidden),
        plain("output", hidden, config.q_size),
        case("gate_up_silu", 2 * inner, hidden, tokens * inner * item_bytes),
        plain("down", hidden, inner),
        case("head", config.vocab_size, hidden, tokens * config.vocab_size * 4),
    ]

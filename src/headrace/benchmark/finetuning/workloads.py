"""What is timed: rows × tokens, checkpointing, the base's precision; and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.link.errors import ConfigurationError

DENSE_BF16_TFLOPS = {"H100": 989.4, "H200": 989.4, "MI300X": 1307.4, "MI325X": 1307.4}
"""Peaks by the vendors' datasheets (SXM and OAM modules, without sparsity)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of training step.

    Attributes:
        rows: Sequences of a step.
        row_tokens: Tokens of each.
        checkpointing: Activations are computed again in the backward.
        precision: Of the frozen base.
    """

    rows: int
    row_tokens: int
    checkpointing: bool = False
    precision: BasePrecision = BasePrecision.BF16

    def __post_init__(self) -> None:
        for name in ("rows", "row_tokens"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.rows * self.row_tokens

    @property
    def name(self) -> str:
        """As in messages: ``4x4096 checkpointed fp8``."""
        parts = [f"{self.rows}x{self.row_tokens}"]
        parts += ["checkpointed"] if self.checkpointing else []
        return " ".join([*parts, self.precision.value])

    def model_flops(self, shape: ModelConfig) -> float:
        """Operations that a step needs: no weight gradients, no recomputation.

        4 for each weight of a linear and token (forward, and the input's gradient), and causal
        attention: its two products forward, four backward, over half of the square.
        """
        hidden, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        layer = shape.hidden_size * (2 * hidden + 2 * kv + 3 * shape.intermediate_size)
        weights = shape.num_layers * layer + shape.vocab_size * shape.hidden_size
        attention = 6 * shape.num_layers * self.rows * self.row_tokens**2 * hidden
        return 4.0 * weights * self.tokens + attention


REFERENCE = (
    Workload(2, 448),
    Workload(8, 448),
    Workload(1, 4096),
    Workload(4, 4096, checkpointing=True),
    Workload(1, 4096, precision=BasePrecision.FP8),
)


def peak_tflops(device_name: str) -> float | None:
    """The datasheet's dense bf16 rate of a device; ``None`` for one that is not listed."""
    for name, rate in DENSE_BF16_TFLOPS.items():
        if name in device_name:
            return rate
    return None

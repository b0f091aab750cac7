"""What one device computes in one training step: all that the memory plan depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.finetuning.fused.pieces import FusedPieces
from headrace.link.errors import ConfigurationError

BASE_FORMATS = {"bf16": "bf16", "fp32": "fp32", "fp8": "fp8", "4bit": "nf4"}
"""Precision of the frozen base to the name of its weight format."""

ADAPTER_DTYPES = {"fp32": 4, "bf16": 2}
"""dtype of the adapters to the bytes of an element."""


UNFUSED = FusedPieces(**dict.fromkeys(FusedPieces.__dataclass_fields__, False))
"""Stock Transformers and PEFT."""


@dataclass(frozen=True, slots=True)
class TrainingWorkload:
    """One step of LoRA training on one device.

    Attributes:
        rows: Rows that one device computes at once (accumulation steps come one after another).
        row_tokens: Tokens of a row, padding included.
        rank: Of the adapters.
        target_modules: Names of projections (``q_proj`` ...) or ``("all-linear",)``.
        base_precision: A key of ``BASE_FORMATS``.
        gradient_checkpointing: Only each layer's input is kept; the layer is computed again.
        fused: What runs fused.
        dropout: On the adapters' input.
        adapter_dtype: A key of ``ADAPTER_DTYPES``; the optimizer's state is float32 in any case.
        autocast: Adapters of ``fp32`` over a base in bf16 compute in bf16.
        fp8_transposed: A base in FP8 is kept a second time, transposed for the backward pass.
        on_gpu: Dropout masks take one byte an element there, on a CPU as much as the element.
    """

    rows: int
    row_tokens: int
    rank: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    base_precision: str = "bf16"
    gradient_checkpointing: bool = False
    fused: FusedPieces = field(default_factory=FusedPieces)
    dropout: float = 0.0
    adapter_dtype: str = "fp32"
    autocast: bool = True
    fp8_transposed: bool = False
    on_gpu: bool = True

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigurationError: names the field, its value and the bound.
        """
        for name in ("rows", "row_tokens", "rank"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {value}")
        if self.base_precision not in BASE_FORMATS:
            raise ConfigurationError(
                f"`base_precision` must be one of {', '.join(BASE_FORMATS)}, "
                f"got `{self.base_precision}`"
            )
        if self.adapter_dtype not in ADAPTER_DTYPES:
            raise ConfigurationError(
                f"`adapter_dtype` must be one of {', '.join(ADAPTER_DTYPES)}, "
                f"got `{self.adapter_dtype}`"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"`dropout` must be from 0 to below 1, got {self.dropout}")
        if not self.target_modules:
            raise ConfigurationError("`target_modules` must name at least one projection")

    @property
    def element_bytes(self) -> int:
        """Of one element of an activation, of the embedding and of a norm."""
        return 4 if self.base_precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """Of one device in one step."""
        return self.rows * self.row_tokens

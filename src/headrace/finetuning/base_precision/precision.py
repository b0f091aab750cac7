"""The formats in which a frozen base model can be held."""

from __future__ import annotations

from enum import StrEnum


class BasePrecision(StrEnum):
    """How the linear layers of the frozen base are stored; embeddings and norms stay in bf16.

    ``BF16``: as loaded. ``FP8``: float8 e4m3 with one scale an output row, multiplied in FP8 with
    inputs that are quantized a row at a time. ``NF4``: QLoRA's 4-bit normal float in blocks of 64
    (arXiv:2305.14314), multiplied in the compute dtype after a dequantization of one layer.
    """

    BF16 = "bf16"
    FP8 = "fp8"
    NF4 = "4bit"

"""What users of 4-bit bases have without headrace: PEFT over bitsandbytes' linears."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def bitsandbytes_is_there() -> bool:
    """Whether it is installed."""
    return find_spec("bitsandbytes") is not None


def bitsandbytes_linear(weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> nn.Linear:
    """A ``Converter``: NF4 without nested quantization, as Transformers loads it by default."""
    import bitsandbytes

    library: Any = bitsandbytes.nn
    rows, columns = weight.shape
    linear: Any = library.Linear4bit(
        columns,
        rows,
        bias=bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    linear.weight = library.Params4bit(
        weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=linear
    ).to(weight.device)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    kept: nn.Linear = linear
    return kept


def as_loaded_in_4_bits(base: PreTrainedModel) -> PreTrainedModel:
    """Say of a model of such linears what PEFT asks it."""
    marked: Any = base
    marked.is_loaded_in_4bit = True
    return base

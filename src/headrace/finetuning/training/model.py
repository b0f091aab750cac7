"""The model that is trained: base in its precision, adapters, fused pieces."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.base_precision.convert import (
    converted_linear,
    is_converted_name,
    replace_module,
)
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.fused.apply import fuse
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.adapter import add_adapter
from headrace.finetuning.training.base_model import load_base
from headrace.link.errors import ConfigurationError

_DISTRIBUTED = {"single": "ddp", "ddp": "ddp", "fsdp2": "fsdp", "zero3": "zero3"}


def base_dtype(settings: FinetuneSettings) -> torch.dtype:
    """Of the base's weights before they are quantized, and of what is not."""
    return torch.float32 if settings.base_precision == "fp32" else torch.bfloat16


def build_model(
    settings: FinetuneSettings,
    checkpoint: Checkpoint,
    base_name: str,
    device: torch.device,
) -> tuple[PeftModel, str]:
    """The base with adapters, on ``device`` unless its weights will be sharded.

    Args:
        settings: ``placement`` is decided.
        checkpoint: The base.
        base_name: What the adapter's files name as their base.
        device: Of this process.

    Returns:
        The model, and why it is not fused where it should be and is not; else empty.
    """
    base = load_base(checkpoint, base_dtype(settings))
    if settings.base_precision in ("fp8", "4bit"):
        _quantize(base, BasePrecision(settings.base_precision), device)
    # DeepSpeed gathers parameters in buffers of one dtype, and keeps float32 copies of its own.
    model = add_adapter(base, settings, base_name, keep_dtype=settings.placement == "zero3")
    if settings.placement in ("single", "ddp"):
        model.to(device)
    unfused = ""
    if settings.fused:
        try:
            fuse(model, distributed=_DISTRIBUTED[settings.placement])
        except ConfigurationError as error:
            unfused = str(error)
    return model, unfused


def _quantize(base: PreTrainedModel, precision: BasePrecision, device: torch.device) -> None:
    """Convert linear by linear, so that the device never holds the whole model unquantized."""
    linears = [
        (name, module)
        for name, module in base.named_modules()
        if type(module) is nn.Linear and is_converted_name(name)
    ]
    with torch.no_grad():
        while linears:
            name, linear = linears.pop()
            bias = None if linear.bias is None else linear.bias.data.to(device)
            weight = linear.weight.data.to(device)
            converted = converted_linear(weight, bias, precision, False, name)
            replace_module(base, name, converted)

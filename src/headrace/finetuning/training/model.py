"""The model that is trained: base in its precision, adapters, fused pieces."""

from __future__ import annotations

import torch
from peft import PeftModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.fused.apply import fuse
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.adapter import add_adapter
from headrace.finetuning.training.base_model import place_base
from headrace.finetuning.training.shard_loading import to_meta
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
    converts = settings.base_precision in ("fp8", "4bit")
    base = place_base(
        checkpoint,
        Placement(settings.placement),
        BasePrecision(settings.base_precision) if converts else BasePrecision.BF16,
        base_dtype(settings),
        device,
    )
    # DeepSpeed gathers parameters in buffers of one dtype, and keeps float32 copies of its own.
    model = add_adapter(base, settings, base_name, keep_dtype=settings.placement == "zero3")
    if settings.placement == "fsdp2":
        to_meta(model)
    elif settings.placement != "zero3":
        model.to(device)
    unfused = ""
    if settings.fused:
        try:
            fuse(model, distributed=_DISTRIBUTED[settings.placement])
        except ConfigurationError as error:
            unfused = str(error)
    return model, unfused

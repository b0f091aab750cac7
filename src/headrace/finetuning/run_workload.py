"""A run's settings as the memory planner takes them."""

from __future__ import annotations

from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload
from headrace.finetuning.settings import FinetuneSettings

_WIDTH_MULTIPLE = 64
"""Rows padded to a multiple of it have few shapes, and each comes often enough for a graph."""


def width_multiple(settings: FinetuneSettings, on_gpu: bool) -> int:
    """What the tokens of a padded row are a multiple of.

    Args:
        settings: Of the run; ``placement`` need not be decided.
        on_gpu: Whether the device is a GPU.
    """
    graphs = on_gpu and settings.fused and settings.placement not in ("fsdp2", "zero3")
    return _WIDTH_MULTIPLE if graphs and settings.layout == "padded" else 1


def workload_of(settings: FinetuneSettings, row_tokens: int, on_gpu: bool) -> TrainingWorkload:
    """The step of one device that a run's settings ask for.

    Args:
        settings: Of the run.
        row_tokens: Tokens of the longest row.
        on_gpu: Whether the device is a GPU.
    """
    multiple = width_multiple(settings, on_gpu)
    return TrainingWorkload(
        rows=settings.batch_size,
        row_tokens=-(-row_tokens // multiple) * multiple,
        rank=settings.r,
        target_modules=settings.target_modules,
        base_precision=settings.base_precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        dropout=settings.dropout,
        fused=FusedPieces() if settings.fused else UNFUSED,
        adapter_dtype="bf16" if settings.placement == "zero3" else "fp32",
        on_gpu=on_gpu,
    )

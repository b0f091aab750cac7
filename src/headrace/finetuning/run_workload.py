"""A run's settings as the memory planner takes them."""

from __future__ import annotations

from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload
from headrace.finetuning.settings import FinetuneSettings


def workload_of(settings: FinetuneSettings, row_tokens: int, on_gpu: bool) -> TrainingWorkload:
    """The step of one device that a run's settings ask for.

    Args:
        settings: Of the run.
        row_tokens: Tokens of the longest row.
        on_gpu: Whether the device is a GPU.
    """
    return TrainingWorkload(
        rows=settings.batch_size,
        row_tokens=row_tokens,
        rank=settings.r,
        target_modules=settings.target_modules,
        base_precision=settings.base_precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        dropout=settings.dropout,
        fused=FusedPieces() if settings.fused else UNFUSED,
        adapter_dtype="bf16" if settings.placement == "zero3" else "fp32",
        on_gpu=on_gpu,
    )

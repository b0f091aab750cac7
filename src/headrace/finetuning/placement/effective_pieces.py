"""Which fused pieces a run really gets: not every model and placement can have all."""

from __future__ import annotations

from dataclasses import replace

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import UNFUSED


def effective_pieces(config: ModelConfig, asked: FusedPieces, placement: Placement) -> FusedPieces:
    """What is left of ``asked``.

    Layers with head norms (Qwen3) or a sliding window are not fused. FSDP2 gathers the head when it
    is called and shards each weight alone; ZeRO-3 gathers a module at a time, so that only
    norms, rotary and SwiGLU can be fused (see ``headrace.finetuning.fused.apply``).
    """
    if config.qk_norm or config.sliding_layers:
        return UNFUSED
    if placement is Placement.FSDP2:
        return replace(asked, merged_projections=False, cross_entropy=False)
    if placement is Placement.ZERO3:
        return replace(
            asked,
            decoder_layer=False,
            merged_projections=False,
            lora_linear=False,
            cross_entropy=False,
        )
    return asked

"""``fuse``: patch a Transformers model with PEFT's LoRA so that training it is fast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.finetuning.fused.adapters import lora_layer
from headrace.finetuning.fused.families import causal_model, check_trained, plan_layer
from headrace.finetuning.fused.model_forward import (
    FusedCausalForward,
    FusedModelForward,
    fuse_layer,
)
from headrace.finetuning.fused.module_pieces import (
    fuse_lora_linear,
    fuse_norm,
    fuse_rotary,
    fuse_swiglu,
)
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.link.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

GRAPH_TOKENS = 4096
"""Above this the device is busier than the host (8B on an H100: 1,500 tokens already suffice)."""


def fuse(
    model: nn.Module,
    pieces: FusedPieces | None = None,
    distributed: str = "ddp",
    graph_tokens: int = GRAPH_TOKENS,
) -> None:
    """Replace forwards in place; names, parameters and the saved adapter stay PEFT's.

    ``model(input_ids=…, labels=…, position_ids=…, attention_mask=…).loss`` works as before, also
    with ``gradient_checkpointing_enable()``; ``logits`` are ``None`` where labels are given (with
    ``cross_entropy``). In TRL's SFTTrainer, take ``transformers.Trainer``'s ``compute_loss``: TRL's
    own wants its fused head's outputs. Rows may be padded at their end; rows whose ``position_ids``
    begin anew are packed documents that do not see each other. A batch of fixed-length rows is
    fastest without ``position_ids`` and ``attention_mask``, which the host has to look at.

    Call it after PEFT, and before FSDP2's ``fully_shard`` or Accelerate's ``prepare``.

    Args:
        model: A ``PeftModel`` or a causal model of the families llama, mistral and qwen2, on the
            device that it trains on; everything but adapters frozen.
        pieces: What to replace; all by default.
        distributed: ``ddp`` (also a single device), ``fsdp`` (no merged projections: each weight is
            sharded alone) or ``zero3`` (module pieces only: ZeRO-3 gathers the weights of a module
            when that module is called, and a fused layer calls none).
        graph_tokens: On a GPU, steps of whole rows (no ``position_ids``) of up to so many tokens
            are captured as a CUDA graph when their shape comes the third time; 0: none. Only with
            ``decoder_layer`` and ``cross_entropy``.

    Raises:
        ConfigurationError: The family, an adapter's kind, a trained base parameter, or a piece that
            the way of distribution does not allow.
    """
    asked = pieces or FusedPieces()
    if distributed not in ("ddp", "fsdp", "zero3"):
        raise ConfigurationError(f"`distributed` must be ddp, fsdp or zero3, got {distributed!r}")
    if distributed == "zero3":
        if pieces is not None and (asked.decoder_layer or asked.cross_entropy or asked.lora_linear):
            raise ConfigurationError(
                "ZeRO-3 gathers weights a module at a time: decoder_layer, lora_linear and "
                "cross_entropy cannot be fused with it (rms_norm, rotary and swiglu can)"
            )
        asked = replace(asked, decoder_layer=False, lora_linear=False, cross_entropy=False)
    if distributed == "fsdp":
        if pieces is not None and asked.merged_projections and asked.decoder_layer:
            raise ConfigurationError("FSDP shards each weight: merged_projections must be off")
        if pieces is not None and asked.cross_entropy:
            raise ConfigurationError(
                "FSDP gathers the head when it is called: cross_entropy cannot be fused with it"
            )
        asked = replace(asked, merged_projections=False, cross_entropy=False)
    causal = causal_model(model)
    check_trained(model)
    plans = []
    if asked.decoder_layer:
        for index, layer in enumerate(causal.model.layers):
            plan = plan_layer(layer, causal.config, index, asked.merged_projections)
            fuse_layer(layer, plan, index)
            plans.append(plan)
        causal.model.forward = FusedModelForward(causal.model, plans)
    else:
        _fuse_modules(causal, asked)
    if asked.cross_entropy:
        causal.forward = FusedCausalForward(causal, plans, graph_tokens)


def _fuse_modules(causal: nn.Module, pieces: FusedPieces) -> None:
    for name, module in list(causal.named_modules()):
        if pieces.rms_norm and type(module).__name__.endswith("RMSNorm"):
            fuse_norm(module)
        elif pieces.swiglu and type(module).__name__.endswith("MLP"):
            fuse_swiglu(module)
        elif pieces.rotary and type(module).__name__.endswith("Attention"):
            fuse_rotary(module)
        elif pieces.lora_linear and lora_layer(module) is not None:
            fuse_lora_linear(module, name)

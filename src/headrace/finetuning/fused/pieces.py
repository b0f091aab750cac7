"""Which parts of a training step are replaced by fused forms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FusedPieces:
    """What ``fuse`` replaces; every piece computes the same function as Transformers and PEFT.

    Attributes:
        decoder_layer: The whole decoder layer as one autograd function: RMSNorm, rotary embedding,
            SwiGLU, LoRA linears, attention (packed rows without cross-contamination too), and
            gradient checkpointing inside the layer. Takes the place of the next five.
        merged_projections: Query, key and value weights as one matrix, gate and up as another
            (views keep the modules' own names). Only within ``decoder_layer``,
            bf16 and FP8 weights only, one device a process (DDP included).
        lora_linear: One pass for base and adapter, with dropout masks made from a seed.
        rms_norm: RMSNorm, forward and backward a single pass each.
        rotary: Rotary embedding of queries and keys in one pass.
        swiglu: The gated activation of the feed-forward network.
        cross_entropy: Head and loss in pieces of rows: full logits never exist.
    """

    decoder_layer: bool = True
    merged_projections: bool = True
    lora_linear: bool = True
    rms_norm: bool = True
    rotary: bool = True
    swiglu: bool = True
    cross_entropy: bool = True


def loss_piece_elements(*, on_gpu: bool) -> int:
    """Logits that the fused head computes at once.

    A GPU wants large products; a CPU is as fast with few rows, and its reference kernels hold
    float32 copies of the piece.
    """
    return 1 << 29 if on_gpu else 1 << 22

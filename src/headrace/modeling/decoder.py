"""The decoder-only transformer of the Llama, Mistral, Qwen2 and Qwen3 families.

One pre-norm block, repeated: attention with grouped heads and rotary positions, then a gated
feed-forward network. The families differ only in what a layer carries (biases, head norms, a
sliding window), never in this file's control flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.kernels.low_rank.stack import LowRankStack
from headrace.modeling.activations import Activations
from headrace.modeling.adapters.adapter_set import NO_UPDATES, LayerUpdates
from headrace.modeling.fused_decoder import FusedOperations, fused_body
from headrace.modeling.operations import (
    AttentionShape,
    Embedding,
    HeadNorm,
    LayerCache,
    Linear,
    Operations,
)
from headrace.modeling.sampled_rows import finish, keep_sampled, narrows
from headrace.modeling.step import StepInputs


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one block; ``qkv`` and ``gate_up`` are several projections stacked."""

    input_norm: torch.Tensor
    qkv: Linear
    head_norm: HeadNorm | None
    attention: AttentionShape
    output: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model on its device.

    Attributes:
        cos_sin: [max_position, head_dim] float32, see ``rotary.py``.
        head: From hidden states to logits; with tied embeddings the same numbers as
            ``embedding`` in the layout of a linear.
        norm_eps: Of every RMSNorm over hidden states.
    """

    operations: Operations
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: torch.Tensor
    head: Linear
    cos_sin: torch.Tensor
    norm_eps: float

    def body(
        self,
        step: StepInputs,
        buffers: Activations,
        caches: Sequence[LayerCache],
        updates: Sequence[LayerUpdates] | None = None,
    ) -> None:
        """From token ids to ``buffers.final``; writes the new tokens' keys and values.

        Args:
            updates: What adapters add to each layer; ``None``: no token of the step has one.
        """
        ops, eps = self.operations, self.norm_eps
        if updates is None and isinstance(ops, FusedOperations):
            fused_body(self, step, buffers, caches)
            return
        # An adapter's updates are looked up by token.
        sampled_only = updates is None and narrows(step)
        ops.embed(step.token_ids, self.embedding, buffers.residual)
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if index == 0:
                ops.rms_norm(buffers.residual, layer.input_norm, eps, buffers.normed)
            else:
                ops.add_rms_norm(
                    buffers.delta, buffers.residual, layer.input_norm, eps, buffers.normed
                )
            update = NO_UPDATES if updates is None else updates[index]
            self._linear(buffers.normed, layer.qkv, update.qkv, step, buffers.qkv)
            ops.rotate_and_cache(
                buffers.qkv, self.cos_sin, layer.head_norm, layer.attention, cache, step
            )
            ops.attention(buffers.qkv, layer.attention, cache, step, buffers.attended)
            if sampled_only and index == len(self.layers) - 1:
                buffers = keep_sampled(ops, step, buffers)
            self._linear(buffers.attended, layer.output, update.output, step, buffers.delta)
            ops.add_rms_norm(
                buffers.delta, buffers.residual, layer.post_attention_norm, eps, buffers.normed
            )
            if update.gate_up is None:
                ops.gated_linear(buffers.normed, layer.gate_up, buffers.gate_up, buffers.activated)
            else:
                self._linear(buffers.normed, layer.gate_up, update.gate_up, step, buffers.gate_up)
                ops.silu_mul(buffers.gate_up, buffers.activated)
            self._linear(buffers.activated, layer.down, update.down, step, buffers.delta)
        finish(ops, self.final_norm, eps, step, buffers, sampled_only)

    def _linear(
        self,
        x: torch.Tensor,
        weight: Linear,
        update: LowRankStack | None,
        step: StepInputs,
        out: torch.Tensor,
    ) -> None:
        self.operations.linear(x, weight, out)
        if update is not None:
            self.operations.add_low_rank(x, update, step, out)

    def compute_logits(self, buffers: Activations) -> None:
        """From the first R rows of ``buffers.final`` to ``buffers.logits``."""
        self.operations.linear(buffers.final, self.head, buffers.logits)

    @property
    def num_bytes(self) -> int:
        """Bytes of all packed matrices."""
        linears = [
            linear
            for layer in self.layers
            for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        return self.embedding.num_bytes + sum(m.num_bytes for m in (*linears, self.head))

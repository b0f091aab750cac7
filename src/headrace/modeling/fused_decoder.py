"""The decoder's forward in fewer launches, for backends that fuse across ``Operations``.

The same computation as ``Decoder.body``. What is gained: a projection may add to the residual
stream itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from headrace.modeling.activations import Activations
from headrace.modeling.operations import LayerCache, Linear
from headrace.modeling.sampled_rows import finish, keep_sampled, narrows
from headrace.modeling.step import StepInputs

if TYPE_CHECKING:
    from headrace.modeling.decoder import Decoder


@runtime_checkable
class FusedOperations(Protocol):
    """What a backend may offer beyond ``Operations``."""

    def linear_add_rms_norm(
        self,
        x: torch.Tensor,
        weight: Linear,
        delta: torch.Tensor,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """residual[T, N] += x @ weight.T + bias (updated); out = RMSNorm(residual) * norm_weight.

        Args:
            delta: [T, N] scratch.
        """


def fused_body(
    decoder: Decoder, step: StepInputs, buffers: Activations, caches: Sequence[LayerCache]
) -> None:
    """From token ids to ``buffers.final``; see ``Decoder.body``.

    Raises:
        TypeError: The decoder's operations are no ``FusedOperations``.
    """
    ops, eps, layers = decoder.operations, decoder.norm_eps, decoder.layers
    if not isinstance(ops, FusedOperations):
        raise TypeError(f"{type(ops).__name__} does not fuse operations")
    sampled_only = narrows(step)
    ops.embed(step.token_ids, decoder.embedding, buffers.residual)
    ops.rms_norm(buffers.residual, layers[0].input_norm, eps, buffers.normed)
    for layer, following, cache in zip(layers, (*layers[1:], None), caches, strict=True):
        ops.linear(buffers.normed, layer.qkv, buffers.qkv)
        ops.rotate_and_cache(
            buffers.qkv, decoder.cos_sin, layer.head_norm, layer.attention, cache, step
        )
        ops.attention(buffers.qkv, layer.attention, cache, step, buffers.attended)
        if following is None and sampled_only:
            buffers = keep_sampled(decoder.operations, step, buffers)
        ops.linear_add_rms_norm(
            buffers.attended,
            layer.output,
            buffers.delta,
            buffers.residual,
            layer.post_attention_norm,
            eps,
            buffers.normed,
        )
        ops.gated_linear(buffers.normed, layer.gate_up, buffers.gate_up, buffers.activated)
        if following is not None:
            ops.linear_add_rms_norm(
                buffers.activated,
                layer.down,
                buffers.delta,
                buffers.residual,
                following.input_norm,
                eps,
                buffers.normed,
            )
    ops.linear(buffers.activated, layers[-1].down, buffers.delta)
    finish(decoder.operations, decoder.final_norm, eps, step, buffers, sampled_only)

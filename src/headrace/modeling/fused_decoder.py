"""The decoder's forward in fewer launches, for backends that fuse across ``Operations``.

The same computation as ``Decoder.body``. What is gained: a projection may add to the residual
stream itself, and behind the last layer's attention only the tokens that are sampled go on, which
spares a prompt most of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from headrace.modeling.activations import Activations
from headrace.modeling.operations import LayerCache, Linear
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

    def gather_rows(self, source: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """out[R, W] = source[rows]."""


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
    sampled_only = step.max_query_length > 1
    ops.embed(step.token_ids, decoder.embedding, buffers.residual)
    ops.rms_norm(buffers.residual, layers[0].input_norm, eps, buffers.normed)
    for layer, following, cache in zip(layers, (*layers[1:], None), caches, strict=True):
        ops.linear(buffers.normed, layer.qkv, buffers.qkv)
        ops.rotate_and_cache(
            buffers.qkv, decoder.cos_sin, layer.head_norm, layer.attention, cache, step
        )
        ops.attention(buffers.qkv, layer.attention, cache, step, buffers.attended)
        if following is None and sampled_only:
            buffers = _of_sampled_tokens(ops, step, buffers)
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
    if sampled_only:
        ops.add_rms_norm(buffers.delta, buffers.residual, decoder.final_norm, eps, buffers.final)
    else:
        ops.gather_add_rms_norm(
            buffers.delta,
            buffers.residual,
            decoder.final_norm,
            eps,
            step.sampled_tokens,
            buffers.final,
        )


def _of_sampled_tokens(ops: FusedOperations, step: StepInputs, buffers: Activations) -> Activations:
    """The buffers' first R rows, attention's output and the residual stream of sampled tokens.

    Gathered into buffers that the layer no longer needs: that of the projection, which is wider,
    and that of the result, which the final norm overwrites row by row.
    """
    rows = step.sampled_tokens
    count, width = rows.shape[0], buffers.attended.shape[1]
    attended, residual = buffers.qkv[:count, :width], buffers.final[:count]
    ops.gather_rows(buffers.attended, rows, attended)
    ops.gather_rows(buffers.residual, rows, residual)
    return replace(
        buffers,
        attended=attended,
        residual=residual,
        normed=buffers.normed[:count],
        delta=buffers.delta[:count],
        gate_up=buffers.gate_up[:count],
        activated=buffers.activated[:count],
    )

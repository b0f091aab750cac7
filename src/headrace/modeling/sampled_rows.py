"""Behind the last layer's attention only the tokens that are sampled go on.

Of the others the last layer owes nothing but keys and values. A prompt is spared most of a layer,
and a row's arithmetic depends on nothing but the row: no bit changes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from headrace.modeling.activations import Activations
from headrace.modeling.operations import Operations
from headrace.modeling.step import StepInputs


def narrows(step: StepInputs) -> bool:
    """Whether some tokens may not be sampled: of single tokens all are."""
    return step.max_query_length > 1


def keep_sampled(ops: Operations, step: StepInputs, buffers: Activations) -> Activations:
    """The buffers' first R rows, with attention's output and the residual stream of sampled tokens.

    Attention's output is gathered into the memory of the projection before it, which is wider and
    no longer needed.
    """
    rows = step.sampled_tokens
    count, width = rows.shape[0], buffers.attended.shape[1]
    attended = buffers.qkv.view(-1)[: count * width].view(count, width)
    residual = buffers.sampled_residual[:count]
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


def finish(
    ops: Operations,
    norm_weight: torch.Tensor,
    eps: float,
    step: StepInputs,
    buffers: Activations,
    narrowed: bool,
) -> None:
    """The last addition and the final norm, of sampled tokens, to ``buffers.final``.

    Args:
        narrowed: The buffers are those of ``keep_sampled``.
    """
    if narrowed:
        ops.add_rms_norm(buffers.delta, buffers.residual, norm_weight, eps, buffers.final)
    else:
        ops.gather_add_rms_norm(
            buffers.delta, buffers.residual, norm_weight, eps, step.sampled_tokens, buffers.final
        )

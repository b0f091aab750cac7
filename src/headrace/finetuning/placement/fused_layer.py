"""What a decoder layer fused into one autograd function keeps, and holds while it runs backward.

Of each token, in elements: the rows before each of the two norms (2 H), rotated queries, keys and
values (Q + 2 K), attention's output (Q), gate and up (2 I), ``x @ A`` of each adapter (r); and the
log-sum-exp of each head in float32. With gradient checkpointing only the layer's input (H),
attention's output and log-sum-exp, and ``x @ A`` are kept.
"""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.placement.parameter_counts import adapted_projections
from headrace.finetuning.placement.workload import TrainingWorkload


def kept_bytes(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes of one token that one layer keeps for its backward pass."""
    adapters = len(adapted_projections(config, workload.target_modules)) * workload.rank
    elements = config.hidden_size + config.q_size + adapters
    if not workload.gradient_checkpointing:
        elements += config.hidden_size + config.q_size + 2 * config.kv_size
        elements += 2 * config.intermediate_size
    # A CPU has no kernel that returns the log-sum-exp: it attends again in the backward pass.
    statistics = 4 * config.num_heads if workload.on_gpu else 0
    return elements * workload.element_bytes + statistics


def backward_bytes(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes of one token at the layer's worst moment: the gradient of gate and up is computed.

    Beside it (2 I) there are the gradients of the product (I) and of the layer's output (H); with
    gradient checkpointing also the rows before the second norm (H), gate and up (2 I) again.
    """
    elements = 3 * config.intermediate_size + config.hidden_size
    if workload.gradient_checkpointing:
        elements += 2 * config.intermediate_size + config.hidden_size
    # The reference of a CPU computes in float32: gate and up, sigmoid, gate alone, a product of
    # twice the width, and the gradient of gate and up.
    wide = 0 if workload.on_gpu else 4 * 8 * config.intermediate_size
    return elements * workload.element_bytes + wide

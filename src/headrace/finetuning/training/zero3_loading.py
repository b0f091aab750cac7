"""ZeRO-3 over a base without weights: sharded while it is empty, then filled tensor by tensor.

Transformers' own loading needs safetensors and holds one of their files in every process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from headrace.finetuning.base_precision.base_weights import BaseWeights


def load_partitioned(
    config: PreTrainedConfig, weights: BaseWeights, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A frozen model of which this process holds its part; the first process reads.

    Call it in every process, after DeepSpeed's configuration is known to Transformers.

    Args:
        config: Transformers' configuration.
        weights: On ``device``.
        dtype: Of the model.
        device: Of this process.

    Raises:
        ConfigurationError: a tensor that is missing, of another shape or cannot be read; in the
            first process only.
    """
    import deepspeed

    # What Transformers draws here is overwritten, and must not move the adapter's generator on.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.requires_grad_(False)
    reads = not dist.is_initialized() or dist.get_rank() == 0
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
            if reads:
                parameter.data.copy_(weights.read_whole(name, tuple(parameter.shape), dtype))
    return model

"""The decoder families whose layers can be fused, and the plan of one layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from headrace.finetuning.fused.adapters import base_linear, find_branch
from headrace.finetuning.fused.decoder_layer import LayerPlan, LayerShape
from headrace.finetuning.fused.frozen_choice import frozen_matrix
from headrace.finetuning.fused.projection import ProjectionGroup
from headrace.link.errors import ConfigurationError

FAMILIES = ("llama", "mistral", "qwen2")
_GROUPS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


def causal_model(model: nn.Module) -> Any:
    """The Transformers causal language model inside a PEFT model, or the model itself.

    Raises:
        ConfigurationError: Its family, activation or attention is not one that is fused.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    config: Any = getattr(inner, "config", None)
    family = getattr(config, "model_type", type(inner).__name__)
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigurationError(f"fused training knows the families {known}, not {family}")
    if config.hidden_act not in ("silu", "swish"):
        raise ConfigurationError(f"fused training computes SwiGLU, not {config.hidden_act!r}")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        raise ConfigurationError(f"fused attention has no sliding window (got {window})")
    if getattr(config, "attention_dropout", 0.0):
        raise ConfigurationError("fused attention has no dropout (attention_dropout must be 0)")
    return inner


def check_trained(model: nn.Module) -> None:
    """Only adapters may be trained, and only plain LoRA.

    Raises:
        ConfigurationError: Names the first adapter or other parameter that cannot be.
    """
    for name, module in model.named_modules():
        find_branch(module, 0, name)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_A." not in name and ".lora_B." not in name:
            raise ConfigurationError(
                f"fused training keeps the base model frozen, but {name} wants a gradient"
            )


def plan_layer(layer: Any, config: Any, index: int, merge: bool) -> LayerPlan:
    """The plan of a decoder layer.

    Args:
        layer: Transformers' decoder layer.
        config: Its model's configuration.
        index: Of the layer, for messages.
        merge: Let weights on one input lie one under the other.
    """
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups, seeds = [], 0
    for parent, names in _GROUPS:
        modules = [getattr(getattr(layer, parent), name) for name in names]
        branches = [
            branch
            for member, module in enumerate(modules)
            if (branch := find_branch(module, member, f"layer {index} {names[member]}"))
        ]
        matrix = frozen_matrix([base_linear(module) for module in modules], merge)
        groups.append(ProjectionGroup(matrix, branches, seeds))
        seeds += len(branches)
    qkv, out, gate_up, down = groups
    return LayerPlan(
        shape=LayerShape(
            heads, config.num_key_value_heads, head_dim, config.rms_norm_eps, head_dim**-0.5
        ),
        input_norm=layer.input_layernorm,
        qkv=qkv,
        out=out,
        post_norm=layer.post_attention_layernorm,
        gate_up=gate_up,
        down=down,
    )

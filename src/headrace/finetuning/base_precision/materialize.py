"""A model built one tensor at a time, so that a large one fits while it is made."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from headrace.finetuning.base_precision.convert import (
    Converter,
    is_converted_name,
    replace_module,
)

TensorSource = Callable[[str, tuple[int, ...]], torch.Tensor]


def materialize(
    config: PretrainedConfig,
    source: TensorSource,
    convert: Converter | None,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> PreTrainedModel:
    """A frozen causal model whose tensors come from ``source`` in the order of its layers.

    At any moment there is at most one tensor in ``dtype`` beside what the model keeps.

    Args:
        config: Transformers' configuration.
        source: ``(name, shape) -> tensor`` in any float dtype, on any device.
        convert: Makes the linears; the head, embeddings and norms stay in ``dtype``. ``None``:
            so do the linears.
        device: Where the model shall be.
        dtype: Of everything that is not converted, and of the computation.

    Raises:
        ConfigurationError: A linear's shape does not suit the format.
    """
    model = empty_model(config, device, dtype)
    with torch.no_grad():
        for name, module in list(model.named_modules()):
            tied = config.tie_word_embeddings and name == "lm_head"
            if not tied:
                _fill(model, name, module, source, convert, device, dtype)
    model.tie_weights()
    model.requires_grad_(False)
    model.eval()
    return model


def empty_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A causal model without weights: parameters on the meta device, rotary frequencies on
    ``device``, attention through torch's SDPA.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            # Its frequencies are computed, not stored: they need a device that computes.
            rotary: Any = module
            rotary.__init__(config=config)
            module.to(device)
    return model


def _fill(
    model: nn.Module,
    name: str,
    module: nn.Module,
    source: TensorSource,
    convert: Converter | None,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    tensors = {
        leaf: source(f"{name}.{leaf}", tuple(parameter.shape)).to(device, dtype)
        for leaf, parameter in module.named_parameters(recurse=False)
    }
    if type(module) is nn.Linear and convert is not None and is_converted_name(name):
        linear = convert(tensors["weight"], tensors.get("bias"), name)
        replace_module(model, name, linear)
        return
    for leaf, tensor in tensors.items():
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))

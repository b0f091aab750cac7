"""The frozen base as a Transformers model, from safetensors or from GGUF through our own reader."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.expected_tensors import EMBEDDING, HEAD
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.link.errors import ConfigurationError
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import GGUFBlocks


def load_base(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in ``dtype``, attention through torch's SDPA.

    Raises:
        ConfigurationError: a GGUF file whose rotary scaling Transformers has no name for.
    """
    if isinstance(checkpoint, GGUFCheckpoint):
        model = _empty(checkpoint, dtype)
        weights = _read_all(checkpoint, dtype)
        if checkpoint.config.tie_word_embeddings:
            weights[HEAD] = weights[EMBEDDING]
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        return model
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return loaded


def _empty(checkpoint: GGUFCheckpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights on the meta device, and all that is computed at its making."""
    config = _transformers_config(checkpoint)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="sdpa"
        )
    # Rotary frequencies are computed, not stored: they need a device that computes.
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.__init__(config=config)  # type: ignore[misc]
    return model


def _transformers_config(checkpoint: GGUFCheckpoint) -> PreTrainedConfig:
    try:
        described = config_json(checkpoint.config)
    except ValueError as error:
        raise ConfigurationError(
            f"{checkpoint.path}: cannot be fine-tuned from GGUF ({error}); use its safetensors"
        ) from None
    described.pop("architectures")
    config: PreTrainedConfig = AutoConfig.for_model(described.pop("model_type"), **described)
    ends = list(checkpoint.eos_token_ids)
    config.eos_token_id = ends if len(ends) > 1 else next(iter(ends), None)
    return config


def _read_all(checkpoint: GGUFCheckpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    reader = TensorReader(checkpoint.tensors, torch.device("cpu"))
    weights = {}
    for name in checkpoint.tensors:
        tensor = reader.read(name)
        weights[name] = (
            dequantize(tensor, dtype)
            if isinstance(tensor, GGUFBlocks)
            else tensor.to(dtype, copy=True)
        )
    return weights

"""The configuration from which Transformers builds a checkpoint's model."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.link.errors import ConfigurationError


def transformers_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Of a directory its own; of a GGUF file one that describes the same model.

    Raises:
        ConfigurationError: a GGUF file whose rotary scaling Transformers has no name for.
    """
    if not isinstance(checkpoint, GGUFCheckpoint):
        loaded: PreTrainedConfig = AutoConfig.from_pretrained(
            checkpoint.path, local_files_only=True
        )
        return loaded
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

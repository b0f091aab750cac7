"""A checkpoint's model with its linears converted as they are read."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.base_precision.convert import Converter
from headrace.finetuning.base_precision.materialize import materialize
from headrace.finetuning.base_precision.transformers_config import transformers_config


def load_base(
    checkpoint: Checkpoint,
    convert: Converter | None,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> PreTrainedModel:
    """The frozen model of a checkpoint, read one tensor at a time.

    The host holds no copy of it. A 70B model takes its converted size on the device and one tensor
    in ``dtype``: about 43 GiB in 4 bits, and in FP8 without a transposed copy about 71 GiB.

    Args:
        checkpoint: A directory of safetensors, or a GGUF file.
        convert: See ``materialize``.
        device: Where the model shall be.
        dtype: See ``materialize``.

    Raises:
        ConfigurationError: A tensor that is missing, of another shape or cannot be read.
    """
    weights = BaseWeights(checkpoint, device)

    def read(name: str, size: tuple[int, ...]) -> torch.Tensor:
        return weights.read_whole(name, size, dtype)

    return materialize(transformers_config(checkpoint), read, convert, device, dtype)

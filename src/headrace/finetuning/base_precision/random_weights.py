"""Random weights drawn on the device from a seed, straight into the target format."""

from __future__ import annotations

import torch
from transformers import AutoConfig, PreTrainedModel

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.config_json import config_json
from headrace.finetuning.base_precision.convert import Converter
from headrace.finetuning.base_precision.materialize import materialize

_DEVIATION = 0.02


def random_base(
    shape: ModelConfig,
    convert: Converter | None,
    device: torch.device,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
) -> PreTrainedModel:
    """A frozen model with normal weights (deviation 0.02) and norms of one.

    The same seed gives the same weights in every precision, before their conversion.

    Args:
        shape: The architecture.
        convert: See ``materialize``.
        device: That draws and holds them.
        seed: Of the generator.
        dtype: See ``materialize``.
    """
    described = config_json(shape)
    described.pop("architectures")
    config = AutoConfig.for_model(described.pop("model_type"), **described)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return (
                torch.zeros(size, dtype=dtype, device=device)
                if name.endswith("bias")
                else torch.ones(size, dtype=dtype, device=device)
            )
        tensor = torch.empty(size, dtype=dtype, device=device)
        return tensor.normal_(0.0, _DEVIATION, generator=generator)

    return materialize(config, draw, convert, device, dtype)

"""Random weights drawn on the device from a seed, straight into the target format."""

from __future__ import annotations

import torch
from transformers import AutoConfig, PreTrainedModel

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.config_json import config_json
from headrace.finetuning.base_precision.materialize import materialize
from headrace.finetuning.base_precision.precision import BasePrecision

_DEVIATION = 0.02


def random_base(
    shape: ModelConfig,
    precision: BasePrecision,
    device: torch.device,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    keep_transposed: bool = True,
) -> PreTrainedModel:
    """A frozen model with normal weights (deviation 0.02) and norms of one.

    The same seed gives the same weights in every precision, before quantization.

    Args:
        shape: The architecture.
        precision: Of the linears.
        device: That draws and holds them.
        seed: Of the generator.
        dtype: See ``materialize``.
        keep_transposed: See ``Fp8Linear``.
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

    return materialize(config, draw, precision, device, dtype, keep_transposed)

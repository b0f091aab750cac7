"""A checkpoint directory's model with its linears converted as they are read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from headrace.finetuning.base_precision.materialize import materialize
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.link.errors import ConfigurationError


def load_converted_base(
    directory: Path,
    precision: BasePrecision,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    keep_transposed: bool = True,
) -> PreTrainedModel:
    """The frozen model of a directory of safetensors, read one tensor at a time.

    A 70B model needs its converted size and one tensor in ``dtype``: about 43 GiB in 4 bits, and
    in FP8 without ``keep_transposed`` about 71 GiB.

    Args:
        directory: With ``config.json`` and safetensors, whole or in shards.
        precision: Of the linears.
        device: Where the model shall be.
        dtype: See ``materialize``.
        keep_transposed: See ``Fp8Linear``.

    Raises:
        ConfigurationError: No safetensors, one that cannot be read, or a tensor that is missing or
            of another shape.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{directory} holds no safetensors")
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with ExitStack() as stack:
        places: dict[str, Any] = {}
        try:
            for file in files:
                opened = stack.enter_context(safe_open(file, framework="pt"))
                places.update(dict.fromkeys(opened.keys(), opened))
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from None

        def read(name: str, size: tuple[int, ...]) -> torch.Tensor:
            if name not in places:
                raise ConfigurationError(f"{directory} has no tensor {name}")
            tensor: torch.Tensor = places[name].get_tensor(name)
            if tuple(tensor.shape) != size:
                raise ConfigurationError(
                    f"{directory}: {name} must be {size}, got {tuple(tensor.shape)}"
                )
            return tensor

        return materialize(config, read, precision, device, dtype, keep_transposed)

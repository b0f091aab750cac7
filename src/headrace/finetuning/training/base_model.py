"""The frozen base of one training process, as its placement wants it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.base_precision.convert import converter
from headrace.finetuning.base_precision.load import load_base
from headrace.finetuning.base_precision.materialize import empty_model
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.base_precision.transformers_config import transformers_config
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.training.shard_loading import stand_in
from headrace.finetuning.training.zero3_loading import load_partitioned


def place_base(
    checkpoint: Checkpoint,
    placement: Placement,
    precision: BasePrecision,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The base with its weights, or ready to take them.

    Args:
        checkpoint: The base.
        placement: ``single`` and ``ddp``: all weights on ``device``. ``fsdp2``: none,
            but zeros that stand for them until ``load_shards`` reads the shards. ``zero3``: this
            process's shards.
        precision: Of the linears; whole models only.
        dtype: Of everything that is not converted.
        device: Of this process.

    Raises:
        ConfigurationError: weights that cannot be read.
    """
    if placement is Placement.FSDP2:
        empty = empty_model(transformers_config(checkpoint), device, dtype)
        empty.requires_grad_(False)
        stand_in(empty)
        return empty
    if placement is Placement.ZERO3:
        config = transformers_config(checkpoint)
        return load_partitioned(config, BaseWeights(checkpoint, device), dtype, device)
    return load_base(checkpoint, converter(precision, keep_transposed=False), device, dtype)

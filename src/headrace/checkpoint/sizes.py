"""How many parameters and bytes a model takes, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import expected_tensors
from headrace.checkpoint.tensors import TensorEntry

BYTES_PER_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(prod(shape) for shape in expected_tensors(config).values())


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights in one dtype (a key of ``BYTES_PER_ITEM``)."""
    return parameter_count(config) * BYTES_PER_ITEM[dtype]


def stored_bytes(config: ModelConfig, tensors: Mapping[str, TensorEntry]) -> int:
    """Bytes of the model's weights as the files hold them."""
    return sum(tensors[name].nbytes for name in expected_tensors(config))


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values that one token takes in the cache, over all layers."""
    return 2 * config.num_layers * config.kv_size * BYTES_PER_ITEM[dtype]

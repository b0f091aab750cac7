"""How many parameters and bytes a model takes, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import EMBEDDING, HEAD, expected_tensors
from headrace.checkpoint.tensors import TensorEntry
from headrace.checkpoint.weight_formats import WeightFormat

BYTES_PER_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(prod(shape) for shape in expected_tensors(config).values())


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights in one dtype (a key of ``BYTES_PER_ITEM``)."""
    return parameter_count(config) * BYTES_PER_ITEM[dtype]


def quantized_weight_bytes(config: ModelConfig, linears: WeightFormat, rest: str) -> int:
    """Bytes of all weights, the projections of the layers in one format and the rest in a dtype.

    Quantizers leave the embedding, the head, norms and biases as they are.

    Args:
        config: The architecture; a tied embedding counts once.
        linears: Of the seven projections of every layer.
        rest: Of everything else; a key of ``BYTES_PER_ITEM``.
    """
    total = 0
    for name, shape in expected_tensors(config).items():
        if len(shape) == 2 and name not in (EMBEDDING, HEAD):
            total += linears.matrix_bytes(*shape)
        else:
            total += prod(shape) * BYTES_PER_ITEM[rest]
    return total


def stored_bytes(config: ModelConfig, tensors: Mapping[str, TensorEntry]) -> int:
    """Bytes of the model's weights as the files hold them."""
    return sum(tensors[name].nbytes for name in expected_tensors(config))


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values that one token takes in the cache, over all layers.

    ``int8`` has a float32 scale for each key head and each value head.
    """
    head_bytes = config.head_dim * BYTES_PER_ITEM[dtype] + (4 if dtype == "int8" else 0)
    return 2 * config.num_layers * config.num_kv_heads * head_bytes


def step_buffer_bytes(
    config: ModelConfig,
    *,
    max_tokens: int,
    max_rows: int,
    activation_bytes: int,
    residual_bytes: int,
) -> int:
    """Bytes of the buffers between a decoder's operations, which the engine allocates once.

    A token has its residual stream, two more hidden states (the projections' input and what a
    block adds), queries, keys and values, attention's output, the gate and up projections, their
    product, and, once it is sampled, its residual stream (where that is wider than an activation)
    and final hidden state; a row has its logits in float32.

    Args:
        config: The architecture.
        max_tokens: Most tokens of one step.
        max_rows: Most sequences that run at once.
        activation_bytes: Of one element of an activation.
        residual_bytes: Of one element of the residual stream.
    """
    elements = (
        3 * config.hidden_size
        + 2 * config.q_size
        + 2 * config.kv_size
        + 3 * config.intermediate_size
    )
    residuals = 2 if residual_bytes != activation_bytes else 1
    per_token = elements * activation_bytes + residuals * config.hidden_size * residual_bytes
    return max_tokens * per_token + min(max_rows, max_tokens) * config.vocab_size * 4


def block_table_bytes(max_rows: int, max_length: int, block_size: int) -> int:
    """Bytes of the block tables on the device: one int32 a block a row."""
    return max_rows * ceil(max_length / block_size) * 4

"""Build a ``Decoder`` from a checkpoint or from a seed, packing weights as they are read."""

from __future__ import annotations

from typing import Protocol

import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import EMBEDDING, FINAL_NORM, HEAD
from headrace.modeling.decoder import Decoder, Layer
from headrace.modeling.loading.random_weights import RandomReader
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import AttentionShape, HeadNorm, Linear, Operations, WeightPart
from headrace.modeling.rotary import cos_sin_table


class Reader(Protocol):
    """Where weights come from."""

    def read(self, name: str) -> WeightPart:
        """A tensor in its stored type."""

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A norm or bias in ``dtype``."""


def load_decoder(
    checkpoint: Checkpoint, operations: Operations, max_positions: int | None = None
) -> Decoder:
    """Read a checkpoint's weights into the layouts of ``operations``.

    Args:
        checkpoint: What ``headrace.checkpoint.resolve`` found.
        operations: Of the backend that will run the model.
        max_positions: Longest sequence that will be asked for; ``None``: the model's own limit.

    Raises:
        ConfigurationError: A tensor of an unsupported type, or with NaN or infinity in it.
    """
    reader = TensorReader(checkpoint.tensors, operations.device)
    return build_decoder(checkpoint.config, reader, operations, max_positions)


def random_decoder(
    config: ModelConfig, seed: int, operations: Operations, max_positions: int | None = None
) -> Decoder:
    """A decoder of this architecture with weights drawn from ``seed``."""
    reader = RandomReader(config, seed, operations.device, operations.activation_dtype)
    return build_decoder(config, reader, operations, max_positions)


def build_decoder(
    config: ModelConfig, reader: Reader, operations: Operations, max_positions: int | None = None
) -> Decoder:
    """Assemble a decoder from whatever ``reader`` reads."""
    table = reader.read(EMBEDDING)
    head = table if config.tie_word_embeddings else reader.read(HEAD)
    positions = min(config.max_position, max_positions or config.max_position)
    return Decoder(
        operations=operations,
        embedding=operations.pack_embedding(table),
        layers=tuple(
            _layer(config, reader, operations, index) for index in range(config.num_layers)
        ),
        final_norm=reader.read_vector(FINAL_NORM, operations.activation_dtype),
        head=operations.pack_linear([head], None),
        cos_sin=cos_sin_table(config, positions, operations.device),
        norm_eps=config.rms_norm_eps,
    )


def _layer(config: ModelConfig, reader: Reader, operations: Operations, index: int) -> Layer:
    prefix = f"model.layers.{index}."
    dtype = operations.activation_dtype

    def linear(names: tuple[str, ...], biased: bool) -> Linear:
        parts = [reader.read(f"{prefix}{name}.weight") for name in names]
        bias = None
        if biased:
            bias = torch.cat([reader.read_vector(f"{prefix}{name}.bias", dtype) for name in names])
        return operations.pack_linear(parts, bias)

    def norm(name: str) -> torch.Tensor:
        return reader.read_vector(f"{prefix}{name}.weight", dtype)

    head_norm = None
    if config.qk_norm:
        head_norm = HeadNorm(
            norm("self_attn.q_norm"), norm("self_attn.k_norm"), config.rms_norm_eps
        )
    return Layer(
        input_norm=norm("input_layernorm"),
        qkv=linear(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), config.attention_bias
        ),
        head_norm=head_norm,
        attention=AttentionShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            sliding_window=config.sliding_window if index in config.sliding_layers else None,
        ),
        output=linear(("self_attn.o_proj",), config.output_bias),
        post_attention_norm=norm("post_attention_layernorm"),
        gate_up=linear(("mlp.gate_proj", "mlp.up_proj"), config.mlp_bias),
        down=linear(("mlp.down_proj",), config.mlp_bias),
    )

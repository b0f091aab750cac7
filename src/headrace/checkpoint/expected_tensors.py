"""The tensors that a model's configuration implies, and the check of a checkpoint against them."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape, (N, K) for matrices, of every tensor that the model needs, in file order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for name, width in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
            shapes[f"{attention}{name}_proj.weight"] = (width, hidden)
            if config.attention_bias:
                shapes[f"{attention}{name}_proj.bias"] = (width,)
        shapes[attention + "o_proj.weight"] = (hidden, config.q_size)
        if config.output_bias:
            shapes[attention + "o_proj.bias"] = (hidden,)
        if config.qk_norm:
            shapes[attention + "q_norm.weight"] = (config.head_dim,)
            shapes[attention + "k_norm.weight"] = (config.head_dim,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (
            ("gate", inner, hidden),
            ("up", inner, hidden),
            ("down", hidden, inner),
        ):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = (rows, columns)
            if config.mlp_bias:
                shapes[f"{prefix}mlp.{name}_proj.bias"] = (rows,)
    shapes[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, TensorEntry], source: str) -> None:
    """Refuse a checkpoint in which a needed tensor is missing or has another shape.

    Tensors that the model does not use are left alone, except biases on its own projections:
    to ignore one would silently compute another model.

    Raises:
        ConfigurationError: Names the first tensor at fault and the shape that was expected.
    """
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigurationError(
            f"{source}: tensor `{missing[0]}` of shape {expected[missing[0]]} is missing{more}"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ConfigurationError(
                f"{source}: tensor `{name}` has shape {tensors[name].shape}, expected {shape}"
            )
    for name in tensors:
        if name.endswith("_proj.bias") and name not in expected:
            raise ConfigurationError(
                f"{source}: tensor `{name}` is present, but the configuration has no such bias"
            )

"""GGUF architecture keys and tensor names under Hugging Face's names."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from headrace.checkpoint.config import RopeScaling
from headrace.checkpoint.expected_tensors import expected_tensors
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.link.errors import ConfigurationError


def _open(path) -> GGUFCheckpoint:
    return GGUFCheckpoint("model", path)


def test_builtin_configuration(builtin):
    config = builtin.config
    assert (config.family, config.num_layers, config.hidden_size) == ("llama", 30, 576)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.intermediate_size, config.vocab_size) == (1536, 49152)
    assert (config.max_position, config.rope_theta) == (8192, 1e5)
    assert config.tie_word_embeddings
    assert config.rope_scaling is None
    assert builtin.tensors.keys() == expected_tensors(config).keys()
    assert builtin.tensors["model.embed_tokens.weight"].dtype == "Q8_0"
    assert builtin.tensors["model.layers.29.mlp.down_proj.weight"].dtype == "Q4_1"
    assert builtin.tensors["model.layers.29.mlp.down_proj.weight"].shape == (576, 1536)


def test_names_are_those_of_the_gguf_package(write_gguf):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for hf_name in _open(write_gguf()).tensors:
        assert names.get_name(hf_name.removesuffix(".weight")) is not None


def test_row_order_undoes_the_converters_permutation(write_gguf, tiny_arrays):
    arrays = tiny_arrays()
    original = arrays["blk.0.attn_q.weight"]
    heads, width = 4, 8
    # The converter's reshaping: halves of a head become neighbouring rows.
    arrays["blk.0.attn_q.weight"] = (
        original.reshape(heads, 2, width // 2, 32).swapaxes(1, 2).reshape(32, 32)
    )
    tensors = _open(write_gguf(arrays=arrays)).tensors
    entry = tensors["model.layers.0.self_attn.q_proj.weight"]
    stored = np.fromfile(entry.path, np.float32, 32 * 32, offset=entry.offset).reshape(32, 32)
    np.testing.assert_array_equal(stored[entry.row_order()], original)
    assert entry.permuted_heads == 4
    assert tensors["model.layers.0.self_attn.k_proj.weight"].permuted_heads == 2
    assert tensors["model.layers.0.self_attn.v_proj.weight"].row_order() is None


def test_qwen_rows_are_not_permuted_and_features_are_seen(write_gguf, tiny_arrays):
    arrays = tiny_arrays()
    for layer in range(2):
        for name, size in (("q", 32), ("k", 16), ("v", 16)):
            arrays[f"blk.{layer}.attn_{name}.bias"] = np.zeros(size, np.float32)
    keys = {
        key.replace("llama.", "qwen2."): value
        for key, value in {
            "llama.block_count": 2,
            "llama.context_length": 128,
            "llama.embedding_length": 32,
            "llama.feed_forward_length": 64,
            "llama.attention.head_count": 4,
            "llama.attention.head_count_kv": 2,
            "llama.attention.layer_norm_rms_epsilon": 1e-6,
            "llama.rope.freq_base": 1e6,
        }.items()
    }
    checkpoint = _open(write_gguf(keys, arrays, architecture="qwen2"))
    assert checkpoint.config.family == "qwen2"
    assert checkpoint.config.attention_bias
    assert not checkpoint.config.output_bias
    assert checkpoint.config.rope_theta == 1e6
    assert "model.layers.1.self_attn.k_proj.bias" in checkpoint.tensors
    assert all(entry.permuted_heads is None for entry in checkpoint.tensors.values())


def test_qwen3_head_norms(write_gguf, tiny_arrays):
    arrays = tiny_arrays()
    for layer in range(2):
        for name, rows in (("q", 64), ("k", 32), ("v", 32)):
            arrays[f"blk.{layer}.attn_{name}.weight"] = np.zeros((rows, 32), np.float32)
        arrays[f"blk.{layer}.attn_output.weight"] = np.zeros((32, 64), np.float32)
        for name in ("q", "k"):
            arrays[f"blk.{layer}.attn_{name}_norm.weight"] = np.ones(16, np.float32)
    keys = {
        "qwen3.block_count": 2,
        "qwen3.context_length": 128,
        "qwen3.embedding_length": 32,
        "qwen3.feed_forward_length": 64,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 16,
        "qwen3.attention.value_length": 16,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
    }
    checkpoint = _open(write_gguf(keys, arrays, architecture="qwen3"))
    assert checkpoint.config.qk_norm
    assert checkpoint.config.head_dim == 16
    assert checkpoint.tensors["model.layers.1.self_attn.q_norm.weight"].shape == (16,)


def test_untied_head(write_gguf, tiny_arrays):
    arrays = tiny_arrays() | {"output.weight": np.zeros((48, 32), np.float32)}
    checkpoint = _open(write_gguf(arrays=arrays))
    assert not checkpoint.config.tie_word_embeddings
    assert checkpoint.tensors["lm_head.weight"].shape == (48, 32)


def test_rope_factors_and_scaling_keys(write_gguf, tiny_arrays):
    factors = np.array([1, 1.5, 4, 8], np.float32)
    scaled = _open(write_gguf(arrays=tiny_arrays() | {"rope_freqs.weight": factors}))
    assert scaled.config.rope_scaling == RopeScaling(
        kind="factors", original_max_position=128, frequency_factors=(1.0, 1.5, 4.0, 8.0)
    )
    assert "rope_freqs.weight" not in scaled.tensors
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }
    config = _open(write_gguf(yarn)).config
    assert config.rope_scaling == RopeScaling(kind="yarn", factor=4.0, original_max_position=64)
    assert config.max_position == 256
    linear = _open(write_gguf({"llama.rope.scale_linear": 2.0})).config.rope_scaling
    assert linear == RopeScaling(kind="linear", factor=2.0, original_max_position=128)
    assert _open(write_gguf({"llama.rope.scaling.type": "none"})).config.rope_scaling is None


def test_mistral_window(write_gguf):
    config = _open(write_gguf({"llama.attention.sliding_window": 64})).config
    assert (config.family, config.sliding_window, config.sliding_layers) == ("mistral", 64, (0, 1))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"llama.block_count": None}, "block_count` must be an integer"),
        ({"llama.attention.head_count": 0}, "must be an integer from 1 to \\d+, got 0"),
        ({"llama.attention.head_count": [4, 4]}, "is an array"),
        ({"llama.attention.head_count_kv": 3}, "4 heads of 8 dimensions, 3 KV heads"),
        ({"split.count": 2}, "split GGUF"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
        ({"llama.rope.dimension_count": 4}, "rotary embedding of 4 of 8"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attention.layer_norm_rms_epsilon": float("inf")}, "positive number"),
        ({"llama.feed_forward_length": 63}, "ffn|mlp"),
    ],
)
def test_unusable_keys_are_refused_by_name(write_gguf, keys, reason):
    checkpoint = _open(write_gguf(keys))
    with pytest.raises(ConfigurationError, match=reason):
        _ = checkpoint.config, checkpoint.tensors


def test_unknown_architecture_lists_the_supported_ones(write_gguf):
    with pytest.raises(ConfigurationError, match=r"gemma.*llama, mistral, qwen2, qwen3"):
        _ = _open(write_gguf(architecture="gemma")).config


def test_missing_and_foreign_tensors(write_gguf, tiny_arrays):
    arrays = tiny_arrays()
    del arrays["blk.1.ffn_up.weight"]
    with pytest.raises(ConfigurationError, match=r"layers\.1\.mlp\.up_proj\.weight.*\(64, 32\)"):
        _ = _open(write_gguf(arrays=arrays)).tensors
    foreign = tiny_arrays() | {"blk.0.ssm_a.weight": np.zeros(4, np.float32)}
    with pytest.raises(ConfigurationError, match=r"blk\.0\.ssm_a\.weight"):
        _ = _open(write_gguf(arrays=foreign)).tensors

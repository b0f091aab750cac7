"""config.json of each family, as Transformers writes it and as older files have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.checkpoint.config import ModelConfig, RopeScaling
from headrace.checkpoint.hf_config import hf_config
from headrace.link.errors import ConfigurationError

PATH = Path("dir/config.json")
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _raw(family: str = "llama", **more) -> dict:
    return {"model_type": family, **SHAPE, **more}


def _saved(config, tmp_path: Path) -> ModelConfig:
    config.save_pretrained(tmp_path)
    return hf_config(json.loads((tmp_path / "config.json").read_text()), PATH)


def test_llama_as_transformers_writes_it(tmp_path):
    from transformers import LlamaConfig

    theirs = LlamaConfig(
        **SHAPE,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    )
    ours = _saved(theirs, tmp_path)
    assert ours.family == "llama"
    assert (ours.hidden_size, ours.intermediate_size, ours.num_layers) == (64, 96, 4)
    assert (ours.num_heads, ours.num_kv_heads, ours.head_dim, ours.vocab_size) == (4, 2, 16, 100)
    assert (ours.q_size, ours.kv_size) == (64, 32)
    assert (ours.max_position, ours.rms_norm_eps, ours.rope_theta) == (4096, 1e-5, 500000.0)
    assert ours.rope_scaling == RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=1024,
    )
    assert ours.tie_word_embeddings
    assert ours.attention_bias
    assert ours.output_bias
    assert ours.mlp_bias
    assert ours.sliding_window is None


def test_mistral_as_transformers_writes_it(tmp_path):
    from transformers import MistralConfig

    windowed = _saved(MistralConfig(**SHAPE, sliding_window=16, head_dim=32), tmp_path)
    assert (windowed.family, windowed.head_dim) == ("mistral", 32)
    assert (windowed.sliding_window, windowed.sliding_layers) == (16, (0, 1, 2, 3))
    assert not windowed.attention_bias
    full = _saved(MistralConfig(**SHAPE, sliding_window=None), tmp_path)
    assert (full.sliding_window, full.sliding_layers) == (None, ())


def test_qwen2_as_transformers_writes_it(tmp_path):
    from transformers import Qwen2Config

    full = _saved(Qwen2Config(**SHAPE), tmp_path)
    assert full.attention_bias
    assert not full.output_bias
    assert full.sliding_window is None
    theirs = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=3)
    windowed = _saved(theirs, tmp_path)
    sliding = [i for i, kind in enumerate(theirs.layer_types) if kind == "sliding_attention"]
    assert (windowed.sliding_window, windowed.sliding_layers) == (8, tuple(sliding))


def test_qwen3_as_transformers_writes_it(tmp_path):
    from transformers import Qwen3Config

    ours = _saved(Qwen3Config(**SHAPE, head_dim=32), tmp_path)
    assert ours.qk_norm
    assert (ours.head_dim, ours.q_size) == (32, 128)
    assert not ours.attention_bias


def test_what_a_silent_file_means():
    """Defaults are those of Transformers' own configuration classes."""
    from transformers import AutoConfig

    for family in ("llama", "mistral", "qwen2", "qwen3"):
        raw = _raw(family, hidden_size=1024, num_attention_heads=64)
        del raw["num_key_value_heads"]
        theirs = AutoConfig.for_model(**raw)
        ours = hf_config(raw, PATH)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.max_position == theirs.max_position_embeddings
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.tie_word_embeddings == theirs.tie_word_embeddings
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.sliding_window == (theirs.sliding_window if family == "mistral" else None)
        head_dim = getattr(theirs, "head_dim", None)
        assert ours.head_dim == (head_dim or theirs.hidden_size // theirs.num_attention_heads)


def test_older_files():
    older = hf_config(
        _raw(
            torch_dtype="float16",
            rope_theta=1e6,
            rope_scaling={"type": "linear", "factor": 4.0},
            max_position_embeddings=2048,
            auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"},
        ),
        PATH,
    )
    assert (older.dtype, older.rope_theta, older.max_position) == ("float16", 1e6, 8192)
    assert older.rope_scaling == RopeScaling(kind="linear", factor=4.0, original_max_position=2048)
    assert hf_config(_raw(dtype="float32", rope_scaling=None), PATH).dtype == "float32"


def test_qwen2_without_layer_types_uses_max_window_layers():
    raw = _raw("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert hf_config(raw, PATH).sliding_layers == (1, 2, 3)
    raw["max_window_layers"] = 4
    assert hf_config(raw, PATH).sliding_window is None


def test_yarn_and_dynamic():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    config = hf_config(_raw("qwen2", max_position_embeddings=1024, rope_scaling=yarn), PATH)
    assert config.max_position == 4096
    assert config.rope_scaling == RopeScaling(kind="yarn", factor=4.0, original_max_position=1024)
    scaled = yarn | {"mscale": 1.0, "mscale_all_dim": 1.0, "truncate": False, "beta_fast": 16}
    scaling = hf_config(_raw(rope_scaling=scaled), PATH).rope_scaling
    assert (scaling.attention_factor, scaling.truncate, scaling.beta_fast) == (1.0, False, 16.0)
    dynamic = {"type": "dynamic", "factor": 2.0}
    config = hf_config(_raw(max_position_embeddings=512, rope_scaling=dynamic), PATH)
    assert config.max_position == 1024
    assert config.rope_scaling.original_max_position == 512


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma3"}, "gemma3.*supported are llama, mistral, qwen2, qwen3"),
        ({"model_type": "evil", "auto_map": {"x": "y"}}, "auto_map.*never run"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": "64"}, "`hidden_size` must be an integer"),
        ({"hidden_size": None}, "`hidden_size`"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be an integer from 1 to 4096"),
        ({"num_attention_heads": True}, "`num_attention_heads`"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"head_dim": 15}, "even"),
        ({"rms_norm_eps": -1}, "`rms_norm_eps` must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "`tie_word_embeddings`"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope.*llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "`factor`"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, ">= 1"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "by layer type"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0}},
            "must exceed",
        ),
    ],
)
def test_refusals_name_the_field(change, reason):
    with pytest.raises(ConfigurationError, match=rf"dir/config\.json: .*{reason}") as caught:
        hf_config(_raw() | change, PATH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kinds", [["full_attention"], "sliding", ["chunked_attention"] * 4])
def test_layer_types(kinds):
    raw = _raw("qwen3", use_sliding_window=True, sliding_window=8, layer_types=kinds)
    with pytest.raises(ConfigurationError, match="layer_types"):
        hf_config(raw, PATH)

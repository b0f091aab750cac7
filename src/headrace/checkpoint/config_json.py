"""The ``config.json`` that describes a ``ModelConfig``: what Transformers builds the model from."""

from __future__ import annotations

from typing import Any

from headrace.checkpoint.config import ModelConfig, RopeScaling

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of ``config.json``, from which ``hf_config`` reads the same ``config`` again.

    Raises:
        ValueError: rotary scaling that only GGUF files can state (``factors``).
    """
    described: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": _position_embeddings(config),
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "dtype": config.dtype,
        "sliding_window": config.sliding_window,
    }
    if config.rope_scaling is not None:
        described["rope_scaling"] = _rope_scaling(config.rope_scaling)
    if config.family in ("llama", "qwen3"):
        described["attention_bias"] = config.attention_bias
    if config.family == "llama":
        described["mlp_bias"] = config.mlp_bias
    if config.family in ("qwen2", "qwen3"):
        described["use_sliding_window"] = bool(config.sliding_layers)
        if config.sliding_layers:
            described["layer_types"] = [
                "sliding_attention" if layer in config.sliding_layers else "full_attention"
                for layer in range(config.num_layers)
            ]
    return described


def _position_embeddings(config: ModelConfig) -> int:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("llama3", "yarn"):
        return config.max_position
    return int(config.max_position / scaling.factor)


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    if scaling.kind == "factors":
        raise ValueError("config.json has no field for a factor of each frequency")
    described: dict[str, Any] = {
        "rope_type": scaling.kind,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }
    if scaling.kind == "llama3":
        described["low_freq_factor"] = scaling.low_freq_factor
        described["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        described["beta_fast"] = scaling.beta_fast
        described["beta_slow"] = scaling.beta_slow
        described["truncate"] = scaling.truncate
        if scaling.attention_factor is not None:
            described["attention_factor"] = scaling.attention_factor
    return described

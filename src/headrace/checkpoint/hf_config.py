"""Hugging Face's ``config.json``, normalised to ``ModelConfig``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from headrace.checkpoint.config import MAX_LAYERS, ModelConfig, RopeScaling
from headrace.link.errors import ConfigurationError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3")
_DTYPES = ("bfloat16", "float16", "float32")
# What Transformers assumes where config.json is silent.
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
}


def hf_config(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Translate the decoded ``config.json`` at ``path`` (named in errors only).

    Code that ``auto_map`` names is never executed: a supported ``model_type`` ignores it.

    Raises:
        ConfigurationError: Unsupported model type or feature; says what is supported.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        reason = " and needs code of its own (auto_map), which is never run" * ("auto_map" in raw)
        raise ConfigurationError(
            f"{path}: model_type {family!r} is not supported{reason}; "
            f"supported are {', '.join(FAMILIES)}"
        )
    raw = _DEFAULTS[family] | raw
    reader = _Fields(raw, path)
    if raw.get("quantization_config") is not None:
        method = _as_dict(raw["quantization_config"]).get("quant_method")
        raise ConfigurationError(
            f"{path}: quantization_config ({method}) is not supported; "
            "unquantized safetensors and GGUF are"
        )
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigurationError(f"{path}: hidden_act {activation!r} is not supported; silu is")
    hidden = reader.integer("hidden_size")
    heads = reader.integer("num_attention_heads")
    head_dim = reader.integer("head_dim", hidden // heads)
    kv_heads = reader.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigurationError(
            f"{path}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim % 2:
        raise ConfigurationError(f"{path}: head_dim must be even, got {head_dim}")
    layers = reader.integer("num_hidden_layers", maximum=MAX_LAYERS)
    position_embeddings = reader.integer("max_position_embeddings")
    theta, scaling = _rope(reader, position_embeddings)
    window, sliding_layers = _sliding_window(reader, family, layers)
    bias = reader.boolean("attention_bias", False)
    return ModelConfig(
        family=family,
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=reader.integer("vocab_size"),
        max_position=_max_position(position_embeddings, scaling),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        attention_bias=family == "qwen2" or (family != "mistral" and bias),
        output_bias=family in ("llama", "qwen3") and bias,
        mlp_bias=family == "llama" and reader.boolean("mlp_bias", False),
        qk_norm=family == "qwen3",
        sliding_window=window,
        sliding_layers=sliding_layers,
        dtype=_dtype(raw),
    )


class _Fields:
    """Checked access to the fields of one JSON object."""

    def __init__(self, raw: dict[str, Any], path: Path) -> None:
        self.raw = raw
        self.path = path

    def integer(self, key: str, default: int | None = None, maximum: int = 2**31 - 1) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
            raise ConfigurationError(
                f"{self.path}: `{key}` must be an integer from 1 to {maximum}, got {value!r}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value < math.inf
        ):
            raise ConfigurationError(
                f"{self.path}: `{key}` must be a positive number, got {value!r}"
            )
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ConfigurationError(f"{self.path}: `{key}` must be true or false, got {value!r}")
        return value


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dtype(raw: dict[str, Any]) -> str:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return name if name in _DTYPES else "bfloat16"


def _max_position(position_embeddings: int, scaling: RopeScaling | None) -> int:
    """Positions that the scaled rotation covers.

    Configurations state the trained length for linear, dynamic and (mostly) yarn scaling, but the
    extended one for llama3.
    """
    if scaling is None or scaling.kind == "llama3":
        return position_embeddings
    if scaling.kind == "yarn":
        return max(position_embeddings, int(scaling.original_max_position * scaling.factor))
    return int(position_embeddings * scaling.factor)


def _rope(reader: _Fields, position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from ``rope_parameters`` (Transformers 5) or older ``rope_scaling``."""
    path = reader.path
    merged: dict[str, Any] = {"rope_theta": reader.raw.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        value = reader.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{path}: `{key}` must be an object, got {value!r}")
        merged.update(value or {})
    if any(isinstance(value, dict) for value in merged.values()):
        raise ConfigurationError(f"{path}: rope_parameters by layer type are not supported")
    partial = merged.get("partial_rotary_factor", reader.raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigurationError(f"{path}: partial_rotary_factor {partial!r} is not supported")
    fields = _Fields(merged, path)
    theta = fields.number("rope_theta", 10000.0)
    kind = merged.get("rope_type") or merged.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in _ROPE_KINDS:
        raise ConfigurationError(
            f"{path}: rope scaling {kind!r} is not supported; {', '.join(_ROPE_KINDS)} are"
        )
    original = reader.raw.get("original_max_position_embeddings") or position_embeddings
    scaling = RopeScaling(
        kind=kind,
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor", 1.0),
        high_freq_factor=fields.number("high_freq_factor", 4.0),
        original_max_position=fields.integer("original_max_position_embeddings", original),
        attention_factor=_attention_factor(fields),
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        truncate=fields.boolean("truncate", True),
    )
    if scaling.factor < 1:
        raise ConfigurationError(f"{path}: rope `factor` must be >= 1, got {scaling.factor}")
    if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ConfigurationError(f"{path}: `high_freq_factor` must exceed `low_freq_factor`")
    return theta, scaling


def _attention_factor(fields: _Fields) -> float | None:
    """Yarn's factor on cosines and sines, where the configuration states one or its ``mscale``s."""
    if fields.raw.get("attention_factor") is not None:
        return fields.number("attention_factor")
    mscale, mscale_all = fields.raw.get("mscale"), fields.raw.get("mscale_all_dim")
    if not mscale or not mscale_all:
        return None
    growth = 0.1 * math.log(fields.number("factor"))
    return (growth * fields.number("mscale") + 1) / (growth * fields.number("mscale_all_dim") + 1)


def _sliding_window(
    reader: _Fields, family: str, layers: int
) -> tuple[int | None, tuple[int, ...]]:
    """The window, and the layers it applies to, as each family's configuration defines them."""
    if family == "llama" or reader.raw.get("sliding_window") is None:
        return None, ()
    window = reader.integer("sliding_window")
    if family == "mistral":
        return window, tuple(range(layers))
    if not reader.boolean("use_sliding_window", False):
        return None, ()
    kinds = reader.raw.get("layer_types")
    if kinds is None:
        first = reader.raw.get("max_window_layers")
        sliding = tuple(range(28 if first is None else int(first), layers))
    else:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise ConfigurationError(f"{reader.path}: `layer_types` must name {layers} layers")
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ConfigurationError(
                f"{reader.path}: `layer_types` of {sorted(map(str, unknown))} are not supported"
            )
        sliding = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return (window, sliding) if sliding else (None, ())

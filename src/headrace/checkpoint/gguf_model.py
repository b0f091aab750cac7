"""A GGUF file's architecture keys and tensor names, translated to ``ModelConfig`` and HF names."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from headrace.checkpoint.config import MAX_LAYERS, ModelConfig, RopeScaling
from headrace.checkpoint.expected_tensors import EMBEDDING, FINAL_NORM, HEAD
from headrace.checkpoint.gguf import GGUFFile
from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# Architectures whose Q and K rows the converter stores interleaved (llama.cpp's "norm" rope).
_INTERLEAVED = ("llama", "mistral")
_ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = {"token_embd": EMBEDDING, "output_norm": FINAL_NORM, "output": HEAD}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")


def gguf_config(file: GGUFFile) -> ModelConfig:
    """The model's architecture.

    Raises:
        ConfigurationError: The architecture or one of its features is not supported, or a key is
            missing or out of range.
    """
    keys = _ArchitectureKeys(file)
    if file.get("split.count", 0) not in (0, 1):
        raise ConfigurationError(f"{file.path}: split GGUF files are not supported; merge them")
    heads = keys.integer("attention.head_count")
    hidden = keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    kv_heads = keys.integer("attention.head_count_kv", heads)
    if heads % kv_heads or head_dim % 2:
        raise ConfigurationError(
            f"{file.path}: {heads} heads of {head_dim} dimensions, {kv_heads} KV heads do not fit"
        )
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise ConfigurationError(f"{file.path}: keys and values of different head sizes")
    rotary = keys.integer("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise ConfigurationError(
            f"{file.path}: rotary embedding of {rotary} of {head_dim} dimensions is not supported"
        )
    if keys.integer("expert_count", 0, minimum=0):
        raise ConfigurationError(f"{file.path}: mixture-of-experts models are not supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ConfigurationError(f"{file.path}: tensor `token_embd.weight` is missing")
    layers = keys.integer("block_count", maximum=MAX_LAYERS)
    max_position = keys.integer("context_length")
    window = keys.integer("attention.sliding_window", 0, minimum=0) or None
    if window is not None and window >= max_position:
        window = None
    family = keys.architecture
    if family in _INTERLEAVED:
        family = "llama" if window is None else "mistral"
    rope_scaling = _rope_scaling(file, keys, head_dim, max_position)
    if rope_scaling is not None and rope_scaling.kind == "yarn":
        extended = int(rope_scaling.original_max_position * rope_scaling.factor)
        max_position = max(max_position, extended)
    return ModelConfig(
        family=family,
        hidden_size=hidden,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=embedding.shape[0],
        max_position=max_position,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_scaling=rope_scaling,
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_window=window,
        sliding_layers=tuple(range(layers)) if window is not None else (),
    )


def gguf_tensors(file: GGUFFile, config: ModelConfig) -> dict[str, TensorEntry]:
    """The file's tensors under Hugging Face's names.

    Raises:
        ConfigurationError: A tensor that these families do not have.
    """
    interleaved = file.get("general.architecture") in _INTERLEAVED
    entries = {}
    for tensor in file.tensors.values():
        if tensor.name == _ROPE_FACTORS:
            continue
        name = _hugging_face_name(tensor.name, file.path)
        heads = None
        if interleaved and ".q_proj." in name:
            heads = config.num_heads
        elif interleaved and ".k_proj." in name:
            heads = config.num_kv_heads
        entries[name] = TensorEntry(
            name, file.path, tensor.offset, tensor.nbytes, tensor.kind, tensor.shape, heads
        )
    return entries


def _hugging_face_name(name: str, path: Path) -> str:
    stem, _, suffix = name.rpartition(".")
    if suffix == "weight" and stem in _WHOLE:
        return _WHOLE[stem]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        raise ConfigurationError(
            f"{path}: tensor `{name}` belongs to no supported model ({', '.join(ARCHITECTURES)})"
        )
    return f"model.layers.{int(match[1])}.{_IN_LAYER[match[2]]}.{match[3]}"


class _ArchitectureKeys:
    """The keys below the architecture's own prefix, checked."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        architecture = file.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ConfigurationError(
                f"{file.path}: architecture {architecture!r} is not supported; "
                f"supported are {', '.join(ARCHITECTURES)}"
            )
        self.architecture: str = architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self._file.get(f"{self.architecture}.{key}", default)

    def integer(
        self,
        key: str,
        default: int | None = None,
        minimum: int = 1,
        maximum: int = 2**31 - 1,
    ) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or not minimum <= value <= maximum:
            raise ConfigurationError(
                f"{self._file.path}: `{self.architecture}.{key}` must be an integer "
                f"from {minimum} to {maximum}, got {value!r}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, float | int) or not 0 < value < float("inf"):
            raise ConfigurationError(
                f"{self._file.path}: `{self.architecture}.{key}` must be a positive number, "
                f"got {value!r}"
            )
        return float(value)


def _rope_scaling(
    file: GGUFFile, keys: _ArchitectureKeys, head_dim: int, max_position: int
) -> RopeScaling | None:
    original = keys.integer("rope.scaling.original_context_length", max_position)
    factors = file.tensors.get(_ROPE_FACTORS)
    if factors is not None:
        if factors.kind != "F32" or factors.shape != (head_dim // 2,):
            raise ConfigurationError(
                f"{file.path}: tensor `{_ROPE_FACTORS}` must be F32 of shape ({head_dim // 2},)"
            )
        values = struct.unpack(f"<{head_dim // 2}f", file.read(factors))
        if not all(0 < value < float("inf") for value in values):
            raise ConfigurationError(f"{file.path}: `{_ROPE_FACTORS}` must be positive numbers")
        return RopeScaling(kind="factors", original_max_position=original, frequency_factors=values)
    kind = keys.get("rope.scaling.type")
    if kind is None and keys.get("rope.scale_linear") is not None:
        return _unless_one(
            RopeScaling(
                kind="linear",
                factor=keys.number("rope.scale_linear"),
                original_max_position=original,
            )
        )
    if kind is None or kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigurationError(
            f"{file.path}: rope scaling {kind!r} is not supported; linear and yarn are"
        )
    return _unless_one(
        RopeScaling(
            kind=kind,
            factor=keys.number("rope.scaling.factor", 1.0),
            original_max_position=original,
            beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        )
    )


def _unless_one(scaling: RopeScaling) -> RopeScaling | None:
    return scaling if scaling.factor != 1.0 else None

"""Architectures known by name, for sizing and for random weights where no file is at hand.

The figures are those of the models' published ``config.json`` files.
"""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig, RopeScaling
from headrace.link.errors import ConfigurationError


def shape_names() -> tuple[str, ...]:
    """The known names, in the order in which they are listed to users."""
    return tuple(_SHAPES)


def find_shape(name: str) -> ModelConfig | None:
    """The architecture of this name, in any case of letters; ``None``: there is none."""
    return _SHAPES.get(name.lower())


def shape(name: str) -> ModelConfig:
    """The architecture of this name.

    Raises:
        ConfigurationError: no such name; lists those that there are.
    """
    found = find_shape(name)
    if found is None:
        raise ConfigurationError(
            f"no built-in shape is called `{name}`; there are {', '.join(_SHAPES)}"
        )
    return found


def _llama(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = 128256,
    positions: int = 8192,
    theta: float = 5e5,
    scaling_factor: float | None = None,
    tied: bool = False,
) -> ModelConfig:
    """Llama and what is built like it; ``scaling_factor`` is Llama 3.1's and 3.2's rotary one."""
    scaling = None
    if scaling_factor is not None:
        scaling = RopeScaling(kind="llama3", factor=scaling_factor, original_max_position=8192)
    return ModelConfig(
        family="llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position=positions,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def _mistral(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, positions: int
) -> ModelConfig:
    return ModelConfig(
        family="mistral",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=vocab,
        max_position=positions,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
    )


def _qwen2(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    vocab: int = 152064,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        family="qwen2",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position=32768,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        attention_bias=True,
    )


def _qwen3(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, *, tied: bool = False
) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=151936,
        max_position=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        qk_norm=True,
    )


_SHAPES: dict[str, ModelConfig] = {
    "llama3-8b": _llama(4096, 14336, 32, 32, 8),
    "llama3-70b": _llama(8192, 28672, 80, 64, 8),
    # Llama 3.2 1B and 3B: there is no smaller Llama 3.
    "llama3-1b": _llama(2048, 8192, 16, 32, 8, positions=131072, scaling_factor=32.0, tied=True),
    "llama3-3b": _llama(3072, 8192, 28, 24, 8, positions=131072, scaling_factor=32.0, tied=True),
    # Llama 3.1: the first of that size.
    "llama3-405b": _llama(16384, 53248, 126, 128, 8, positions=131072, scaling_factor=8.0),
    "llama3.1-8b": _llama(4096, 14336, 32, 32, 8, positions=131072, scaling_factor=8.0),
    "llama3.1-70b": _llama(8192, 28672, 80, 64, 8, positions=131072, scaling_factor=8.0),
    "llama2-7b": _llama(4096, 11008, 32, 32, 32, vocab=32000, positions=4096, theta=1e4),
    "llama2-13b": _llama(5120, 13824, 40, 40, 40, vocab=32000, positions=4096, theta=1e4),
    "llama2-70b": _llama(8192, 28672, 80, 64, 8, vocab=32000, positions=4096, theta=1e4),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, vocab=49152, theta=1e5, tied=True),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, vocab=49152, theta=1e5, tied=True),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, vocab=49152, theta=1.3e5, tied=True),
    "mistral-7b": _mistral(4096, 14336, 32, 32, 8, vocab=32768, positions=32768),
    "mistral-nemo-12b": _mistral(5120, 14336, 40, 32, 8, vocab=131072, positions=131072),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, vocab=151936, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, vocab=151936, tied=True),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
}

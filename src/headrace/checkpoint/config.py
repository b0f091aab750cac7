"""The architecture of a decoder-only model, normalised from any source."""

from __future__ import annotations

import msgspec

# More layers than any model has: a corrupt file must not make headrace count to billions.
MAX_LAYERS = 4096


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary scaling; ``kind`` is ``linear``, ``dynamic``, ``yarn``, ``llama3`` or ``factors``.

    Attributes:
        original_max_position: Context length of the training before scaling; always filled in.
        attention_factor: Multiplies cosines and sines (yarn); ``None``: ``0.1 ln(factor) + 1``.
        truncate: Yarn's correction range is rounded to whole dimensions.
        frequency_factors: Of kind ``factors``: each inverse frequency is divided by its factor
            (head_dim / 2 of them; how GGUF files hold Llama 3's scaling).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    frequency_factors: tuple[float, ...] = ()


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One dense decoder (Llama, Mistral, Qwen2, Qwen3 families).

    Attributes:
        family: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``.
        sliding_window: Number of last positions that a token attends to (itself included) in the
            layers that ``sliding_layers`` names; ``None``: all.
        qk_norm: RMSNorm over each head of queries and keys before the rotation (Qwen3).
        attention_bias: Biases on the query, key and value projections (Qwen2).
        output_bias: Bias on the attention output projection (Llama with ``attention_bias``).
        mlp_bias: Biases on the feed-forward projections.
        dtype: Of the checkpoint: ``bfloat16``, ``float16`` or ``float32``.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads (or value heads) together."""
        return self.num_kv_heads * self.head_dim

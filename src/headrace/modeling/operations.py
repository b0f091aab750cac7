"""The face between a decoder and a device: a handful of fused operations over buffers in place.

A decoder's ``forward`` is one sequence of these calls and does nothing else to a tensor. A
backend may compute at once (torch), launch kernels that a graph captures (Triton), or record a
flat program that native code replays (CPU extension). Every tensor argument is a buffer that
stays in place; ``out`` and the arguments named as updated are the only ones written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.kernels.low_rank.stack import LowRankStack
from headrace.modeling.step import StepInputs


@dataclass(frozen=True, slots=True)
class GGUFBlocks:
    """A quantized matrix as a GGUF file holds it: ``shape`` (N, K), rows of packed blocks.

    Attributes:
        data: [N, bytes per row] uint8.
        kind: GGUF type name: ``Q4_0``, ``Q4_1``, ``Q8_0``, ``Q4_K``, ``Q6_K``.
    """

    data: torch.Tensor
    kind: str
    shape: tuple[int, int]


WeightPart = torch.Tensor | GGUFBlocks


class Linear(Protocol):
    """A matrix in the layout that its backend chose at load; opaque to the decoder."""

    @property
    def out_features(self) -> int:
        """N."""

    @property
    def in_features(self) -> int:
        """K."""

    @property
    def num_bytes(self) -> int:
        """Bytes read when the matrix is read once."""


class Embedding(Protocol):
    """The token embedding table in its backend's layout."""

    @property
    def num_bytes(self) -> int:
        """Bytes held."""


class LayerCache(Protocol):
    """Keys and values of one layer, in pages; the layout belongs to the backend."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention needs to know of a layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm weights over each head of queries and keys (Qwen3): [head_dim] each."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


class Operations(Protocol):
    """What a backend offers to decoders. T, S and R are as in ``StepInputs``."""

    @property
    def device(self) -> torch.device:
        """Where buffers and weights live."""

    @property
    def activation_dtype(self) -> torch.dtype:
        """dtype of all activations except the residual stream and logits."""

    @property
    def residual_dtype(self) -> torch.dtype:
        """dtype of the residual stream."""

    # Preparation, at load.

    def pack_linear(self, parts: list[WeightPart], bias: torch.Tensor | None) -> Linear:
        """Lay out matrices [N_i, K] stacked along N as one linear, with a bias [N] or none."""

    def pack_embedding(self, table: WeightPart) -> Embedding:
        """Lay out the embedding table [vocab, hidden]."""

    def allocate_caches(
        self, layers: Sequence[AttentionShape], num_blocks: int, block_size: int
    ) -> Sequence[LayerCache]:
        """Pages for each layer's keys and values."""

    def cache_bytes_per_block(self, shape: AttentionShape, block_size: int) -> int:
        """Bytes that one block of one layer takes, keys and values together."""

    # The step.

    def embed(self, token_ids: torch.Tensor, table: Embedding, out: torch.Tensor) -> None:
        """out[T, hidden] (residual dtype) = table[token_ids]."""

    def rms_norm(
        self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """out[T, hidden] = RMSNorm(residual) * weight."""

    def add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """residual[T, hidden] += delta (updated); out = RMSNorm(residual) * weight."""

    def linear(self, x: torch.Tensor, weight: Linear, out: torch.Tensor) -> None:
        """out[T, N] = x[T, K] @ weight.T + bias; ``out`` may be wider in dtype than ``x``."""

    def add_low_rank(
        self, x: torch.Tensor, stack: LowRankStack, step: StepInputs, out: torch.Tensor
    ) -> None:
        """out[t] += scale * up @ (down @ x[t]) of each token's adapter; other rows are untouched.

        Args:
            x: [T, K], what the linear before it read.
            stack: In the activation dtype.
            out: [T, N] as that linear left it; updated.
        """

    def rotate_and_cache(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        norm: HeadNorm | None,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
    ) -> None:
        """Normalise heads if asked, rotate queries and keys by position, write K and V to pages.

        Args:
            qkv: [T, (heads + 2 * kv_heads) * head_dim]; its queries are updated in place.
            cos_sin: [max_position, head_dim] float32: cosines, then sines, of the half-width.
        """

    def attention(
        self,
        qkv: torch.Tensor,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
        out: torch.Tensor,
    ) -> None:
        """out[T, heads * head_dim] = causal attention of the rotated queries over the pages."""

    def gather_rows(self, source: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """out[R, W] = source[rows]; rows that are computed from ``out`` are R as well."""

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """out[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]."""

    def gated_linear(
        self, x: torch.Tensor, weight: Linear, gate_up: torch.Tensor, out: torch.Tensor
    ) -> None:
        """out[T, I] = silu_mul of x @ weight.T + bias; ``weight`` stacks I gate rows and I up rows.

        Args:
            gate_up: [T, 2 * I] scratch: a backend that fuses the two steps leaves it unwritten.
        """

    def gather_add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        sampled_tokens: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """out[R, hidden] = RMSNorm(residual + delta)[sampled_tokens] * weight; the final norm."""

"""``Operations`` on a GPU: Triton kernels and the vendor's GEMM library.

One source for NVIDIA and AMD (torch calls both ``cuda``). Triton is imported by this and by
``triton_gpu`` only, so that the package works where it is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from headrace.kernels.activation import triton as activation
from headrace.kernels.attention import hopper as prompts
from headrace.kernels.attention import triton as paged
from headrace.kernels.embedding import triton as embedding
from headrace.kernels.linear import hopper, triton_gated
from headrace.kernels.linear import triton as gemm
from headrace.kernels.low_rank import triton as low_rank
from headrace.kernels.low_rank.stack import LowRankStack
from headrace.kernels.norm import triton as norm
from headrace.kernels.rotary import triton as rotary
from headrace.kernels.triton_launch import GpuTraits
from headrace.kernels.tuning.gemm_tuner import GemmTuner, LinearShape
from headrace.kernels.tuning.table import TunedShape
from headrace.link.errors import ConfigurationError
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.operations import (
    AttentionShape,
    Embedding,
    GGUFBlocks,
    HeadNorm,
    LayerCache,
    Linear,
    WeightPart,
)
from headrace.modeling.step import StepInputs

_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class DenseMatrix:
    """A weight [N, K], row by row, in the activation dtype, with a bias [N] or none."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes read when the matrix is read once."""
        return self.weight.nbytes


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Keys and values of one layer as [num_blocks, block_size, kv_heads, head_dim] views.

    In memory a block holds one head after the other, so that what a program of the attention
    kernels reads of a block is one contiguous piece.
    """

    keys: torch.Tensor
    values: torch.Tensor


class TritonOperations:
    """``Operations`` that launch at once on the current stream.

    Args:
        device: A CUDA or ROCm device.
        dtype: Of weights, activations, residual stream and cache: bfloat16 or float16.
        tuning_directory: Where GEMM choices are kept; ``None``: they are not.
        traits: What the device can do; ``None``: ask it.

    Raises:
        ConfigurationError: Another dtype.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        tuning_directory: Path | None,
        traits: GpuTraits | None = None,
    ) -> None:
        if dtype not in _DTYPES:
            raise ConfigurationError(
                f"the GPU backend computes in bfloat16 or float16, not {dtype}"
            )
        self._device = device
        self._dtype = dtype
        self.traits = traits or GpuTraits.of(device)
        self._attention_workspace = paged.AttentionWorkspace(device)
        self._gemm_workspace = gemm.GemmWorkspace(device)
        self._low_rank_workspace = low_rank.LowRankWorkspace(device)
        self.tuner = GemmTuner(device, dtype, self.traits, self._gemm_workspace, tuning_directory)
        self._matrices: list[DenseMatrix] = []
        self.attention_shapes: dict[tuple[AttentionShape, int], None] = {}

    @property
    def device(self) -> torch.device:
        """Where buffers and weights live."""
        return self._device

    @property
    def activation_dtype(self) -> torch.dtype:
        """dtype of all activations except logits."""
        return self._dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """dtype of the residual stream."""
        return self._dtype

    # Preparation, at load.

    def pack_linear(self, parts: list[WeightPart], bias: torch.Tensor | None) -> DenseMatrix:
        """Stack matrices [N_i, K] along N; a lone one of the right dtype is not copied."""
        dense = [self._dense(part) for part in parts]
        weight = dense[0] if len(dense) == 1 else torch.cat(dense)
        matrix = DenseMatrix(
            weight, None if bias is None else bias.to(self._device, self._dtype).contiguous()
        )
        self._matrices.append(matrix)
        return matrix

    def pack_embedding(self, table: WeightPart) -> DenseMatrix:
        """The embedding table [vocab, hidden] in the activation dtype."""
        return DenseMatrix(self._dense(table), None)

    def allocate_caches(
        self, layers: Sequence[AttentionShape], num_blocks: int, block_size: int
    ) -> list[PagedCache]:
        """Pages for each layer's keys and values.

        Raises:
            ConfigurationError: A head size or a grouping that the attention kernels do not take.
        """
        return [self._allocate_cache(shape, num_blocks, block_size) for shape in layers]

    def _allocate_cache(
        self, shape: AttentionShape, num_blocks: int, block_size: int
    ) -> PagedCache:
        if shape.head_dim not in paged.HEAD_SIZES:
            sizes = ", ".join(map(str, paged.HEAD_SIZES))
            raise ConfigurationError(
                f"head size {shape.head_dim} is not supported on a GPU; supported: {sizes}"
            )
        if shape.num_heads % shape.num_kv_heads or shape.num_heads // shape.num_kv_heads > 64:
            raise ConfigurationError(
                f"{shape.num_heads} heads over {shape.num_kv_heads} key-value heads are not "
                "supported on a GPU: groups must be whole and of at most 64"
            )
        self.attention_shapes[shape, block_size] = None
        size = (num_blocks, shape.num_kv_heads, block_size, shape.head_dim)
        keys, values = (
            torch.zeros(size, dtype=self._dtype, device=self._device).permute(0, 2, 1, 3)
            for _ in range(2)
        )
        return PagedCache(keys, values)

    def cache_bytes_per_block(self, shape: AttentionShape, block_size: int) -> int:
        """Bytes that one block of one layer takes, keys and values together."""
        return 2 * shape.num_kv_heads * block_size * shape.head_dim * self._dtype.itemsize

    def tune(self, meanwhile: Callable[[], Callable[[], None]] | None = None) -> list[TunedShape]:
        """Choose how to compute every linear packed so far; does nothing the second time.

        Args:
            meanwhile: As ``GemmTuner.tune`` takes it.

        Returns:
            The results, for a report.
        """
        results = [] if self.tuner.frozen else self._tune(meanwhile)
        self._load_kernels(results)
        return results

    def _tune(self, meanwhile: Callable[[], Callable[[], None]] | None) -> list[TunedShape]:
        weights: dict[LinearShape, list[torch.Tensor]] = {}
        for index, matrix in enumerate(self._matrices):
            # Only the head, packed last, writes float32.
            wide = index == len(self._matrices) - 1
            shape = LinearShape(matrix.out_features, matrix.in_features, wide)
            weights.setdefault(shape, []).append(matrix.weight)
        return self.tuner.tune(weights, meanwhile)

    def _load_kernels(self, results: list[TunedShape]) -> None:
        """What Triton does not compile at warmup: steps of other sizes may come to it later."""
        wanted: list[tuple[hopper.Mode, int]] = []
        if self.traits.warpgroup_kernels and not self.tuner.library_only:
            wanted += [("gated", rows) for rows in hopper.GATED_ROWS]
        for rows in {r.choice.rows for r in results if r.choice.kind == "hopper"}:
            wanted += [("store", rows), ("add", rows)]
        for mode, rows in wanted:
            hopper.load(mode, rows, self._dtype, self._device)
        for shape, _ in self.attention_shapes:
            if self._has_prompt_kernel(shape):
                group = shape.num_heads // shape.num_kv_heads
                prompts.load(shape.head_dim, group, self._dtype, self._device)

    # The step.

    def embed(self, token_ids: torch.Tensor, table: Embedding, out: torch.Tensor) -> None:
        """out[T, hidden] = table[token_ids]."""
        embedding.embed(token_ids, cast(DenseMatrix, table).weight, out, self.traits)

    def rms_norm(
        self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """out[T, hidden] = RMSNorm(residual) * weight."""
        norm.rms_norm(residual, weight, eps, out, self.traits)

    def add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """residual[T, hidden] += delta (updated); out = RMSNorm(residual) * weight."""
        norm.add_rms_norm(delta, residual, weight, eps, out, self.traits)

    def linear(self, x: torch.Tensor, weight: Linear, out: torch.Tensor) -> None:
        """out[T, N] = x[T, K] @ weight.T + bias; ``out`` may be wider in dtype than ``x``."""
        choice = self.tuner.choose(
            weight.out_features, weight.in_features, x.shape[0], out.dtype != x.dtype
        )
        matrix = cast(DenseMatrix, weight)
        gemm.linear(x, matrix.weight, matrix.bias, out, choice, self._gemm_workspace, self.traits)

    def add_low_rank(
        self, x: torch.Tensor, stack: LowRankStack, step: StepInputs, out: torch.Tensor
    ) -> None:
        """out[t] += scale * up @ (down @ x[t]) of each token's adapter."""
        low_rank.add_low_rank(
            x,
            stack,
            step.adapter_of_token,
            out,
            step.max_query_length,
            self._low_rank_workspace,
            self.traits,
        )

    def rotate_and_cache(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        norm: HeadNorm | None,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
    ) -> None:
        """Normalise heads if asked, rotate queries and keys by position, write K and V to pages."""
        pages = cast(PagedCache, cache)
        rotary.rotate_and_cache(
            qkv,
            cos_sin,
            None if norm is None else norm.query,
            None if norm is None else norm.key,
            0.0 if norm is None else norm.eps,
            shape.num_heads,
            shape.num_kv_heads,
            pages.keys,
            pages.values,
            step.positions,
            step.cache_slots,
            self.traits,
            keys_in_place=step.max_query_length > 1,
        )

    def attention(
        self,
        qkv: torch.Tensor,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
        out: torch.Tensor,
    ) -> None:
        """out[T, heads * head_dim] = causal attention of the rotated queries over the pages."""
        pages = cast(PagedCache, cache)
        if step.whole_prompts and self._has_prompt_kernel(shape):
            prompts.prompt_attention(
                qkv,
                shape.num_heads,
                shape.num_kv_heads,
                shape.scale,
                step.context_lengths.shape[0],
                out,
                self.traits,
            )
            return
        paged.paged_attention(
            qkv,
            shape.num_heads,
            shape.num_kv_heads,
            shape.scale,
            shape.sliding_window,
            pages.keys,
            pages.values,
            step.query_start,
            step.context_lengths,
            step.rows,
            step.block_tables,
            out,
            step.max_query_length,
            step.max_context_length,
            self._attention_workspace,
            self.traits,
        )

    def _has_prompt_kernel(self, shape: AttentionShape) -> bool:
        return prompts.takes(
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.sliding_window,
            self.traits,
        )

    def linear_add_rms_norm(
        self,
        x: torch.Tensor,
        weight: Linear,
        delta: torch.Tensor,
        residual: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """residual += x @ weight.T + bias; out = RMSNorm(residual) * norm_weight."""
        matrix = cast(DenseMatrix, weight)
        choice = self.tuner.choose(
            weight.out_features, weight.in_features, x.shape[0], wide_output=False
        )
        if matrix.bias is None and gemm.can_add(choice, x.shape[0]):
            gemm.add_linear(x, matrix.weight, residual, choice, self.traits)
            self.rms_norm(residual, norm_weight, eps, out)
        else:
            self.linear(x, weight, delta)
            self.add_rms_norm(delta, residual, norm_weight, eps, out)

    def gather_rows(self, source: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """out[R, W] = source[rows]."""
        embedding.embed(rows, source, out, self.traits)

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """out[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]."""
        activation.silu_mul(gate_up, out, self.traits)

    def gated_linear(
        self, x: torch.Tensor, weight: Linear, gate_up: torch.Tensor, out: torch.Tensor
    ) -> None:
        """out[T, I] = silu_mul of x @ weight.T + bias; ``gate_up`` may stay unwritten."""
        matrix, tokens = cast(DenseMatrix, weight), x.shape[0]
        if tokens <= triton_gated.MOST_TOKENS and not self.tuner.library_only:
            triton_gated.gated_linear(x, matrix.weight, matrix.bias, out, self.traits)
            return
        rows = None if self.tuner.library_only else self._gated_rows(x, matrix, out)
        if rows is None:
            self.linear(x, weight, gate_up)
            self.silu_mul(gate_up, out)
        else:
            hopper.product(x, matrix.weight, out, "gated", rows, self.traits)

    def _gated_rows(self, x: torch.Tensor, matrix: DenseMatrix, out: torch.Tensor) -> int | None:
        if matrix.bias is not None or not hopper.takes(x, matrix.weight, out):
            return None
        return hopper.gated_rows(x.shape[0], out.shape[1], self.traits)

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
        norm.gather_add_rms_norm(delta, residual, weight, eps, sampled_tokens, out, self.traits)

    def _dense(self, part: WeightPart) -> torch.Tensor:
        matrix = dequantize(part, self._dtype) if isinstance(part, GGUFBlocks) else part
        return matrix.to(self._device, self._dtype).contiguous()

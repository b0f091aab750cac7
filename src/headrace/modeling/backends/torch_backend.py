"""The torch backend: every operation computed at once, on any device that torch knows.

It is the reference for the others and what runs where no compiler is, so each operation is a few
large torch calls.
"""
# ruff: noqa: D102 (what an operation does is said by ``Operations``)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from headrace.kernels.low_rank.reference import add_low_rank
from headrace.kernels.low_rank.stack import LowRankStack
from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import Computation, Program
from headrace.modeling.backends.torch_attention import DecodeGroup, PrefillSequence, StepPlan
from headrace.modeling.backends.torch_linear import TorchLinear
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


@dataclass(frozen=True, slots=True)
class DenseEmbedding:
    """The table as rows [vocab, hidden]."""

    table: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return self.table.nbytes


@dataclass(frozen=True, slots=True)
class PagedCache:
    """``pages`` [num_blocks, 2 * kv_heads, block_size, head_dim]: key heads, then value heads."""

    pages: torch.Tensor


class TorchOperations:
    """``Operations`` in eager torch.

    Args:
        device: Where to compute.
        dtype: Of activations, weights and cache; the residual stream is float32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._plan: tuple[StepInputs, StepPlan] | None = None
        self._table: tuple[WeightPart, torch.Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def activation_dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        return torch.float32

    def begin(self, step: StepInputs) -> None:
        """Promise that ``step`` keeps its contents until the next call of ``begin``.

        What is derived from it is then derived once for all layers.
        """
        self._plan = (step, StepPlan(step))

    def _plan_of(self, step: StepInputs) -> StepPlan:
        if self._plan is not None and self._plan[0] is step:
            return self._plan[1]
        return StepPlan(step)

    # Preparation, at load.

    def pack_linear(self, parts: list[WeightPart], bias: torch.Tensor | None) -> TorchLinear:
        if len(parts) == 1:
            return TorchLinear.make(self._dense(parts[0]), bias)
        return TorchLinear.make(torch.cat([self._dense(part) for part in parts]), bias)

    def pack_embedding(self, table: WeightPart) -> DenseEmbedding:
        dense = self._dense(table)
        self._table = (table, dense)
        return DenseEmbedding(dense)

    def _dense(self, part: WeightPart) -> torch.Tensor:
        if self._table is not None and part is self._table[0]:
            return self._table[1]
        if isinstance(part, GGUFBlocks):
            return dequantize(part, self._dtype)
        return part.to(self._device, self._dtype).contiguous()

    def allocate_caches(
        self, layers: Sequence[AttentionShape], num_blocks: int, block_size: int
    ) -> list[PagedCache]:
        return [
            PagedCache(
                torch.zeros(
                    num_blocks,
                    2 * shape.num_kv_heads,
                    block_size,
                    shape.head_dim,
                    dtype=self._dtype,
                    device=self._device,
                )
            )
            for shape in layers
        ]

    def cache_bytes_per_block(self, shape: AttentionShape, block_size: int) -> int:
        return 2 * shape.num_kv_heads * block_size * shape.head_dim * self._dtype.itemsize

    # The step.

    def embed(self, token_ids: torch.Tensor, table: Embedding, out: torch.Tensor) -> None:
        out.copy_(F.embedding(token_ids, cast(DenseEmbedding, table).table))

    def rms_norm(
        self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        out.copy_(_normalise(residual, weight, eps))

    def add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        residual.add_(delta)
        out.copy_(_normalise(residual, weight, eps))

    def gather_add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        sampled_tokens: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        gathered = residual[sampled_tokens] + delta[sampled_tokens]
        out.copy_(_normalise(gathered, weight, eps))

    def linear(self, x: torch.Tensor, weight: Linear, out: torch.Tensor) -> None:
        cast(TorchLinear, weight).compute(x, out)

    def add_low_rank(
        self, x: torch.Tensor, stack: LowRankStack, step: StepInputs, out: torch.Tensor
    ) -> None:
        add_low_rank(x, stack, step.adapter_of_token, out)

    def gather_rows(self, source: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        torch.index_select(source, 0, rows, out=out)

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(F.silu(gate), up, out=out)

    def gated_linear(
        self, x: torch.Tensor, weight: Linear, gate_up: torch.Tensor, out: torch.Tensor
    ) -> None:
        self.linear(x, weight, gate_up)
        self.silu_mul(gate_up, out)

    def rotate_and_cache(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        norm: HeadNorm | None,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
    ) -> None:
        """As the face says; the keys inside ``qkv`` are rotated in place as well."""
        plan = self._plan_of(step)
        tokens, query_heads = qkv.shape[0], shape.num_heads
        heads = qkv.view(tokens, -1, shape.head_dim)
        rotated_heads = heads[:, : query_heads + shape.num_kv_heads]
        wide = rotated_heads.float()
        if norm is not None:
            query, key = wide[:, :query_heads], wide[:, query_heads:]
            query.copy_(_normalise(query, norm.query, norm.eps))
            key.copy_(_normalise(key, norm.key, norm.eps))
        cos, sin = plan.rotation(cos_sin)
        swapped = wide.roll(shape.head_dim // 2, dims=-1)
        rotated_heads.copy_(swapped.mul_(sin).addcmul_(wide, cos))
        pages = cast(PagedCache, cache).pages
        rows = plan.cache_rows(pages.shape[1], pages.shape[2])
        pages.view(-1, shape.head_dim).index_copy_(
            0, rows, heads[:, query_heads:].reshape(-1, shape.head_dim)
        )

    def attention(
        self,
        qkv: torch.Tensor,
        shape: AttentionShape,
        cache: LayerCache,
        step: StepInputs,
        out: torch.Tensor,
    ) -> None:
        pages = cast(PagedCache, cache).pages
        plan = self._plan_of(step).attention(shape, pages.shape[2])
        for group in plan.decode:
            _attend_decode(qkv, shape, pages, group, out)
        for sequence in plan.prefill:
            _attend_prefill(qkv, shape, pages, sequence, out)


class TorchProgram:
    """Runs a computation eagerly on views of exactly the step's size."""

    def __init__(
        self,
        operations: TorchOperations,
        computation: Computation,
        step: StepInputs,
        activations: Activations,
    ) -> None:
        self._operations = operations
        self._computation = computation
        self._step = step
        self._activations = activations

    @torch.inference_mode()
    def run(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
    ) -> None:
        """See ``Program``."""
        whole = self._step
        step = StepInputs(
            token_ids=whole.token_ids[:num_tokens],
            positions=whole.positions[:num_tokens],
            cache_slots=whole.cache_slots[:num_tokens],
            query_start=whole.query_start[: num_sequences + 1],
            context_lengths=whole.context_lengths[:num_sequences],
            rows=whole.rows[:num_sequences],
            block_tables=whole.block_tables,
            sampled_tokens=whole.sampled_tokens[:num_sampled],
            max_query_length=max_query_length,
            max_context_length=max_context_length,
            adapter_of_token=whole.adapter_of_token[:num_tokens],
        )
        self._operations.begin(step)
        self._computation(step, self._activations.view(num_tokens, num_sampled))


class TorchBackend:
    """Eager torch on one device.

    Args:
        device: Where to compute.
        dtype: Of activations, weights and cache.
    """

    name = "torch"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.operations = TorchOperations(device, dtype)

    def compile(
        self, computation: Computation, step: StepInputs, activations: Activations
    ) -> Program:
        """A program that calls ``computation`` at every run."""
        return TorchProgram(self.operations, computation, step, activations)


def _normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def _attend_decode(
    qkv: torch.Tensor,
    shape: AttentionShape,
    pages: torch.Tensor,
    group: DecodeGroup,
    out: torch.Tensor,
) -> None:
    """Two batched matrix products over (sequence, kv head) pairs on gathered pages."""
    head_dim, kv_heads = shape.head_dim, shape.num_kv_heads
    query = qkv[:, : shape.num_heads * head_dim]
    if group.tokens is not None:
        query = query[group.tokens]
    query = query.reshape(query.shape[0] * kv_heads, -1, head_dim)
    keys, values = _gather(pages, group.page_index).view(2, query.shape[0], -1, head_dim)
    scores = _wide_product(query, keys.transpose(1, 2))
    if group.mask is None:
        scores.mul_(shape.scale)
    else:
        by_sequence = scores.view(-1, kv_heads, *scores.shape[1:])
        torch.add(group.mask, by_sequence, alpha=shape.scale, out=by_sequence)
    attended = torch.bmm(scores.softmax(-1).to(values.dtype), values)
    attended = attended.view(-1, shape.num_heads * head_dim)
    if group.tokens is None:
        out.copy_(attended)
    else:
        out.index_copy_(0, group.tokens, attended)


def _wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Batched matrix product in float32, of factors that may be narrower.

    torch rounds a product to the factors' type, which is too coarse for scores. What was rounded
    off is computed by a second product, since accumulation is in float32.
    """
    product = torch.bmm(left, right)
    if product.dtype == torch.float32:
        return product
    rest = torch.baddbmm(product, left, right, beta=-1)
    return product.float().add_(rest)


def _attend_prefill(
    qkv: torch.Tensor,
    shape: AttentionShape,
    pages: torch.Tensor,
    sequence: PrefillSequence,
    out: torch.Tensor,
) -> None:
    """Torch's fused attention on one sequence."""
    head_dim, kv_heads = shape.head_dim, shape.num_kv_heads
    new = qkv[sequence.first : sequence.last].view(sequence.last - sequence.first, -1, head_dim)
    query = new[:, : shape.num_heads].transpose(0, 1)[None]
    if sequence.page_index is None:
        keys, values = new[:, shape.num_heads :].transpose(0, 1).view(2, 1, kv_heads, -1, head_dim)
    else:
        gathered = _gather(pages, sequence.page_index).view(2, 1, kv_heads, -1, head_dim)
        keys, values = gathered[..., : sequence.context, :]
    attended = F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=sequence.mask,
        is_causal=sequence.mask is None,
        scale=shape.scale,
        enable_gqa=shape.num_heads != kv_heads,
    )
    rows = out[sequence.first : sequence.last]
    rows.view(rows.shape[0], -1, head_dim).copy_(attended[0].transpose(0, 1))


def _gather(pages: torch.Tensor, page_index: torch.Tensor) -> torch.Tensor:
    """[*page_index.shape, block_size * head_dim]: the (block, head) rows of the pages."""
    return F.embedding(page_index, pages.view(pages.shape[0] * pages.shape[1], -1))

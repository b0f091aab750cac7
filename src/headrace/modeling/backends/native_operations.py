"""``Operations`` of the native CPU backend: each appends a kernel call to a program."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headrace.kernels import native
from headrace.kernels.low_rank.stack import LowRankStack
from headrace.kernels.native import layouts
from headrace.kernels.native.memory import huge_page_zeros
from headrace.link.errors import ConfigurationError
from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import Computation
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.gguf_repack import as_plain_blocks, as_q8_0
from headrace.modeling.operations import AttentionShape, GGUFBlocks, HeadNorm, WeightPart
from headrace.modeling.step import StepInputs

HEAD_SIZES = range(32, 257, 32)
"""Head sizes that the attention kernels have a layout for."""

BLOCK_SIZE_STEP = 16
"""A cache block holds a multiple of so many tokens."""

_SCALE_BYTES = 4
"""A float32 scale a position and head, of an int8 cache."""

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What activations may be, and how the extension names it."""


@dataclass(frozen=True, slots=True)
class NativeMatrix:
    """A linear or an embedding table [N, K] in interleaved tiles.

    Attributes:
        format: ``float32``, ``bfloat16``, ``q8_0``, ``q4_0`` or ``q4_1``.
        tiles: The bytes, padded to whole tiles of 32 rows.
        bias: [N] float32 or none.
        handle: What the extension knows the matrix by.
    """

    format: str
    tiles: torch.Tensor
    out_features: int
    in_features: int
    bias: torch.Tensor | None
    handle: Any

    @property
    def num_bytes(self) -> int:
        """Bytes read when the matrix is read once."""
        return self.tiles.nbytes


@dataclass(frozen=True, slots=True)
class NativeCache:
    """Keys and values of one layer; each page holds 16 positions interleaved.

    Attributes:
        keys: [blocks, elements of kv_heads pages], laid out as ``kernel_table.hpp`` says, blocks
            apart by those of all layers; bytes, scales among them, where the cache is in int8.
        values: The same size.
        handle: What the extension knows the cache by.
    """

    keys: torch.Tensor
    values: torch.Tensor
    handle: Any


def reason_refused(head_dim: int, block_size: int) -> str | None:
    """Why the kernels cannot hold keys and values of this shape; ``None``: they can."""
    if head_dim not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        return f"head size {head_dim} has no native kernel (there are {sizes})"
    if block_size % BLOCK_SIZE_STEP:
        return f"a block size of {block_size} is no multiple of {BLOCK_SIZE_STEP}"
    return None


class NativeOperations:
    """``Operations`` that append a kernel call to a program: the recording one, or one of its own.

    Args:
        dtype: Activations and dense weights: bfloat16 or float32.
        cache_dtype: Keys and values: ``dtype`` or int8.
        instruction_set: Of ``headrace.kernels.native.instruction_sets()``.
        pool: The extension's thread pool.
        quantized: Compute GGUF blocks as they are, with activations rounded to 8 bits in blocks of
            32; otherwise they are unpacked to ``dtype``.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
        instruction_set: str,
        pool: Any,
        quantized: bool,
    ) -> None:
        self._dtype = dtype
        self._cache_dtype = cache_dtype
        self._instruction_set = instruction_set
        self._pool = pool
        self._quantized = quantized
        self._extension = native.extension()
        self._recording: Any = None
        # Addresses of buffers that hold a row for each sampled token, while a program is recorded.
        self._sampled: set[int] = set()
        self._shared: list[tuple[weakref.ref[torch.Tensor], NativeMatrix]] = []

    @property
    def device(self) -> torch.device:
        """Where buffers and weights live."""
        return torch.device("cpu")

    @property
    def activation_dtype(self) -> torch.dtype:
        """dtype of all activations except the residual stream and logits."""
        return self._dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """dtype of the residual stream."""
        return torch.float32

    def record(self, computation: Computation, step: StepInputs, activations: Activations) -> Any:
        """The extension's program of the calls that ``computation`` makes on these buffers."""
        program = self._extension.Program(self._instruction_set)
        self._recording = program
        self._sampled = {activations.final.data_ptr()}
        try:
            computation(step, activations)
        finally:
            self._recording = None
            self._sampled = set()
        program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
        return program

    # Preparation, at load.

    def pack_linear(self, parts: list[WeightPart], bias: torch.Tensor | None) -> NativeMatrix:
        """Lay out matrices [N_i, K] stacked along N as one linear, with a bias [N] or none."""
        return self._pack(parts, bias)

    def pack_embedding(self, table: WeightPart) -> NativeMatrix:
        """Lay out the embedding table [vocab, hidden]; a head of the same numbers shares it."""
        return self._pack([table], None)

    def allocate_caches(
        self, layers: Sequence[AttentionShape], num_blocks: int, block_size: int
    ) -> list[NativeCache]:
        """Pages for each layer's keys and values; layers have as many heads of one size.

        Raises:
            ConfigurationError: A block size or head size that the kernels have no layout for.
        """
        kind = torch.uint8 if self._cache_dtype == torch.int8 else self._cache_dtype
        width = self.cache_bytes_per_block(layers[0], block_size) // 2 // kind.itemsize
        # All of a block side by side, so that what is used ends in one unfilled huge page, and not
        # in one a layer.
        count = num_blocks * len(layers) * 2 * width
        pages = huge_page_zeros(count, kind).view(num_blocks, len(layers), 2, width)
        try:
            return [
                NativeCache(
                    pages[:, index, 0],
                    pages[:, index, 1],
                    self._extension.Cache(
                        pages[:, index], shape.num_kv_heads, shape.head_dim, block_size
                    ),
                )
                for index, shape in enumerate(layers)
            ]
        except ValueError as error:
            raise ConfigurationError(f"the native CPU backend cannot hold this: {error}") from error

    def cache_bytes_per_block(self, shape: AttentionShape, block_size: int) -> int:
        """Bytes that one block of one layer takes, keys and values together."""
        head_bytes = shape.head_dim * self._cache_dtype.itemsize
        if self._cache_dtype == torch.int8:
            head_bytes += _SCALE_BYTES
        return 2 * shape.num_kv_heads * block_size * head_bytes

    # The step.

    def embed(self, token_ids: torch.Tensor, table: NativeMatrix, out: torch.Tensor) -> None:
        """out[T, hidden] (residual dtype) = table[token_ids]."""
        self._follow(token_ids, out)
        self._call(lambda program: program.embed(token_ids, table.handle, out), len(token_ids))

    def rms_norm(
        self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """out[T, hidden] = RMSNorm(residual) * weight."""
        self._norm(None, residual, weight, eps, None, out)

    def add_rms_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        """residual[T, hidden] += delta (updated); out = RMSNorm(residual) * weight."""
        self._norm(delta, residual, weight, eps, None, out)

    def linear(self, x: torch.Tensor, weight: NativeMatrix, out: torch.Tensor) -> None:
        """out[T, N] = x[T, K] @ weight.T + bias; ``out`` may be wider in dtype than ``x``."""
        sampled = self._follow(x, out)
        self._call(
            lambda program: program.linear(x, weight.handle, weight.bias, out, sampled),
            tokens=len(x),
        )

    def add_low_rank(
        self, x: torch.Tensor, stack: LowRankStack, step: StepInputs, out: torch.Tensor
    ) -> None:
        """out[t] += scale * up @ (down @ x[t]) of each token's adapter."""
        self._call(
            lambda program: program.low_rank(
                x,
                stack.down,
                stack.up,
                stack.pieces,
                stack.scales,
                stack.columns,
                step.adapter_of_token,
                out,
            ),
            tokens=len(x),
        )

    def rotate_and_cache(
        self,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        norm: HeadNorm | None,
        shape: AttentionShape,
        cache: NativeCache,
        step: StepInputs,
    ) -> None:
        """Normalise heads if asked, rotate queries and keys by position, write K and V to pages."""
        query_norm = None if norm is None else norm.query.float()
        key_norm = None if norm is None else norm.key.float()
        eps = 0.0 if norm is None else norm.eps
        self._call(
            lambda program: program.rotary(
                qkv,
                cos_sin,
                query_norm,
                key_norm,
                eps,
                shape.num_heads,
                cache.handle,
                step.positions,
                step.cache_slots,
            ),
            tokens=len(qkv),
        )

    def attention(
        self,
        qkv: torch.Tensor,
        shape: AttentionShape,
        cache: NativeCache,
        step: StepInputs,
        out: torch.Tensor,
    ) -> None:
        """out[T, heads * head_dim] = causal attention of the rotated queries over the pages."""
        self._follow(qkv, out)
        self._call(
            lambda program: program.attention(
                qkv,
                shape.scale,
                shape.sliding_window or 0,
                shape.num_heads,
                cache.handle,
                step.query_start,
                step.context_lengths,
                step.rows,
                step.block_tables,
                out,
            ),
            tokens=len(qkv),
            sequences=len(step.rows),
        )

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """out[T, I] = silu(gate_up[:, :I]) * gate_up[:, I:]."""
        sampled = self._follow(gate_up, out)
        self._call(lambda program: program.activation(gate_up, out, sampled), tokens=len(gate_up))

    def gather_rows(self, source: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
        """out[R, W] = source[rows]; rows that are computed from ``out`` are R as well."""
        self._sampled.add(out.data_ptr())
        self._call(
            lambda program: program.gather_rows(source, rows, out),
            tokens=len(source),
            sampled=len(rows),
        )

    def gated_linear(
        self, x: torch.Tensor, weight: NativeMatrix, gate_up: torch.Tensor, out: torch.Tensor
    ) -> None:
        """out[T, I] = silu_mul of x @ weight.T + bias; ``gate_up`` only where tiles do not pair."""
        if weight.out_features % (2 * layouts.TILE_ROWS):
            self.linear(x, weight, gate_up)
            self.silu_mul(gate_up, out)
            return
        sampled = self._follow(x, out)
        self._call(
            lambda program: program.linear(x, weight.handle, weight.bias, out, sampled, gated=True),
            tokens=len(x),
        )

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
        self._norm(delta, residual, weight, eps, sampled_tokens, out)

    # Inside.

    def _follow(self, x: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether ``x``, and so ``out``, which is computed from it, has a row a sampled token."""
        sampled = x.data_ptr() in self._sampled
        (self._sampled.add if sampled else self._sampled.discard)(out.data_ptr())
        return sampled

    def _norm(
        self,
        delta: torch.Tensor | None,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        sampled_tokens: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        wide = weight.float()
        sampled = self._follow(residual, out)
        if sampled_tokens is not None:
            self._sampled.add(out.data_ptr())
        self._call(
            lambda program: program.norm(delta, residual, wide, eps, sampled_tokens, out, sampled),
            tokens=len(residual),
            sampled=0 if sampled_tokens is None else len(sampled_tokens),
        )

    def _call(
        self,
        call: Callable[[Any], None],
        tokens: int,
        sequences: int = 0,
        sampled: int = 0,
    ) -> None:
        if self._recording is not None:
            call(self._recording)
            return
        self._sampled.clear()  # Of what computes at once nothing is known to a later call.
        program = self._extension.Program(self._instruction_set)
        call(program)
        program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
        program.run(self._pool, tokens, sequences, sampled)

    def _pack(self, parts: list[WeightPart], bias: torch.Tensor | None) -> NativeMatrix:
        sources = [part.data if isinstance(part, GGUFBlocks) else part for part in parts]
        if len(sources) == 1 and bias is None:
            self._shared = [entry for entry in self._shared if entry[0]() is not None]
            for source, matrix in self._shared:
                if source() is sources[0]:
                    return matrix
        matrix = self._lay_out(parts, bias)
        if len(sources) == 1 and bias is None:
            self._shared.append((weakref.ref(sources[0]), matrix))
        return matrix

    def _lay_out(self, parts: list[WeightPart], bias: torch.Tensor | None) -> NativeMatrix:
        shapes = [tuple(part.shape) for part in parts]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        if any(shape[1] != columns for shape in shapes):
            raise ValueError(f"matrices of one linear differ in K: {shapes}")
        if self._quantized:
            parts = _of_one_format(parts)
        kinds = {part.kind if isinstance(part, GGUFBlocks) else None for part in parts}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind in layouts.BLOCK_FORMATS and self._quantized:
            data = torch.cat([part.data for part in parts if isinstance(part, GGUFBlocks)])
            name, tiles = layouts.BLOCK_FORMATS[kind], layouts.interleave_blocks(data, kind)
        else:
            name = DTYPE_NAMES[self._dtype]
            dense = [
                dequantize(part, self._dtype)
                if isinstance(part, GGUFBlocks)
                else part.to(self._dtype)
                for part in parts
            ]
            tiles = layouts.interleave_dense(torch.cat(dense), self._dtype)
        wide_bias = None if bias is None else bias.float().contiguous()
        handle = self._extension.Matrix(tiles, name, rows, columns)
        return NativeMatrix(name, tiles, rows, columns, wide_bias, handle)


def _of_one_format(parts: list[WeightPart]) -> list[WeightPart]:
    """Quantized parts of one linear in one format that has kernels; other parts as they are."""
    if not all(isinstance(part, GGUFBlocks) for part in parts):
        return parts
    plain = [as_plain_blocks(part) for part in parts if isinstance(part, GGUFBlocks)]
    if len({part.kind for part in plain}) > 1:
        plain = [as_q8_0(part) for part in plain]
    return list(plain)

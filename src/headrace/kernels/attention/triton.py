"""Launch choice of paged attention: which of the two kernels, in what tiles, by shape alone.

Nothing here reads device memory: lengths come from the host's copy of the step's maxima, and
programs that find nothing to do return at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from headrace.kernels.attention.triton_decode import decode_attention_kernel
from headrace.kernels.attention.triton_prefill import prefill_attention_kernel
from headrace.kernels.triton_launch import GpuTraits

HEAD_SIZES = (64, 96, 128, 256)
_LOG2_E = math.log2(math.e)
_MOST_SHARES = 32
_SMALLEST_SHARE = 64
_MATRIX_ROWS = 16
_RUN = 16
"""Neighbouring positions of one head in a tile of several: those of a block of the usual size."""

_FRESH_STAGES = 3


@dataclass(frozen=True, slots=True)
class DecodeTiling:
    """Launch parameters of the decode kernel: keys a tile, shares of a context, pipeline depth.

    Attributes:
        tile: Keys of a tile, of all its heads together.
        smallest_share: Fewest positions of a share; a shorter context has fewer shares.
        heads: KV heads of a program.
    """

    tile: int
    shares: int
    stages: int
    warps: int
    smallest_share: int = _SMALLEST_SHARE
    heads: int = 1


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    """Launch parameters of the prefill kernel: query rows and keys a tile, pipeline depth."""

    rows: int
    tile: int
    stages: int
    warps: int


def choose_decode_tiling(
    sequences: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_context: int,
    traits: GpuTraits,
) -> DecodeTiling:
    """As many shares as fill the device twice, none shorter than 64 keys.

    Measured on an H100: with more programs than that the combination costs more than the balance
    gains, and a deep pipeline pays until programs queue for shared memory.
    """
    heads = _heads_together(sequences, num_heads, num_kv_heads, traits)
    programs, full = sequences * num_kv_heads // heads, traits.multiprocessors
    filling = max(1, 2 * full // programs)
    useful = triton.cdiv(max_context, _SMALLEST_SHARE)
    shares = 2 ** (min(filling, useful, _MOST_SHARES).bit_length() - 1)
    key_bytes = 2 * triton.next_power_of_2(head_dim) * 2
    if heads == 1 and programs > 4 * full:
        tile, stages, warps = 128, 2, 8
    else:
        # Where a third program can run beside two, it is worth more than a deeper pipeline.
        tile, stages, warps = 64, 3 if 2 * full < programs <= 3 * full else 4, 4
    # A pipeline of n stages holds n - 1 tiles; two programs should fit a multiprocessor.
    while tile > 32 and tile * key_bytes > traits.shared_memory // 2:
        tile //= 2
    stages = max(2, min(stages, 1 + traits.shared_memory // 2 // (tile * key_bytes)))
    return DecodeTiling(tile=tile, shares=shares, stages=stages, warps=warps, heads=heads)


def _heads_together(sequences: int, num_heads: int, num_kv_heads: int, traits: GpuTraits) -> int:
    """As many KV heads as fill the matrix unit's rows, where two programs a processor are left."""
    heads = 1
    while (
        2 * heads * (num_heads // num_kv_heads) <= _MATRIX_ROWS
        and num_kv_heads % (2 * heads) == 0
        and sequences * num_kv_heads // (2 * heads) >= 1.9 * traits.multiprocessors
    ):
        heads *= 2
    return heads


def choose_prefill_tiling(head_dim: int, dtype: torch.dtype, traits: GpuTraits) -> PrefillTiling:
    """Tiles whose pipeline fits shared memory, as measured on an H100."""
    padded = triton.next_power_of_2(head_dim)
    if dtype == torch.float32:
        return PrefillTiling(rows=32, tile=32, stages=1, warps=4)
    if traits.wide_matrix_unit:
        if padded <= 128:
            return PrefillTiling(rows=64, tile=64, stages=2, warps=4)
        return PrefillTiling(rows=64, tile=32, stages=2, warps=4)
    if padded <= 128:
        return PrefillTiling(rows=128, tile=64, stages=1, warps=4)
    return PrefillTiling(rows=64, tile=32, stages=1, warps=4)


def can_read_fresh(head_dim: int, sliding_window: int | None, traits: GpuTraits) -> bool:
    """Whether prompts without cached tokens are read as whole tiles of the projection's output.

    Measured on an H100 at head size 128: 102 us instead of 143 for one prompt of 2048 tokens.
    """
    whole = head_dim in (64, 128)
    return traits.wide_matrix_unit and whole and sliding_window is None


class AttentionWorkspace:
    """Float32 partial results and tickets of split contexts, shared by all layers of a device."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self._outgrown: list[torch.Tensor] = []
        self.partial_sums = torch.empty(0, dtype=torch.float32, device=device)
        self.partial_stats = torch.empty(0, dtype=torch.float32, device=device)
        self.tickets = torch.zeros(0, dtype=torch.int32, device=device)

    def reserve(self, groups: int, shares: int, group_padded: int, head_dim_padded: int) -> None:
        """Make room for so many (sequence, KV head) groups; what graphs may point to is kept."""
        device = self.tickets.device
        sums = groups * shares * group_padded * head_dim_padded
        if self.partial_sums.numel() < sums:
            self._outgrown.append(self.partial_sums)
            self.partial_sums = torch.empty(sums, dtype=torch.float32, device=device)
        stats = groups * shares * 2 * group_padded
        if self.partial_stats.numel() < stats:
            self._outgrown.append(self.partial_stats)
            self.partial_stats = torch.empty(stats, dtype=torch.float32, device=device)
        if self.tickets.numel() < groups:
            self._outgrown.append(self.tickets)
            self.tickets = torch.zeros(groups, dtype=torch.int32, device=device)


def paged_attention(
    qkv: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    sliding_window: int | None,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    query_start: torch.Tensor,
    context_lengths: torch.Tensor,
    rows: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    max_query_length: int,
    max_context_length: int,
    workspace: AttentionWorkspace,
    traits: GpuTraits,
) -> None:
    """``out[T, heads * head_dim]`` = attention of new tokens to their pages; see the reference.

    Args:
        qkv: [T, (heads + 2 * kv_heads) * head_dim]; with several new tokens of a sequence, keys
            must be rotated there as well as in the cache.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides whose last is 1.
        value_cache: The same shape and strides.
        max_query_length: Bound on a sequence's new tokens; 1 launches the decode kernel alone.
        max_context_length: Bound on ``context_lengths``.
    """
    sequences = context_lengths.shape[0]
    if sequences == 0:
        return
    head_dim = key_cache.shape[3]
    group = num_heads // num_kv_heads
    head_dim_padded = triton.next_power_of_2(head_dim)
    mixed = max_query_length > 1 and sequences > 1
    if max_query_length == 1 or mixed:
        decode = choose_decode_tiling(
            sequences, num_heads, num_kv_heads, head_dim, max_context_length, traits
        )
        group_padded = max(16, triton.next_power_of_2(decode.heads * group))
        groups = num_kv_heads // decode.heads
        tokens = decode.tile // decode.heads
        workspace.reserve(sequences * groups, decode.shares, group_padded, head_dim_padded)
        decode_attention_kernel[(groups, decode.shares, sequences)](
            qkv,
            key_cache,
            value_cache,
            query_start,
            context_lengths,
            rows,
            block_tables,
            out,
            workspace.partial_sums,
            workspace.partial_stats,
            workspace.tickets,
            scale * _LOG2_E,
            qkv.stride(0),
            out.stride(0),
            key_cache.stride(0),
            key_cache.stride(1),
            key_cache.stride(2),
            block_tables.stride(0),
            int(mixed),
            GROUP=group,
            GROUP_PADDED=group_padded,
            HEADS=decode.heads,
            HEAD_DIM=head_dim,
            HEAD_DIM_PADDED=head_dim_padded,
            BLOCK_SIZE=key_cache.shape[1],
            TILE=decode.tile,
            RUN=min(tokens, _RUN),
            SHARES=decode.shares,
            SMALLEST_SHARE=max(tokens, decode.smallest_share),
            WINDOW=sliding_window or 0,
            STAGES=decode.stages,
            num_warps=decode.warps,
            **traits.launch_options(),
        )
    if max_query_length > 1:
        prefill = choose_prefill_tiling(head_dim, qkv.dtype, traits)
        read_fresh = can_read_fresh(head_dim, sliding_window, traits)
        slots = qkv.shape[0] // (prefill.rows // group) + sequences
        prefill_attention_kernel[(slots, num_kv_heads)](
            qkv,
            key_cache,
            value_cache,
            query_start,
            context_lengths,
            rows,
            block_tables,
            out,
            scale * _LOG2_E,
            qkv.stride(0),
            out.stride(0),
            key_cache.stride(0),
            key_cache.stride(1),
            key_cache.stride(2),
            block_tables.stride(0),
            TensorDescriptor.from_tensor(qkv, [prefill.tile, head_dim]) if read_fresh else qkv,
            num_kv_heads,
            sequences,
            GROUP=group,
            HEAD_DIM=head_dim,
            HEAD_DIM_PADDED=head_dim_padded,
            BLOCK_SIZE=key_cache.shape[1],
            ROWS=prefill.rows,
            TILE=prefill.tile,
            WINDOW=sliding_window or 0,
            BESIDE=mixed,
            STAGES=prefill.stages,
            READ_FRESH=read_fresh,
            FRESH_STAGES=_FRESH_STAGES,
            num_warps=prefill.warps,
            **traits.launch_options(),
        )

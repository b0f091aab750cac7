"""Attention of single-token queries: split along the context, grouped heads packed into a tile.

Flash-decoding (Dao et al., 2023): each program computes a partial softmax over its share of the
context; the program that ends last for a (sequence, KV heads) combines the shares, so that no
second launch is needed. The shares are cut from the context length on the device.

A program may serve several KV heads: their keys lie side by side in a tile and their queries fill
the rows of the matrix unit that one group would leave empty, each seeing its own head's keys. So a
short context makes one long pipeline instead of several that are over before they are full.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.triton_launch import prefetch_to_l2, start_dependents, wait_for_inputs


@triton.jit(do_not_specialize=["beside"])
def decode_attention_kernel(
    qkv,
    key_cache,
    value_cache,
    query_start,
    context_lengths,
    rows,
    block_tables,
    out,
    partial_sums,
    partial_stats,
    tickets,
    scale_log2,
    qkv_stride,
    out_stride,
    block_stride,
    offset_stride,
    head_stride,
    table_stride,
    beside,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
    SHARES: tl.constexpr,
    SMALLEST_SHARE: tl.constexpr,
    WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (KV heads / ``HEADS``, ``SHARES``, sequences).

    Programs of sequences with no context (padding) or several new tokens do nothing. What comes
    before the wait reads only the step's inputs, written before the step's first kernel, and asks
    for pages of which the kernel before this one writes no more than the last position.

    Args:
        partial_sums: [sequences, kv_heads / HEADS, SHARES, GROUP_PADDED, HEAD_DIM_PADDED] float32.
        partial_stats: [sequences, kv_heads / HEADS, SHARES, 2, GROUP_PADDED] float32: maxima, then
            sums.
        tickets: [sequences, kv_heads / HEADS] int32 zeros; left at zero.
        scale_log2: Scale of the scores times log2(e).
        GROUP_PADDED: Power of two >= ``HEADS * GROUP``.
        TILE: Keys of a tile, of all its heads: ``TILE / HEADS`` positions.
        RUN: Positions of one head that follow each other in a tile; divides ``TILE / HEADS``.
        beside: Whether the next kernel runs beside this one: it may start once this one's inputs
            are there.
    """
    if beside == 0:
        start_dependents(PDL)
    kv_head = tl.program_id(0) * HEADS
    TOKENS: tl.constexpr = TILE // HEADS
    # What a tile's key is: its position after the tile's first, and its head.
    key_index = tl.arange(0, TILE)
    key_token = key_index // (RUN * HEADS) * RUN + key_index % RUN
    key_head = key_index // RUN % HEADS
    share = tl.program_id(1)
    sequence = tl.program_id(2)
    context = tl.load(context_lengths + sequence)
    token = tl.load(query_start + sequence)
    new_tokens = tl.load(query_start + sequence + 1) - token
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0)
    length = tl.cdiv(tl.cdiv(context - begin, SHARES), TOKENS) * TOKENS
    length = tl.maximum(length, SMALLEST_SHARE)
    first = begin + share * length
    table = block_tables + tl.load(rows + sequence).to(tl.int64) * table_stride
    if PDL:
        ahead = first + key_token
        page = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < context, other=0).to(tl.int64)
        row_start = page * block_stride + (ahead % BLOCK_SIZE) * offset_stride
        row_start += (kv_head + key_head) * head_stride
        lines = row_start[:, None] + tl.arange(0, HEAD_DIM_PADDED // 64)[None, :] * 64
        prefetch_to_l2(key_cache + lines, PDL)
        prefetch_to_l2(value_cache + lines, PDL)
    wait_for_inputs(PDL)
    if beside != 0:
        start_dependents(PDL)
    if (new_tokens == 1) & (first < context):
        last = tl.minimum(first + length, context)
        member = tl.arange(0, GROUP_PADDED)
        column = tl.arange(0, HEAD_DIM_PADDED)
        inside = (member < HEADS * GROUP)[:, None] & (column < HEAD_DIM)[None, :]
        head_column = (kv_head * GROUP + member)[:, None] * HEAD_DIM + column[None, :]
        query = tl.load(qkv + token.to(tl.int64) * qkv_stride + head_column, mask=inside, other=0.0)
        heads_place = ((kv_head + key_head) * head_stride)[:, None] + column[None, :]
        key_base = key_cache + heads_place
        value_base = value_cache + heads_place
        if HEADS > 1:
            # A padding row sees the last head's keys, so that its sums stay finite.
            own = tl.minimum(member // GROUP, HEADS - 1)[:, None] == key_head[None, :]
        maximum = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_PADDED], tl.float32)
        result = tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], tl.float32)
        position = first + key_token
        # Read one tile ahead: a load that the key loads wait for would halve the pipeline's depth.
        block = tl.load(table + position // BLOCK_SIZE, mask=position < last, other=0)
        for start in tl.range(first, last, TOKENS, num_stages=STAGES):
            position = start + key_token
            visible = position < last
            place = block.to(tl.int64) * block_stride + (position % BLOCK_SIZE) * offset_stride
            mask = visible[:, None] & (column < HEAD_DIM)[None, :]
            key = tl.load(key_base + place[:, None], mask=mask, other=0.0)
            value = tl.load(value_base + place[:, None], mask=mask, other=0.0)
            ahead = position + TOKENS
            block = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < last, other=0)
            scores = tl.dot(query, key.T, input_precision="ieee") * scale_log2
            seen = visible[None, :]
            if HEADS > 1:
                seen = seen & own
            scores = tl.where(seen, scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            correction = tl.exp2(maximum - new_maximum)
            weights = tl.exp2(scores - new_maximum[:, None])
            total = total * correction + tl.sum(weights, axis=1)
            result = result * correction[:, None]
            result = tl.dot(weights.to(value.dtype), value, result, input_precision="ieee")
            maximum = new_maximum
        target = out + token.to(tl.int64) * out_stride + head_column
        shares = tl.cdiv(context - begin, length)
        if shares == 1:
            tl.store(target, result / total[:, None], mask=inside)
        else:
            group = sequence * tl.num_programs(0) + tl.program_id(0)
            slot = (group * SHARES + share).to(tl.int64)
            tile = member[:, None] * HEAD_DIM_PADDED + column[None, :]
            tl.store(
                partial_sums + slot * (GROUP_PADDED * HEAD_DIM_PADDED) + tile, result, mask=inside
            )
            stats = partial_stats + slot * (2 * GROUP_PADDED) + member
            tl.store(stats, maximum)
            tl.store(stats + GROUP_PADDED, total)
            tl.debug_barrier()
            ticket = tl.atomic_add(tickets + group, 1, sem="acq_rel")
            if ticket == shares - 1:
                tl.store(tickets + group, 0)
                maximum = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
                total = tl.zeros([GROUP_PADDED], tl.float32)
                result = tl.zeros([GROUP_PADDED, HEAD_DIM_PADDED], tl.float32)
                for other in tl.range(0, shares):
                    slot = (group * SHARES + other).to(tl.int64)
                    stats = partial_stats + slot * (2 * GROUP_PADDED) + member
                    share_maximum = tl.load(stats, cache_modifier=".cg")
                    share_total = tl.load(stats + GROUP_PADDED, cache_modifier=".cg")
                    share_result = tl.load(
                        partial_sums + slot * (GROUP_PADDED * HEAD_DIM_PADDED) + tile,
                        mask=inside,
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    new_maximum = tl.maximum(maximum, share_maximum)
                    correction = tl.exp2(maximum - new_maximum)
                    share_correction = tl.exp2(share_maximum - new_maximum)
                    total = total * correction + share_total * share_correction
                    result = result * correction[:, None]
                    result += share_result * share_correction[:, None]
                    maximum = new_maximum
                tl.store(target, result / total[:, None], mask=inside)

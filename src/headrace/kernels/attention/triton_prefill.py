"""Attention of many new tokens of a sequence over its pages: FlashAttention-2's tiling.

A tile's rows are (token, head of the group) pairs that share one KV head (arXiv:2305.13245), so
that each key is read once for all of them; tiles of keys that no row may see are never visited
(arXiv:2307.08691). A prompt without cached tokens reads its keys and values where the projection
left them: contiguous, so that the device's copy engine can fetch whole tiles.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.triton_launch import start_dependents, wait_for_inputs


@triton.jit
def _attend_tiles(
    result,
    total,
    maximum,
    query,
    query_position,
    key_base,
    value_base,
    table,
    first,
    last,
    context,
    scale_log2,
    block_stride,
    offset_stride,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, HEAD_DIM_PADDED)
    position = first + tl.arange(0, TILE)
    # Read one tile ahead: a load that the key loads wait for would halve the pipeline's depth.
    block = tl.load(table + position // BLOCK_SIZE, mask=position < context, other=0)
    for start in tl.range(first, last, TILE, num_stages=STAGES):
        position = start + tl.arange(0, TILE)
        place = block.to(tl.int64) * block_stride + (position % BLOCK_SIZE) * offset_stride
        if MASKED or HEAD_DIM != HEAD_DIM_PADDED:
            mask = (position < context)[:, None] & (column < HEAD_DIM)[None, :]
            key = tl.load(key_base + place[:, None], mask=mask, other=0.0)
            value = tl.load(value_base + place[:, None], mask=mask, other=0.0)
        else:
            key = tl.load(key_base + place[:, None])
            value = tl.load(value_base + place[:, None])
        ahead = position + TILE
        block = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < context, other=0)
        scores = tl.dot(query, key.T, input_precision="ieee")
        if MASKED:
            visible = position[None, :] <= query_position[:, None]
            if WINDOW > 0:
                visible = visible & (position[None, :] > query_position[:, None] - WINDOW)
            scores = tl.where(visible, scores * scale_log2, -1.0e30)
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_maximum[:, None])
            if WINDOW > 0:
                weights = tl.where(visible, weights, 0.0)
        else:
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_maximum[:, None])
        correction = tl.exp2(maximum - new_maximum)
        total = total * correction + tl.sum(weights, axis=1)
        result = result * correction[:, None]
        result = tl.dot(weights.to(value.dtype), value, result, input_precision="ieee")
        maximum = new_maximum
    return result, total, maximum


@triton.jit
def _attend_fresh_tiles(
    result,
    total,
    maximum,
    query,
    query_position,
    qkv_tiles,
    first_token,
    key_column,
    value_column,
    first,
    last,
    scale_log2,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    for start in tl.range(first, last, TILE, num_stages=STAGES):
        key = qkv_tiles.load([first_token + start, key_column])
        scores = tl.dot(query, key.T, input_precision="ieee")
        if MASKED:
            position = start + tl.arange(0, TILE)
            visible = position[None, :] <= query_position[:, None]
            scores = tl.where(visible, scores * scale_log2, -1.0e30)
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_maximum[:, None])
        else:
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_maximum[:, None])
        correction = tl.exp2(maximum - new_maximum)
        total = total * correction + tl.sum(weights, axis=1)
        result = result * correction[:, None]
        value = qkv_tiles.load([first_token + start, value_column])
        if MASKED:
            # Perhaps the next sequence's: what is no number there, times zero, would come here.
            value = tl.where((start + tl.arange(0, TILE) < last)[:, None], value, 0.0)
        result = tl.dot(weights.to(value.dtype), value, result, input_precision="ieee")
        maximum = new_maximum
    return result, total, maximum


@triton.jit
def _sequence_of(query_start, slot, num_sequences, TOKENS: tl.constexpr, LANES: tl.constexpr):
    """The sequence whose slots hold ``slot``: those of sequence s begin at start // TOKENS + s."""
    lane = tl.arange(0, LANES)
    before = tl.zeros([LANES], tl.int32)
    for first in range(0, num_sequences, LANES):
        index = first + lane
        start = tl.load(query_start + index, mask=index < num_sequences, other=0)
        before += ((index < num_sequences) & (start // TOKENS + index <= slot)).to(tl.int32)
    return tl.sum(before, axis=0) - 1


@triton.jit(do_not_specialize=["num_sequences"])
def prefill_attention_kernel(
    qkv,
    key_cache,
    value_cache,
    query_start,
    context_lengths,
    rows,
    block_tables,
    out,
    scale_log2,
    qkv_stride,
    out_stride,
    block_stride,
    offset_stride,
    head_stride,
    table_stride,
    qkv_tiles,
    num_kv_heads,
    num_sequences,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    BESIDE: tl.constexpr,
    STAGES: tl.constexpr,
    READ_FRESH: tl.constexpr,
    FRESH_STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (slots, KV heads); a slot is a tile of ``ROWS // GROUP`` tokens of one sequence.

    Slots are dealt out by ``query_start`` alone: sequence s has those from ``query_start[s] //
    tokens + s`` on, enough for its own tiles and at most one more, so that there are as many as
    tokens and sequences need, however lengths mix. Spare slots do nothing, nor, with
    ``BESIDE``, do sequences with one new token (the decode kernel's part). Of a sequence the
    longest tiles come first.

    Args:
        qkv_tiles: With ``READ_FRESH`` a descriptor of ``qkv`` in tiles [TILE, HEAD_DIM]; rotated
            keys are then also in ``qkv``. A tile may reach into the next sequence: what lies there
            is masked.
        BESIDE: The decode kernel comes before, and lets this one start when the inputs of both are
            there. Nothing that it writes is read here: programs fill what it leaves of the device,
            and one of them waits for its end, so that this kernel's end is that of both.
    """
    start_dependents(PDL)
    TOKENS: tl.constexpr = ROWS // GROUP
    slot = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _sequence_of(query_start, slot, num_sequences, TOKENS, 256)
    first_token = tl.load(query_start + sequence)
    new_tokens = tl.load(query_start + sequence + 1) - first_token
    tile = tl.cdiv(new_tokens, TOKENS) - 1 - (slot - first_token // TOKENS - sequence)
    if not BESIDE:
        wait_for_inputs(PDL)
    wanted = tile >= 0
    if BESIDE:
        wanted = wanted & (new_tokens > 1)
    if wanted:
        context = tl.load(context_lengths + sequence)
        cached = context - new_tokens
        row = tl.arange(0, ROWS)
        column = tl.arange(0, HEAD_DIM_PADDED)
        token = tile * TOKENS + row // GROUP
        head = kv_head * GROUP + row % GROUP
        inside = ((row < TOKENS * GROUP) & (token < new_tokens))[:, None]
        inside = inside & (column < HEAD_DIM)[None, :]
        row_token = (first_token + token).to(tl.int64)
        head_column = head[:, None] * HEAD_DIM + column[None, :]
        query = tl.load(qkv + row_token[:, None] * qkv_stride + head_column, mask=inside, other=0.0)
        query_position = cached + token
        table = block_tables + tl.load(rows + sequence).to(tl.int64) * table_stride
        key_base = key_cache + kv_head * head_stride + column[None, :]
        value_base = value_cache + kv_head * head_stride + column[None, :]
        tile_start = cached + tile * TOKENS
        last = tl.minimum(tile_start + TOKENS, context)
        result = tl.zeros([ROWS, HEAD_DIM_PADDED], tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        maximum = tl.full([ROWS], -1.0e30, tl.float32)
        if READ_FRESH and cached == 0:
            key_column = (num_kv_heads * GROUP + kv_head) * HEAD_DIM
            value_column = key_column + num_kv_heads * HEAD_DIM
            diagonal = (tile_start + 1) // TILE * TILE
            if READ_FRESH:
                result, total, maximum = _attend_fresh_tiles(
                    result,
                    total,
                    maximum,
                    query,
                    query_position,
                    qkv_tiles,
                    first_token,
                    key_column,
                    value_column,
                    0,
                    diagonal,
                    scale_log2,
                    TILE,
                    False,
                    FRESH_STAGES,
                )
                result, total, maximum = _attend_fresh_tiles(
                    result,
                    total,
                    maximum,
                    query,
                    query_position,
                    qkv_tiles,
                    first_token,
                    key_column,
                    value_column,
                    diagonal,
                    last,
                    scale_log2,
                    TILE,
                    True,
                    FRESH_STAGES,
                )
        else:
            first = 0
            if WINDOW > 0:
                first = tl.maximum(tile_start - WINDOW + 1, 0) // TILE * TILE
            else:
                first = (tile_start + 1) // TILE * TILE
                result, total, maximum = _attend_tiles(
                    result,
                    total,
                    maximum,
                    query,
                    query_position,
                    key_base,
                    value_base,
                    table,
                    0,
                    first,
                    context,
                    scale_log2,
                    block_stride,
                    offset_stride,
                    HEAD_DIM,
                    HEAD_DIM_PADDED,
                    BLOCK_SIZE,
                    TILE,
                    WINDOW,
                    False,
                    STAGES,
                )
            result, total, maximum = _attend_tiles(
                result,
                total,
                maximum,
                query,
                query_position,
                key_base,
                value_base,
                table,
                first,
                last,
                context,
                scale_log2,
                block_stride,
                offset_stride,
                HEAD_DIM,
                HEAD_DIM_PADDED,
                BLOCK_SIZE,
                TILE,
                WINDOW,
                True,
                STAGES,
            )
        total = tl.where(total > 0.0, total, 1.0)
        target = out + row_token[:, None] * out_stride + head_column
        tl.store(target, result / total[:, None], mask=inside)
    if BESIDE and (slot == 0) & (kv_head == 0):
        wait_for_inputs(PDL)

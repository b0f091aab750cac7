"""Plain torch reference of causal attention over a paged KV cache, one sequence at a time."""

from __future__ import annotations

import torch


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    """Attention of the last Q positions of one sequence to all C of them, in float32.

    Args:
        query: [Q, heads, head_dim], the queries of positions C - Q ... C - 1.
        key: [C, kv_heads, head_dim]; heads are shared in consecutive groups (arXiv:2305.13245).
        value: [C, kv_heads, head_dim].
        scale: Multiplies the scores.
        sliding_window: A position attends to so many last positions, itself included.

    Returns:
        [Q, heads, head_dim] float32.
    """
    num_queries, num_heads, _ = query.shape
    context, num_kv_heads, _ = key.shape
    group = num_heads // num_kv_heads
    keys = key.float().repeat_interleave(group, dim=1)
    values = value.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,chd->hqc", query.float(), keys) * scale
    query_position = torch.arange(context - num_queries, context, device=query.device)[:, None]
    key_position = torch.arange(context, device=query.device)[None, :]
    visible = key_position <= query_position
    if sliding_window is not None:
        visible &= key_position > query_position - sliding_window
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqc,chd->qhd", weights, values)


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
) -> None:
    """``out[T, num_heads * head_dim]`` = attention of each sequence's new tokens to its context.

    Keys and values of the new tokens themselves are already in the cache.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim]; only its queries, rotated, are read.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim].
        value_cache: The same shape.
        query_start: [S + 1] int32: first token of each sequence, then T.
        context_lengths: [S] int32: context of each sequence, new tokens included.
        rows: [S] int32: row of ``block_tables`` of each sequence.
        block_tables: [max_rows, max_blocks] int32: blocks of each row, in order of position.
    """
    block_size, head_dim = key_cache.shape[1], key_cache.shape[3]
    tokens = qkv.shape[0]
    query = qkv[:, : num_heads * head_dim].view(tokens, num_heads, head_dim)
    starts = query_start.tolist()
    for sequence, (context, row) in enumerate(
        zip(context_lengths.tolist(), rows.tolist(), strict=True)
    ):
        first, last = starts[sequence], starts[sequence + 1]
        blocks = block_tables[row, : -(-context // block_size)].long()
        keys = key_cache[blocks].flatten(0, 1)[:context]
        values = value_cache[blocks].flatten(0, 1)[:context]
        result = attend(query[first:last], keys, values, scale, sliding_window)
        out[first:last] = result.flatten(1).to(out.dtype)

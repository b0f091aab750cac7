"""Rotary embedding in training: in place, and its gradient written packed, in one launch each."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HEADS = 8


@triton.jit
def rotate_kernel(
    qkv,
    cosine,
    sine,
    num_rotated,
    period,
    token_stride,
    head_stride,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Grid (tokens, groups of ``HEADS`` heads)."""
    token = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, HALF)
    half_inside = column < HEAD_DIM // 2
    inside = (head < num_rotated)[:, None] & half_inside[None, :]
    angle = (token % period) * (HEAD_DIM // 2) + column
    cos = tl.load(cosine + angle, mask=half_inside, other=1.0)[None, :]
    sin = tl.load(sine + angle, mask=half_inside, other=0.0)[None, :]
    source = qkv + token.to(tl.int64) * token_stride + head[:, None] * head_stride + column[None, :]
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    tl.store(source, low * cos - high * sin, mask=inside)
    tl.store(source + HEAD_DIM // 2, high * cos + low * sin, mask=inside)


@triton.jit
def unrotate_packed_kernel(
    grad_query,
    grad_key,
    grad_value,
    out,
    cosine,
    sine,
    num_heads,
    num_kv_heads,
    period,
    row_tokens,
    query_row_stride,
    query_token_stride,
    query_head_stride,
    key_row_stride,
    key_token_stride,
    key_head_stride,
    value_row_stride,
    value_token_stride,
    value_head_stride,
    out_stride,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Grid (tokens, groups of ``HEADS`` heads); rows of ``row_tokens`` tokens."""
    token = tl.program_id(0)
    row = (token // row_tokens).to(tl.int64)
    place = (token % row_tokens).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, HALF)
    half_inside = column < HEAD_DIM // 2
    is_query = (head < num_heads)[:, None] & half_inside[None, :]
    is_key = ((head >= num_heads) & (head < num_heads + num_kv_heads))[:, None]
    is_key = is_key & half_inside[None, :]
    is_value = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads)
    is_value = is_value[:, None] & half_inside[None, :]
    key_head = (head - num_heads)[:, None]
    value_head = key_head - num_kv_heads
    query = grad_query + row * query_row_stride + place * query_token_stride
    query += head[:, None] * query_head_stride + column[None, :]
    key = grad_key + row * key_row_stride + place * key_token_stride
    key += key_head * key_head_stride + column[None, :]
    value = grad_value + row * value_row_stride + place * value_token_stride
    value += value_head * value_head_stride + column[None, :]
    half = HEAD_DIM // 2
    low = tl.load(query, mask=is_query, other=0.0).to(tl.float32)
    low += tl.load(key, mask=is_key, other=0.0).to(tl.float32)
    high = tl.load(query + half, mask=is_query, other=0.0).to(tl.float32)
    high += tl.load(key + half, mask=is_key, other=0.0).to(tl.float32)
    angle = (token % period) * half + column
    cos = tl.load(cosine + angle, mask=half_inside, other=1.0)[None, :]
    sin = tl.load(sine + angle, mask=half_inside, other=0.0)[None, :]
    value_low = tl.load(value, mask=is_value, other=0.0).to(tl.float32)
    value_high = tl.load(value + half, mask=is_value, other=0.0).to(tl.float32)
    target = out + token.to(tl.int64) * out_stride + head[:, None] * HEAD_DIM + column[None, :]
    inside = is_query | is_key | is_value
    tl.store(target, low * cos + high * sin + value_low, mask=inside)
    tl.store(target + half, high * cos - low * sin + value_high, mask=inside)


def rotate(qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, heads: int) -> None:
    """Rotate in place; see ``training_reference.rotate``."""
    tokens, _, head_dim = qkv.shape
    rotate_kernel[(tokens, triton.cdiv(heads, _HEADS))](
        qkv,
        cosine,
        sine,
        heads,
        cosine.shape[0],
        qkv.stride(0),
        qkv.stride(1),
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        HEADS=_HEADS,
        num_warps=4,
    )


def unrotate_packed(
    grad_query: torch.Tensor,
    grad_key: torch.Tensor,
    grad_value: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
) -> torch.Tensor:
    """Gradients before rotation, packed; see ``training_reference.unrotate_packed``."""
    rows, row_tokens, heads, head_dim = grad_query.shape
    kv_heads = grad_key.shape[2]
    total = heads + 2 * kv_heads
    out = grad_query.new_empty(rows * row_tokens, total, head_dim)
    unrotate_packed_kernel[(rows * row_tokens, triton.cdiv(total, _HEADS))](
        grad_query,
        grad_key,
        grad_value,
        out,
        cosine,
        sine,
        heads,
        kv_heads,
        cosine.shape[0],
        row_tokens,
        *grad_query.stride()[:3],
        *grad_key.stride()[:3],
        *grad_value.stride()[:3],
        out.stride(0),
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        HEADS=_HEADS,
        num_warps=4,
    )
    return out

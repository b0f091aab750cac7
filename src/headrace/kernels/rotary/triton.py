"""Head norms, rotation and the write to the paged cache, in one launch."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs


@triton.jit
def rotate_and_cache_kernel(
    qkv,
    cos_sin,
    query_norm,
    key_norm,
    key_cache,
    value_cache,
    positions,
    cache_slots,
    eps,
    num_heads,
    num_kv_heads,
    qkv_stride,
    block_stride,
    offset_stride,
    head_stride,
    HAS_NORM: tl.constexpr,
    KEYS_IN_PLACE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens, groups of ``HEADS`` heads); ``HALF`` is a power of two >= HEAD_DIM / 2.

    The last tokens first: of a large input what was written last is still in the L2 cache.
    A token whose slot is negative is padding of a captured graph: nothing is written for it.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.num_programs(0) - 1 - tl.program_id(0)
    slot = tl.load(cache_slots + token)
    if slot >= 0:
        head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
        column = tl.arange(0, HALF)
        is_query = head < num_heads
        is_key = (head >= num_heads) & (head < num_heads + num_kv_heads)
        is_value = (head >= num_heads + num_kv_heads) & (head < num_heads + 2 * num_kv_heads)
        half_inside = column < HEAD_DIM // 2
        inside = (head < num_heads + 2 * num_kv_heads)[:, None] & half_inside[None, :]
        source = qkv + token.to(tl.int64) * qkv_stride + head[:, None] * HEAD_DIM + column[None, :]
        low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(source + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            square = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
            inverse = tl.rsqrt(square / HEAD_DIM + eps)[:, None]
            query_low = tl.load(query_norm + column, mask=half_inside, other=0.0)
            query_high = tl.load(query_norm + HEAD_DIM // 2 + column, mask=half_inside, other=0.0)
            key_low = tl.load(key_norm + column, mask=half_inside, other=0.0)
            key_high = tl.load(key_norm + HEAD_DIM // 2 + column, mask=half_inside, other=0.0)
            weight_low = tl.where(is_query[:, None], query_low[None, :], key_low[None, :])
            weight_high = tl.where(is_query[:, None], query_high[None, :], key_high[None, :])
            low = tl.where(is_value[:, None], low, low * inverse * weight_low.to(tl.float32))
            high = tl.where(is_value[:, None], high, high * inverse * weight_high.to(tl.float32))
        angles = cos_sin + tl.load(positions + token).to(tl.int64) * HEAD_DIM + column
        cosine = tl.load(angles, mask=half_inside, other=1.0)[None, :]
        sine = tl.load(angles + HEAD_DIM // 2, mask=half_inside, other=0.0)[None, :]
        rotated_low = tl.where(is_value[:, None], low, low * cosine - high * sine)
        rotated_high = tl.where(is_value[:, None], high, high * cosine + low * sine)
        query_mask = is_query[:, None] & half_inside[None, :]
        if KEYS_IN_PLACE:
            query_mask = (is_query | is_key)[:, None] & half_inside[None, :]
        tl.store(source, rotated_low, mask=query_mask)
        tl.store(source + HEAD_DIM // 2, rotated_high, mask=query_mask)
        place = (slot // BLOCK_SIZE).to(tl.int64) * block_stride
        place += (slot % BLOCK_SIZE) * offset_stride
        key_head = (head - num_heads)[:, None]
        key_target = key_cache + place + key_head * head_stride + column[None, :]
        key_mask = is_key[:, None] & half_inside[None, :]
        tl.store(key_target, rotated_low, mask=key_mask)
        tl.store(key_target + HEAD_DIM // 2, rotated_high, mask=key_mask)
        value_head = (head - num_heads - num_kv_heads)[:, None]
        value_target = value_cache + place + value_head * head_stride + column[None, :]
        value_mask = is_value[:, None] & half_inside[None, :]
        tl.store(value_target, rotated_low, mask=value_mask)
        tl.store(value_target + HEAD_DIM // 2, rotated_high, mask=value_mask)


def rotate_and_cache(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    num_heads: int,
    num_kv_heads: int,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    positions: torch.Tensor,
    cache_slots: torch.Tensor,
    traits: GpuTraits,
    keys_in_place: bool = False,
) -> None:
    """Rotate queries in place, write rotated keys and values to their slots; see the reference.

    Args:
        keys_in_place: Rotate keys in ``qkv`` too, where attention may read those of new prompts.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], any strides whose last is 1.
        value_cache: The same shape and strides.
        cache_slots: [T] int32; a negative slot marks a padding token, which is left alone.
    """
    tokens = qkv.shape[0]
    if tokens == 0:
        return
    head_dim = key_cache.shape[3]
    heads = 8 if tokens >= 64 else 4
    rotate_and_cache_kernel[(tokens, triton.cdiv(num_heads + 2 * num_kv_heads, heads))](
        qkv,
        cos_sin,
        cos_sin if query_norm is None else query_norm,
        cos_sin if key_norm is None else key_norm,
        key_cache,
        value_cache,
        positions,
        cache_slots,
        eps,
        num_heads,
        num_kv_heads,
        qkv.stride(0),
        key_cache.stride(0),
        key_cache.stride(1),
        key_cache.stride(2),
        HAS_NORM=query_norm is not None,
        KEYS_IN_PLACE=keys_in_place,
        BLOCK_SIZE=key_cache.shape[1],
        HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        HEADS=heads,
        num_warps=4 if heads == 8 else 2,
        **traits.launch_options(),
    )

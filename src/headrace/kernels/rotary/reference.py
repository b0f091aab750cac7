"""Plain torch reference of head normalisation, rotation and the write to the paged cache."""

from __future__ import annotations

import torch

from headrace.kernels.norm.reference import normalise


def rotate(heads: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate [T, H, head_dim] by halves (arXiv:2104.09864, in GPT-NeoX's pairing), in float32.

    Element i of a head pairs with element i + head_dim / 2.

    Args:
        cos_sin: [T, head_dim] float32: head_dim / 2 cosines, then as many sines.
    """
    cos, sin = cos_sin[:, None, :].chunk(2, dim=-1)
    low, high = heads.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


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
) -> None:
    """Normalise heads if asked, rotate queries and keys, write keys and values to their slots.

    The queries inside ``qkv`` are updated in place; its keys and values are left as they were.
    A value is computed in float32 and rounded once, when it is written.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim]: queries, keys, values.
        cos_sin: [max_position, head_dim] float32: cosines, then sines, of the half-width.
        query_norm: [head_dim] RMSNorm weight over each query head, or ``None`` for no norms.
        key_norm: [head_dim] the same for keys.
        eps: Of the two norms.
        key_cache: [num_blocks, block_size, num_kv_heads, head_dim], updated.
        value_cache: The same shape, updated.
        positions: [T] int32.
        cache_slots: [T] int32: block * block_size + offset.
    """
    tokens = qkv.shape[0]
    heads = qkv.view(tokens, num_heads + 2 * num_kv_heads, -1)
    query, key, value = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if query_norm is not None and key_norm is not None:
        normed_query, normed_key = normalise(query, query_norm, eps), normalise(key, key_norm, eps)
    else:
        normed_query, normed_key = query, key
    angles = cos_sin[positions.long()]
    slots = cache_slots.long()
    key_cache.flatten(0, 1)[slots] = rotate(normed_key, angles).to(key_cache.dtype)
    value_cache.flatten(0, 1)[slots] = value.to(value_cache.dtype)
    query.copy_(rotate(normed_query, angles))

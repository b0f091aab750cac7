"""Plain torch references of rotary embedding in training: in place, and its gradient packed."""

from __future__ import annotations

import torch


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    low, high = heads.float().chunk(2, dim=-1)
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)


def rotate(qkv: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, heads: int) -> None:
    """Rotate the first ``heads`` heads (queries, then keys) of every token in place.

    Args:
        qkv: [T, all heads, head_dim].
        cosine: [P, head_dim / 2] float32; token t takes row t % P.
        sine: The same.
    """
    rows = torch.arange(qkv.shape[0], device=qkv.device) % cosine.shape[0]
    part = qkv[:, :heads]
    part.copy_(_rotated(part, cosine[rows][:, None], sine[rows][:, None]))


def unrotate_packed(
    grad_query: torch.Tensor,
    grad_key: torch.Tensor,
    grad_value: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
) -> torch.Tensor:
    """``[T, all heads, head_dim]``: gradients of queries, keys and values before rotation.

    Args:
        grad_query: [B, S, heads, head_dim], of the rotated queries; B * S = T, any strides.
        grad_key: [B, S, kv_heads, head_dim].
        grad_value: [B, S, kv_heads, head_dim].
    """
    flat = [grad.reshape(-1, *grad.shape[2:]) for grad in (grad_query, grad_key, grad_value)]
    rows = torch.arange(flat[0].shape[0], device=cosine.device) % cosine.shape[0]
    cosine, sine = cosine[rows][:, None], -sine[rows][:, None]
    query, key = (_rotated(part, cosine, sine).to(part.dtype) for part in flat[:2])
    return torch.cat((query, key, flat[2]), dim=1)

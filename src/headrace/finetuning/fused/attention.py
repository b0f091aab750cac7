"""Causal attention with a forward and a backward that can be called apart, on each device.

Queries, keys and values are [rows, S, heads, head_dim] in any strides whose last is 1. A packed row
holds several documents; ``Documents`` says where they begin, and no token sees another document.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """Bounds of the documents among all tokens of a batch, row after row.

    Attributes:
        bounds: [documents + 1] int32: where each begins, and the number of tokens.
        longest: Tokens of the longest document, or an upper bound of it.
    """

    bounds: Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Attended:
    """What an attention forward returns and its backward wants back.

    Attributes:
        out: [rows, S, heads, head_dim].
        statistics: The backend's own tensors (log-sum-exp, generator state).
    """

    out: Tensor
    statistics: tuple[Tensor | None, ...]


class Attention(Protocol):
    """Causal attention of one batch shape."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        """Attend; key and value may have fewer heads (arXiv:2305.13245)."""
        ...

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, past: Attended, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, in their shapes."""
        ...


class CudnnAttention:
    """cuDNN's fused attention: whole rows, no packing. The fastest on Hopper."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        """See ``Attention``."""
        parts = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            None,
            True,
            0.0,
            True,
            False,
            scale=scale,
        )
        return Attended(parts[0].transpose(1, 2), (parts[1], parts[6], parts[7]))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, past: Attended, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Attention``."""
        log_sum, philox_seed, philox_offset = past.statistics
        grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad.transpose(1, 2),
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            past.out.transpose(1, 2),
            log_sum,
            philox_seed,
            philox_offset,
            None,
            None,
            None,
            query.shape[1],
            key.shape[1],
            0.0,
            True,
            scale=scale,
        )
        return tuple(part.transpose(1, 2) for part in grads)


class FlashAttention:
    """torch's FlashAttention-2 (arXiv:2307.08691) over documents of any lengths."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        """See ``Attention``."""
        bounds, longest = self._documents.bounds, self._documents.longest
        out, log_sum, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            True,
            False,
            scale=scale,
        )
        return Attended(out.view(query.shape), (log_sum, random_state, unused))

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, past: Attended, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Attention``."""
        bounds, longest = self._documents.bounds, self._documents.longest
        log_sum, random_state, unused = past.statistics
        grads = torch.ops.aten._flash_attention_backward(
            grad.flatten(0, 1),
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            past.out.flatten(0, 1),
            log_sum,
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            True,
            random_state,
            unused,
            scale=scale,
        )
        parts = zip(grads, (query, key, value), strict=True)
        return tuple(part.view(like.shape) for part, like in parts)


class RecomputedAttention:
    """torch's scaled dot product on any device; the backward attends again under autograd."""

    def __init__(self, documents: Documents | None) -> None:
        self._documents = documents

    def _mask(self, query: Tensor) -> Tensor | None:
        if self._documents is None:
            return None
        rows, length = query.shape[:2]
        token = torch.arange(rows * length, device=query.device)
        document = torch.bucketize(token, self._documents.bounds.long(), right=True)
        document = document.view(rows, length)
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        mask = self._mask(query)
        return torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[2] != key.shape[2],
        ).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Attended:
        """See ``Attention``."""
        return Attended(self._attend(query, key, value, scale).contiguous(), ())

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, past: Attended, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Attention``."""
        leaves = [part.detach().requires_grad_() for part in (query, key, value)]
        with torch.enable_grad():
            out = self._attend(leaves[0], leaves[1], leaves[2], scale)
        grads = torch.autograd.grad(out, leaves, grad)
        return grads[0], grads[1], grads[2]


@cache
def cudnn_works(device: torch.device, dtype: torch.dtype, head_dim: int, group: int) -> bool:
    """cuDNN computes a small batch forward and backward, and right, on this device."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((2, 128, 2 * group, head_dim), (2, 128, 2, head_dim), (2, 128, 2, head_dim))
    query, key, value = (
        torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
    )
    grad, scale = torch.randn_like(query), head_dim**-0.5
    results = []
    for backend in (CudnnAttention(), RecomputedAttention(None)):
        try:
            past = backend.forward(query, key, value, scale)
            results.append((past.out, *backend.backward(grad, query, key, value, past, scale)))
        except (RuntimeError, NotImplementedError):
            return False
    pairs = zip(*results, strict=True)
    return all(
        bool((mine.float() - other.float()).norm() <= 0.02 * other.float().norm())
        for mine, other in pairs
    )


def choose_attention(
    shape: tuple[int, int, int, int],
    kv_heads: int,
    dtype: torch.dtype,
    device: torch.device,
    documents: Documents | None,
) -> Attention:
    """The fastest attention that a device has for a batch.

    Args:
        shape: rows, S, heads, head_dim.
        kv_heads: Heads of keys and values.
        dtype: Of queries, keys and values.
        device: Where they are.
        documents: Of packed rows; ``None``: every row is one document.
    """
    rows, length, heads, head_dim = shape
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return RecomputedAttention(documents)
    if documents is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
        if not deterministic and cudnn_works(device, dtype, head_dim, heads // kv_heads):
            return CudnnAttention()
        bounds = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=device)
        documents = Documents(bounds, length)
    return FlashAttention(documents)

"""Plain torch references of LoRA's down projection with dropout, and of its gradients.

LoRA is arXiv:2106.09685. Several adapters share one input ``x``; each has a dropout mask of its
own, a function of (seed, row, column) alone, so that no mask is ever stored: the hash is
MurmurHash3's 32-bit finalizer, applied to the row with the seed and again with the column.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch

_MASK32 = 0xFFFFFFFF
COLUMN_STEP = 0x9E3779B1
MIX_FIRST = 0x85EBCA6B
MIX_SECOND = 0xC2B2AE35
BITS = 24


def dropout_threshold(probability: float) -> int:
    """The ``BITS``-bit hash below which an element is dropped."""
    return round(probability * (1 << BITS))


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = value ^ (value >> 16)
    value = (value * MIX_FIRST) & _MASK32
    value = value ^ (value >> 13)
    value = (value * MIX_SECOND) & _MASK32
    return value ^ (value >> 16)


def keep_mask(seed: torch.Tensor, rows: int, columns: int, probability: float) -> torch.Tensor:
    """[rows, columns] bool: what dropout keeps.

    Args:
        seed: [] int32.
        probability: That an element is dropped, in [0, 1).
    """
    row = torch.arange(rows, dtype=torch.int64, device=seed.device)
    column = torch.arange(columns, dtype=torch.int64, device=seed.device)
    row_hash = _mix((row ^ seed.to(torch.int64)) & _MASK32)
    mixed = _mix(row_hash[:, None] ^ ((column * COLUMN_STEP) & _MASK32)[None, :])
    return (mixed >> (32 - BITS)) >= dropout_threshold(probability)


def _dropped(x: torch.Tensor, seed: torch.Tensor, probability: float) -> torch.Tensor:
    wide = x.float() if x.dtype != torch.float64 else x
    if probability == 0.0:
        return wide
    return wide * keep_mask(seed, x.shape[0], x.shape[1], probability) / (1.0 - probability)


def down_project(
    x: torch.Tensor, down: torch.Tensor, seeds: torch.Tensor, probability: float
) -> torch.Tensor:
    """``[T, n * r]``: ``dropout_j(x) @ down[j].T`` for every adapter j, side by side.

    Args:
        x: [T, K].
        down: [n, r, K], the A matrices.
        seeds: [n] int32.
        probability: Of dropout.
    """
    parts = [
        _dropped(x, seeds[index], probability) @ matrix.float().t()
        for index, matrix in enumerate(down)
    ]
    return torch.cat(parts, dim=1).to(x.dtype)


def down_gradient(
    x: torch.Tensor,
    grad: torch.Tensor,
    seeds: torch.Tensor,
    probability: float,
    rank: int,
) -> torch.Tensor:
    """``[n, r, K]`` float32: ``grad_j.T @ dropout_j(x)``, the gradient of ``down``.

    Args:
        grad: [T, n * r], the gradient of what ``down_project`` returned.
    """
    parts = [
        part.float().t() @ _dropped(x, seeds[index], probability)
        for index, part in enumerate(grad.split(rank, dim=1))
    ]
    return torch.stack(parts)


def add_input_gradient(
    grad_x: torch.Tensor,
    grad: torch.Tensor,
    down: torch.Tensor,
    seeds: torch.Tensor,
    probability: float,
) -> None:
    """``grad_x[T, K] += sum_j dropout_j(grad_j @ down[j])``, in place."""
    total = grad_x.float()
    for index, part in enumerate(grad.split(down.shape[1], dim=1)):
        product = part.float() @ down[index].float()
        total = total + _dropped(product, seeds[index], probability)
    grad_x.copy_(total)

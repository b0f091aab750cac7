"""Plain torch reference of the embedding lookup."""

from __future__ import annotations

import torch


def embed(token_ids: torch.Tensor, table: torch.Tensor, out: torch.Tensor) -> None:
    """``out[T, hidden] = table[token_ids]``, converted to the dtype of ``out``.

    Args:
        token_ids: [T] int32.
        table: [vocab, hidden].
    """
    out.copy_(table[token_ids.long()])

"""Plain torch reference of the cross-entropy whose logits become their gradient."""

from __future__ import annotations

import torch

IGNORED = -100


def cross_entropy_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``[T]`` float32 losses; ``logits`` become ``softmax(logits) - onehot(labels)`` in place.

    Args:
        logits: [T, vocab].
        labels: [T] int64; a row whose label is ``IGNORED`` has loss 0 and a gradient of zeros.
    """
    wide = logits.float()
    kept = labels != IGNORED
    target = torch.where(kept, labels, 0)
    normaliser = torch.logsumexp(wide, dim=-1)
    losses = torch.where(kept, normaliser - wide.gather(1, target[:, None])[:, 0], 0.0)
    grad = torch.exp(wide - normaliser[:, None])
    grad.scatter_add_(1, target[:, None], torch.full_like(losses, -1.0)[:, None])
    logits.copy_(grad * kept[:, None])
    return losses

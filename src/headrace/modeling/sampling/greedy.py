"""The most likely token of each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

MostLikelyTokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Logits [R, vocab] to token ids [R] int64 and [R] bool: the largest logit is finite."""


@runtime_checkable
class ChoosesMostLikely(Protocol):
    """A backend with such a function of its own."""

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``MostLikelyTokens``."""


def most_likely(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``MostLikelyTokens``; torch's own."""
    peak, token_ids = logits.max(-1)
    return token_ids, peak.isfinite()

"""The most likely token of each row, by whatever is fastest on the device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch

MostLikelyTokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Logits [R, vocab] to token ids [R] int64 and [R] bool: the largest logit is finite."""


@runtime_checkable
class ChoosesMostLikely(Protocol):
    """A backend with such a function of its own."""

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``MostLikelyTokens``."""


def most_likely_on(device: torch.device, max_rows: int) -> MostLikelyTokens:
    """Where triton is, a kernel of our own: torch's takes a row in too few programs."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from headrace.kernels.sampling.triton import MostLikely
        from headrace.kernels.triton_launch import GpuTraits

        return MostLikely(max_rows, device, GpuTraits.of(device))
    return _most_likely


def _most_likely(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    peak, token_ids = logits.max(-1)
    return token_ids, peak.isfinite()

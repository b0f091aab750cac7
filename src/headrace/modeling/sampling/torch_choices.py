"""``TokenChoices`` in torch operations, for any device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from headrace.modeling.sampling.choices import DrawParameters
from headrace.modeling.sampling.filters import (
    FilterParameters,
    draw_from_all,
    draw_from_likeliest,
)


class TorchChoices:
    """Choices in torch.

    Args:
        device: Where the logits are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [R] int64, and [R] bool: the largest logit is finite."""
        peak, token_ids = logits.max(-1)
        return token_ids, peak.isfinite()

    def draw(
        self, logits: torch.Tensor, rows: npt.NDArray[np.int64], parameters: DrawParameters
    ) -> torch.Tensor:
        """Token ids [D] int64 drawn from those ``rows`` [D] of the logits."""
        vocab_size = logits.shape[-1]
        narrow = (parameters.top_k < vocab_size) | (parameters.top_p < 1)
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        for where in (np.flatnonzero(~narrow), np.flatnonzero(narrow)):
            if not len(where):
                continue
            part = logits[self._to_device(rows[where])]
            filters = self._filters(parameters.of(where))
            if narrow[where[0]]:
                top_k = parameters.top_k[where]
                largest = int(top_k[top_k < vocab_size].max(initial=0))
                drawn = draw_from_likeliest(part, filters, largest)
            else:
                drawn = draw_from_all(part, filters)
            token_ids[self._to_device(where)] = drawn
        return token_ids

    def logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities [R] of ``token_ids``; the ``top`` likeliest ids [R, top] and theirs."""
        total = logits.logsumexp(-1, keepdim=True)
        chosen = (logits.gather(-1, token_ids[:, None]) - total)[:, 0]
        top_logits, top_ids = logits.topk(top, dim=-1)
        return chosen, top_ids, top_logits - total

    def _filters(self, parameters: DrawParameters) -> FilterParameters:
        floats = np.stack(
            (parameters.temperature, parameters.top_p, parameters.typical_p, parameters.uniform)
        )
        temperature, top_p, typical_p, uniform = self._to_device(floats)
        return FilterParameters(
            temperature,
            self._to_device(parameters.top_k),
            top_p,
            typical_p,
            uniform,
            any_typical=bool((parameters.typical_p < 1).any()),
        )

    def _to_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

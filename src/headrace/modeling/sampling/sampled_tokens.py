"""What sampling gives for a step, on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The choice for each of R rows, on the device.

    Attributes:
        token_ids: [R] int64.
        valid: [R] bool: false where the logits were not finite, the id then means nothing.
        logprobs: [R] float32 of the chosen tokens under the unchanged logits; ``None`` if no row
            asked, and without meaning for rows that did not.
        top_ids: [R, n] int64 most likely tokens, n the largest number that a row asked for;
            ``None`` if none did, and without meaning beyond a row's own number.
        top_logprobs: [R, n] float32, theirs.
    """

    token_ids: torch.Tensor
    valid: torch.Tensor
    logprobs: torch.Tensor | None
    top_ids: torch.Tensor | None
    top_logprobs: torch.Tensor | None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> SampledTokens:
        """The same with ``function`` applied to every tensor."""
        return SampledTokens(
            function(self.token_ids),
            function(self.valid),
            None if self.logprobs is None else function(self.logprobs),
            None if self.top_ids is None else function(self.top_ids),
            None if self.top_logprobs is None else function(self.top_logprobs),
        )

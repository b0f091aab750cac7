"""``TokenChoices``: from rows of logits to tokens, by whatever is fastest where the logits are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class DrawParameters:
    """How tokens are drawn, one value a draw, on the host; neutral values mean absent.

    Attributes:
        temperature: [D] float32 > 0.
        top_k: [D] int64, at least the vocabulary's size where absent.
        top_p: [D] float32, 1 where absent.
        typical_p: [D] float32, 1 where absent.
        uniform: [D] float32 in [0, 1).
    """

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float32]
    typical_p: npt.NDArray[np.float32]
    uniform: npt.NDArray[np.float32]

    def of(self, draws: npt.NDArray[np.int64]) -> DrawParameters:
        """Those of some draws."""
        return DrawParameters(
            self.temperature[draws],
            self.top_k[draws],
            self.top_p[draws],
            self.typical_p[draws],
            self.uniform[draws],
        )


class TokenChoices(Protocol):
    """The choices that a sampler makes on rows of logits [R, vocab] float32."""

    def most_likely(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [R] int64, and [R] bool: the largest logit is finite."""

    def draw(
        self, logits: torch.Tensor, rows: npt.NDArray[np.int64], parameters: DrawParameters
    ) -> torch.Tensor:
        """Token ids [D] int64 drawn from those ``rows`` [D] of the logits."""

    def logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, top: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities [R] of ``token_ids``; the ``top`` likeliest ids [R, top] and theirs."""


@runtime_checkable
class HasTokenChoices(Protocol):
    """A backend with kernels of its own for them."""

    @property
    def token_choices(self) -> TokenChoices:
        """The choices."""

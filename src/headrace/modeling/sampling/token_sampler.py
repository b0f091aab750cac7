"""The face between a model runner and whatever chooses tokens on its device."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from headrace.link.sampling import SamplingParams
from headrace.modeling.sampling.sampled_tokens import SampledTokens

Int32Array = npt.NDArray[np.int32]


class TokenSampler(Protocol):
    """Sampling state of every row of a runner."""

    def set_row(
        self,
        row: int,
        sampling: SamplingParams,
        prompt_token_ids: list[int],
        output_token_ids: list[int],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """Give ``row`` to a sequence; ``sampling.seed`` ``None`` counts as 0."""

    def clear_row(self, row: int) -> None:
        """Forget a sequence."""

    def wanted(self, row: int) -> tuple[bool, int]:
        """Whether the row's sequence asked for log-probabilities, and for how many top tokens."""

    def feed(self, token_ids: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> None:
        """``token_ids[tokens]`` = what ``rows`` sampled last; all int32 and on the device."""

    def sample(
        self,
        logits: torch.Tensor,
        rows: Int32Array,
        positions: Int32Array,
        rows_on_device: torch.Tensor,
    ) -> SampledTokens:
        """Choose a token for each row of logits.

        Args:
            logits: [R, vocab] float32; they may be changed.
            rows: [R] row of each.
            positions: [R] position in its sequence of the token to choose.
            rows_on_device: [R] int32, the same rows.
        """

    def token_logprobs(
        self, logits: torch.Tensor, first_row: int, token_ids: torch.Tensor, first: int, count: int
    ) -> torch.Tensor:
        """Log-probabilities [count] of ``token_ids[first : first + count]``, read by the next step.

        Args:
            logits: [rows, vocab] float32, of which ``first_row`` and those after it count.
            token_ids: [N] int32.
        """


@runtime_checkable
class MakesSampler(Protocol):
    """A backend with a sampler of its own."""

    def make_sampler(
        self, max_rows: int, max_length: int, max_logits: int, vocab_size: int
    ) -> TokenSampler:
        """One for a runner.

        Args:
            max_length: Longest sequence in tokens.
            max_logits: Most tokens of one step whose log-probability is asked for.
        """

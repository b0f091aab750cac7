"""Changes to one row's logits before temperature and filters: only for rows that ask."""

from __future__ import annotations

import torch

from headrace.link.sampling import SamplingParams


class TokenHistory:
    """The tokens of one sequence, on the device, for the penalties that look back.

    Args:
        prompt: Token ids of the prompt.
        generated: Token ids generated so far (not empty after a preemption).
        capacity: Longest the sequence can become.
    """

    def __init__(
        self, prompt: list[int], generated: list[int], capacity: int, device: torch.device
    ) -> None:
        known = [*prompt, *generated]
        self._tokens = torch.zeros(max(capacity, len(known)), dtype=torch.int64, device=device)
        self._tokens[: len(known)].copy_(torch.tensor(known), non_blocking=True)
        self._prompt_length = len(prompt)

    def record(self, position: int, token: torch.Tensor) -> None:
        """Note the token ([] or [1], integer) drawn for ``position``."""
        self._tokens[position] = token

    def up_to(self, position: int) -> torch.Tensor:
        """[position] tokens before ``position``."""
        return self._tokens[:position]

    def generated_up_to(self, position: int) -> torch.Tensor:
        """The generated ones among them."""
        return self._tokens[self._prompt_length : position]


def penalise(
    logits: torch.Tensor, sampling: SamplingParams, history: TokenHistory, position: int
) -> None:
    """Apply repetition, frequency and presence penalties to one row [vocab] in place.

    The tokens of the sequence are visited rather than the vocabulary. Indices repeat where tokens
    do: gathers come before scatters, so that each token is changed once, and only the frequency
    penalty accumulates.
    """
    if sampling.repetition_penalty != 1.0:
        seen = history.up_to(position)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    generated = history.generated_up_to(position)
    if sampling.frequency_penalty != 0.0:
        step = torch.full_like(generated, -sampling.frequency_penalty, dtype=logits.dtype)
        logits.index_add_(0, generated, step)
    if sampling.presence_penalty != 0.0:
        logits[generated] = logits[generated] - sampling.presence_penalty

"""What a step gave: on the device while it is pending, then on the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from headrace.link.messages import TokenLogprob
from headrace.modeling.sampling.sampled_tokens import SampledTokens


@dataclass(slots=True)
class StepResult:
    """What a step gave. Sampled tokens are numbered in the order of the batch.

    Attributes:
        token_ids: One for each entry of the batch that samples.
        invalid: Numbers of sampled tokens whose logits were not finite; their id means nothing.
        logprobs: Number of a sampled token to its log-probability, for rows that asked.
        top_tokens: Number of a sampled token to the most likely ones, for rows that asked.
        prompt_logprobs: Index of an entry in the batch to the log-probabilities of the prompt
            tokens that follow its tokens, for rows that asked: positions ``start + 1`` on.
    """

    token_ids: list[int]
    invalid: list[int] = field(default_factory=list)
    logprobs: dict[int, float] = field(default_factory=dict)
    top_tokens: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens, on the device.

    Attributes:
        entries: Index in the batch of each entry that wants them, and how many.
        parts: [n] float32 each; in order and end to end they are those of all entries.
    """

    entries: list[tuple[int, int]]
    parts: list[torch.Tensor]

    def to_host(self) -> PromptLogprobs:
        """A copy on the host, complete once the stream's later event has passed."""
        return PromptLogprobs(self.entries, [_to_host(part) for part in self.parts])

    def by_entry(self) -> dict[int, list[float]]:
        """Lists by index in the batch."""
        flat = [value for part in self.parts for value in part.tolist()]
        result: dict[int, list[float]] = {}
        start = 0
        for entry, count in self.entries:
            result[entry] = flat[start : start + count]
            start += count
        return result


class PendingStep:
    """A launched step; its sampled ids are already where the next step looks for them.

    Every step is waited for, also one that samples nothing: its inputs lie in a staging buffer
    that the host writes again two steps later.
    """

    def __init__(
        self,
        device: torch.device,
        sampled: SampledTokens | None,
        wanted: list[tuple[bool, int]],
        prompt_logprobs: PromptLogprobs,
    ) -> None:
        self._wanted = wanted
        self._prompt_logprobs = prompt_logprobs.to_host()
        self._sampled = None if sampled is None else sampled.map(_to_host)
        self._done: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> StepResult:
        """Block until the step is computed; then its result."""
        if self._done is not None:
            self._done.synchronize()
        prompt = self._prompt_logprobs.by_entry()
        sampled = self._sampled
        if sampled is None:
            return StepResult([], prompt_logprobs=prompt)
        result = StepResult(sampled.token_ids.tolist(), prompt_logprobs=prompt)
        valid = sampled.valid.numpy()
        if not valid.all():
            result.invalid = np.flatnonzero(~valid).tolist()
        if sampled.logprobs is not None:
            for number, (asked, top_n) in enumerate(self._wanted):
                if asked:
                    result.logprobs[number] = float(sampled.logprobs[number])
                if top_n and sampled.top_ids is not None and sampled.top_logprobs is not None:
                    result.top_tokens[number] = [
                        TokenLogprob(token, logprob)
                        for token, logprob in zip(
                            sampled.top_ids[number, :top_n].tolist(),
                            sampled.top_logprobs[number, :top_n].tolist(),
                            strict=True,
                        )
                    ]
        return result


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the host, complete once the stream's later event has passed."""
    if not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)

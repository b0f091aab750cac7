"""``Sampler``: what each row asked for, and the choice of one token for each of a batch of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from headrace.link.sampling import SamplingParams
from headrace.modeling.sampling.filters import (
    FilterParameters,
    draw_from_all,
    draw_from_likeliest,
)
from headrace.modeling.sampling.greedy import MostLikelyTokens, most_likely
from headrace.modeling.sampling.penalties import TokenHistory, penalise
from headrace.modeling.sampling.sampled_tokens import SampledTokens
from headrace.modeling.sampling.uniform import uniforms

_Int32Array = npt.NDArray[np.int32]
_TEMPERATURE, _TOP_P, _TYPICAL_P, _UNIFORM = range(4)


class Sampler:
    """Sampling state of every row.

    Args:
        max_rows: Number of rows.
        max_length: Longest sequence in tokens.
        vocab_size: Number of logits.
        device: Where the logits are.
        own_choice: The greedy choice; ``None``: torch's.
    """

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        vocab_size: int,
        device: torch.device,
        own_choice: MostLikelyTokens | None = None,
    ) -> None:
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._device = device
        self._most_likely = own_choice or most_likely
        self._last_token = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._params: list[SamplingParams | None] = [None] * max_rows
        self._histories: dict[int, TokenHistory] = {}
        self._banned_until: dict[int, tuple[int, torch.Tensor]] = {}
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._seeds = np.zeros(max_rows, dtype=np.uint64)
        self._values = np.ones((max_rows, 4), dtype=np.float32)
        self._top_k = np.full(max_rows, vocab_size, dtype=np.int64)
        self._top_n = np.zeros(max_rows, dtype=np.int32)
        self._draws = np.zeros(max_rows, dtype=bool)
        self._narrow = np.zeros(max_rows, dtype=bool)
        self._altered = np.zeros(max_rows, dtype=bool)
        self._logprobs = np.zeros(max_rows, dtype=bool)

    def set_row(
        self,
        row: int,
        sampling: SamplingParams,
        prompt_token_ids: list[int],
        output_token_ids: list[int],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """Give ``row`` to a sequence; ``sampling.seed`` ``None`` counts as 0."""
        self.clear_row(row)
        self._params[row] = sampling
        self._seeds[row] = sampling.seed or 0
        self._values[row, _TEMPERATURE] = sampling.temperature
        self._values[row, _TOP_P] = 1.0 if sampling.top_p is None else sampling.top_p
        self._values[row, _TYPICAL_P] = 1.0 if sampling.typical_p is None else sampling.typical_p
        self._top_k[row] = min(sampling.top_k or self._vocab_size, self._vocab_size)
        self._top_n[row] = min(sampling.top_n_tokens, self._vocab_size)
        self._logprobs[row] = sampling.logprobs
        self._draws[row] = sampling.do_sample
        self._narrow[row] = self._top_k[row] < self._vocab_size or self._values[row, _TOP_P] < 1.0
        if (
            sampling.repetition_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0
        ):
            self._histories[row] = TokenHistory(
                prompt_token_ids, output_token_ids, self._max_length, self._device
            )
        if sampling.min_new_tokens > len(output_token_ids) and eos_token_ids:
            until = len(prompt_token_ids) + sampling.min_new_tokens
            self._banned_until[row] = until, self._ids(list(eos_token_ids))
        if sampling.logit_bias:
            values = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
            on_device = values.to(self._device, non_blocking=True)
            self._bias[row] = self._ids(list(sampling.logit_bias)), on_device
        self._altered[row] = (
            row in self._histories or row in self._banned_until or row in self._bias
        )

    def clear_row(self, row: int) -> None:
        """Forget a sequence."""
        self._params[row] = None
        self._histories.pop(row, None)
        self._banned_until.pop(row, None)
        self._bias.pop(row, None)
        self._altered[row] = self._draws[row] = False

    def wanted(self, row: int) -> tuple[bool, int]:
        """Whether the row's sequence asked for log-probabilities, and for how many top tokens."""
        return bool(self._logprobs[row]), int(self._top_n[row])

    def feed(self, token_ids: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> None:
        """``token_ids[tokens]`` = what ``rows`` sampled last; all int32 and on the device."""
        token_ids[tokens] = self._last_token[rows]

    def token_logprobs(
        self, logits: torch.Tensor, first_row: int, token_ids: torch.Tensor, first: int, count: int
    ) -> torch.Tensor:
        """Log-probabilities [count] of ``token_ids[first : first + count]`` int32.

        Args:
            logits: [rows, vocab] float32, of which ``first_row`` and those after it count.
        """
        part, chosen = logits[first_row : first_row + count], token_ids[first : first + count]
        return part.gather(-1, chosen[:, None].long())[:, 0] - part.logsumexp(-1)

    def sample(
        self,
        logits: torch.Tensor,
        rows: _Int32Array,
        positions: _Int32Array,
        rows_on_device: torch.Tensor,
    ) -> SampledTokens:
        """Choose a token for each row of logits.

        Args:
            logits: [R, vocab] float32; left as they are.
            rows: [R] row of each.
            positions: [R] position in its sequence of the token to choose.
            rows_on_device: [R] int32, the same rows.
        """
        token_ids, valid = self._most_likely(logits)
        special = self._draws[rows] | self._altered[rows]
        if special.any():
            where = np.flatnonzero(special)
            chosen = self._choose(logits[self._ids(where.tolist())], rows[where], positions[where])
            token_ids[self._ids(where.tolist())] = chosen
        self._last_token[rows_on_device] = token_ids.int()
        logprobs = top_ids = top_logprobs = None
        top_n = int(self._top_n[rows].max())
        if top_n or self._logprobs[rows].any():
            total = logits.logsumexp(-1, keepdim=True)
            logprobs = (logits.gather(-1, token_ids[:, None]) - total)[:, 0]
            if top_n:
                top_logits, top_ids = logits.topk(top_n, dim=-1)
                top_logprobs = top_logits - total
        return SampledTokens(token_ids, valid, logprobs, top_ids, top_logprobs)

    def _choose(
        self, logits: torch.Tensor, rows: _Int32Array, positions: _Int32Array
    ) -> torch.Tensor:
        """Token ids [R] of rows with more than an argmax to do; ``logits`` is overwritten."""
        for index in np.flatnonzero(self._altered[rows]).tolist():
            self._alter(logits[index], int(rows[index]), int(positions[index]))
        token_ids = logits.argmax(-1)
        draws, narrow = self._draws[rows], self._narrow[rows]
        for where in (np.flatnonzero(draws & ~narrow), np.flatnonzero(draws & narrow)):
            if not len(where):
                continue
            index = self._ids(where.tolist())
            part = logits if len(where) == len(rows) else logits[index]
            parameters = self._parameters(rows[where], positions[where])
            if narrow[where[0]]:
                top_k = self._top_k[rows[where]]
                largest = int(top_k[top_k < self._vocab_size].max(initial=0))
                token_ids[index] = draw_from_likeliest(part, parameters, largest)
            else:
                token_ids[index] = draw_from_all(part, parameters)
        for index_of_row in np.flatnonzero(self._altered[rows]).tolist():
            history = self._histories.get(int(rows[index_of_row]))
            if history is not None:
                history.record(int(positions[index_of_row]), token_ids[index_of_row])
        return token_ids

    def _alter(self, logits: torch.Tensor, row: int, position: int) -> None:
        """Bias, forbidden ends and penalties on one row [vocab], in place."""
        if row in self._bias:
            ids, values = self._bias[row]
            logits.index_add_(0, ids, values)
        if row in self._banned_until:
            until, ends = self._banned_until[row]
            if position < until:
                logits[ends] = float("-inf")
        sampling, history = self._params[row], self._histories.get(row)
        if history is not None and sampling is not None:
            penalise(logits, sampling, history, position)

    def _parameters(self, rows: _Int32Array, positions: _Int32Array) -> FilterParameters:
        values = self._values[rows]
        values[:, _UNIFORM] = uniforms(self._seeds[rows], positions)
        on_device = torch.from_numpy(values).to(self._device, non_blocking=True)
        return FilterParameters(
            temperature=on_device[:, _TEMPERATURE],
            top_k=torch.from_numpy(self._top_k[rows]).to(self._device, non_blocking=True),
            top_p=on_device[:, _TOP_P],
            typical_p=on_device[:, _TYPICAL_P],
            uniform=on_device[:, _UNIFORM],
            any_typical=bool((values[:, _TYPICAL_P] < 1).any()),
        )

    def _ids(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64).to(self._device, non_blocking=True)

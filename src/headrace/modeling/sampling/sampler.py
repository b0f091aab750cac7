"""``Sampler``: what each row asked for, and the choice of one token for each of a batch of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from headrace.link.sampling import SamplingParams
from headrace.modeling.sampling.choices import DrawParameters, TokenChoices
from headrace.modeling.sampling.penalties import TokenHistory, penalise
from headrace.modeling.sampling.sampled_tokens import SampledTokens
from headrace.modeling.sampling.torch_choices import TorchChoices
from headrace.modeling.sampling.uniform import uniforms

_Int32Array = npt.NDArray[np.int32]
_Int64Array = npt.NDArray[np.int64]


class Sampler:
    """Sampling state of every row.

    Args:
        max_rows: Number of rows.
        max_length: Longest sequence in tokens.
        vocab_size: Number of logits.
        device: Where the logits are.
        choices: How tokens are chosen; ``None``: by torch.
    """

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        vocab_size: int,
        device: torch.device,
        choices: TokenChoices | None = None,
    ) -> None:
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._device = device
        self._choices = choices or TorchChoices(device)
        self._last_token = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._on_host = device.type == "cpu"
        self._params: list[SamplingParams | None] = [None] * max_rows
        self._histories: dict[int, TokenHistory] = {}
        self._banned_until: dict[int, tuple[int, torch.Tensor]] = {}
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._seeds = np.zeros(max_rows, dtype=np.uint64)
        self._temperature = np.ones(max_rows, dtype=np.float32)
        self._top_p = np.ones(max_rows, dtype=np.float32)
        self._typical_p = np.ones(max_rows, dtype=np.float32)
        self._top_k = np.full(max_rows, vocab_size, dtype=np.int64)
        self._top_n = np.zeros(max_rows, dtype=np.int32)
        self._draws = np.zeros(max_rows, dtype=bool)
        self._altered = np.zeros(max_rows, dtype=bool)
        self._logprobs = np.zeros(max_rows, dtype=bool)
        # Whether a row wants more than its most likely token: most steps have none.
        self._special = np.zeros(max_rows, dtype=bool)

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
        self._temperature[row] = sampling.temperature
        self._top_p[row] = 1.0 if sampling.top_p is None else sampling.top_p
        self._typical_p[row] = 1.0 if sampling.typical_p is None else sampling.typical_p
        self._top_k[row] = min(sampling.top_k or self._vocab_size, self._vocab_size)
        self._top_n[row] = min(sampling.top_n_tokens, self._vocab_size)
        self._logprobs[row] = sampling.logprobs
        self._draws[row] = sampling.do_sample
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
        self._special[row] = (
            self._draws[row] or self._altered[row] or self._logprobs[row] or self._top_n[row] > 0
        )

    def clear_row(self, row: int) -> None:
        """Forget a sequence."""
        self._params[row] = None
        self._histories.pop(row, None)
        self._banned_until.pop(row, None)
        self._bias.pop(row, None)
        self._altered[row] = self._draws[row] = self._special[row] = False

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
        return self._choices.logprobs(part, chosen.long(), 0)[0]

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
        token_ids, valid = self._choices.most_likely(logits)
        if not self._special[rows].any():
            self._remember(rows, rows_on_device, token_ids)
            return SampledTokens(token_ids, valid, None, None, None)
        draws, altered = self._draws[rows], self._altered[rows]
        drawn = np.flatnonzero(draws & ~altered)
        if len(drawn):
            parameters = self._parameters(rows[drawn], positions[drawn])
            self._put(token_ids, drawn, self._choices.draw(logits, drawn, parameters))
        changed = np.flatnonzero(altered)
        if len(changed):
            part = logits[self._ids(changed.tolist())]
            chosen = self._choose_altered(part, rows[changed], positions[changed])
            self._put(token_ids, changed, chosen)
        self._remember(rows, rows_on_device, token_ids)
        logprobs = top_ids = top_logprobs = None
        top_n = int(self._top_n[rows].max())
        if top_n or self._logprobs[rows].any():
            logprobs, top_ids, top_logprobs = self._choices.logprobs(logits, token_ids, top_n)
        return SampledTokens(
            token_ids,
            valid,
            logprobs,
            top_ids if top_n else None,
            top_logprobs if top_n else None,
        )

    def _choose_altered(
        self, logits: torch.Tensor, rows: _Int32Array, positions: _Int32Array
    ) -> torch.Tensor:
        """Token ids [R] of rows with bias, forbidden ends or penalties; overwrites ``logits``."""
        for index, (row, position) in enumerate(
            zip(rows.tolist(), positions.tolist(), strict=True)
        ):
            self._alter(logits[index], row, position)
        token_ids = logits.argmax(-1)
        drawn = np.flatnonzero(self._draws[rows])
        if len(drawn):
            parameters = self._parameters(rows[drawn], positions[drawn])
            self._put(token_ids, drawn, self._choices.draw(logits, drawn, parameters))
        for index, (row, position) in enumerate(
            zip(rows.tolist(), positions.tolist(), strict=True)
        ):
            history = self._histories.get(row)
            if history is not None:
                history.record(position, token_ids[index])
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

    def _parameters(self, rows: _Int32Array, positions: _Int32Array) -> DrawParameters:
        return DrawParameters(
            temperature=self._temperature[rows],
            top_k=self._top_k[rows],
            top_p=self._top_p[rows],
            typical_p=self._typical_p[rows],
            uniform=uniforms(self._seeds[rows], positions),
        )

    def _remember(
        self, rows: _Int32Array, rows_on_device: torch.Tensor, token_ids: torch.Tensor
    ) -> None:
        if self._on_host:
            self._last_token.numpy()[rows] = token_ids.numpy()
        else:
            self._last_token[rows_on_device] = token_ids.int()

    def _put(self, token_ids: torch.Tensor, where: _Int64Array, chosen: torch.Tensor) -> None:
        token_ids[self._ids(where.tolist())] = chosen

    def _ids(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64).to(self._device, non_blocking=True)

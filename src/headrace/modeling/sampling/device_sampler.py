"""Sampling on a GPU by kernels of our own, over memory that is taken once.

The same choices as ``Sampler``, row by row. What a row asked for lies in a table on the host, of
which a step sends the rows that it samples; how often each token of a sequence occurs, its bias and
its forbidden tokens lie on the device from ``set_row`` on.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
import triton

from headrace.kernels.sampling import row_parameters as words
from headrace.kernels.sampling.triton import MostLikely
from headrace.kernels.sampling.triton_draw import draw_kernel
from headrace.kernels.sampling.triton_logprobs import logprob_kernel
from headrace.kernels.sampling.triton_rows import count_kernel, feed_kernel
from headrace.kernels.triton_launch import GpuTraits
from headrace.link.sampling import MOST_TOP_TOKENS, SamplingParams
from headrace.modeling.sampling.sampled_tokens import SampledTokens
from headrace.modeling.sampling.uniform import uniforms

_Int32Array = npt.NDArray[np.int32]

_IN_PROMPT, _MOST_COUNTED = 0x8000, 0x7FFF
_NEAR = 4096
_WARPS = 16


class DeviceSampler:
    """Sampling state of every row, on a GPU.

    Args:
        max_rows: Number of rows.
        max_length: Longest sequence in tokens.
        max_logits: Most rows of logits whose log-probabilities are asked for in one step.
        vocab_size: Number of logits.
        block: Logits that a program takes at once.
    """

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        max_logits: int,
        vocab_size: int,
        device: torch.device,
        traits: GpuTraits,
        block: int = 4096,
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._traits = traits
        self._block = block
        self._most_likely = MostLikely(max_rows, device, traits)
        self._last_tokens = self._zeros(torch.int32, max_rows)
        self._counts = self._zeros(torch.int16, max_rows, vocab_size)
        self._changed = [self._zeros(torch.int32, min(max_length, vocab_size)) for _ in range(2)]
        adjustments = max_rows, words.MOST_ADJUSTMENTS
        self._adjusted_ids = self._zeros(torch.int32, *adjustments)
        self._adjusted_by = self._zeros(torch.float32, *adjustments)
        self._adjusted_from = self._zeros(torch.float32, *adjustments)
        self._log_totals = self._zeros(torch.float32, max_rows)
        self._logprobs = self._zeros(torch.float32, max_rows)
        self._prompt_logprobs = self._zeros(torch.float32, max_logits)
        most_top = min(MOST_TOP_TOKENS, vocab_size)
        self._top_ids = self._zeros(torch.int64, max_rows, most_top)
        self._top_logprobs = self._zeros(torch.float32, max_rows, most_top)
        self._near_values = self._zeros(torch.float32, max_rows, _NEAR)
        self._near_ids = self._zeros(torch.int32, max_rows, _NEAR)
        self._parameters = self._zeros(torch.int32, max_rows, words.COLUMNS)
        # Two in turn: a step is written while the transfer of the one before may be under way.
        pinned = device.type == "cuda"
        self._staging = [
            torch.zeros(max_rows, words.COLUMNS, dtype=torch.int32, pin_memory=pinned)
            for _ in range(2)
        ]
        self._turn = 0
        self._table = np.zeros((max_rows, words.COLUMNS), dtype=np.int32)
        self._reals = self._table.view(np.float32)
        self._table[:, words.ROW] = np.arange(max_rows)
        self._seeds = np.zeros(max_rows, dtype=np.uint64)
        self._banned_until = np.zeros(max_rows, dtype=np.int32)

    def _zeros(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self._device)

    def set_row(
        self,
        row: int,
        sampling: SamplingParams,
        prompt_token_ids: list[int],
        output_token_ids: list[int],
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """Give ``row`` to a sequence; ``sampling.seed`` ``None`` counts as 0.

        Raises:
            ValueError: More tokens are biased or forbidden than a row has place for.
        """
        table, reals = self._table[row], self._reals[row]
        flags = words.DRAWS if sampling.do_sample else 0
        flags |= words.LOGPROB if sampling.logprobs else 0
        table[words.TOP_K] = min(sampling.top_k or self._vocab_size, self._vocab_size)
        table[words.TOP_N] = min(sampling.top_n_tokens, self._vocab_size)
        reals[words.TEMPERATURE] = sampling.temperature
        reals[words.TOP_P] = 1.0 if sampling.top_p is None else sampling.top_p
        reals[words.TYPICAL_P] = 1.0 if sampling.typical_p is None else sampling.typical_p
        reals[words.REPETITION] = sampling.repetition_penalty
        reals[words.FREQUENCY] = sampling.frequency_penalty
        reals[words.PRESENCE] = sampling.presence_penalty
        self._seeds[row] = sampling.seed or 0
        if (
            sampling.repetition_penalty != 1.0
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0
        ):
            flags |= words.PENALISED
            self._count(row, prompt_token_ids, output_token_ids)
        bans: list[int] = []
        self._banned_until[row] = 0
        if sampling.min_new_tokens > len(output_token_ids):
            bans = list(eos_token_ids)
            self._banned_until[row] = len(prompt_token_ids) + sampling.min_new_tokens
        flags |= words.BIASED if sampling.logit_bias else 0
        table[words.FLAGS] = flags
        self._adjust(row, sampling.logit_bias, bans)

    def _count(self, row: int, prompt: list[int], output: list[int]) -> None:
        """Write how often tokens occur; from then on the drawing kernel keeps count."""
        occurrences = {token: min(n, _MOST_COUNTED) for token, n in Counter(output).items()}
        for token in set(prompt):
            occurrences[token] = occurrences.get(token, 0) | _IN_PROMPT
        ids, counts = self._changed
        length = len(occurrences)
        for target, values in ((ids, occurrences), (counts, occurrences.values())):
            # From pageable memory, which the driver has read when this returns.
            source = torch.tensor(list(values), dtype=torch.int32)
            target[:length].copy_(source, non_blocking=True)
        count_kernel[(1,)](
            self._counts,
            row,
            ids,
            counts,
            length,
            self._vocab_size,
            BLOCK=self._block,
            num_warps=_WARPS,
            **self._traits.launch_options(),
        )

    def _adjust(self, row: int, bias: dict[int, float], bans: list[int]) -> None:
        total = len(bias) + len(bans)
        if total > words.MOST_ADJUSTMENTS:
            raise ValueError(
                f"{len(bias)} tokens with a bias and {len(bans)} forbidden ones: at most "
                f"{words.MOST_ADJUSTMENTS} together"
            )
        self._table[row, words.NUM_BIASED] = len(bias)
        self._table[row, words.NUM_BANNED] = len(bans)
        if total:
            ids = torch.tensor([*bias, *bans], dtype=torch.int32)
            self._adjusted_ids[row, :total].copy_(ids, non_blocking=True)
        if bias:
            by = torch.tensor(list(bias.values()), dtype=torch.float32)
            self._adjusted_by[row, : len(bias)].copy_(by, non_blocking=True)

    def clear_row(self, row: int) -> None:
        """Forget a sequence."""
        self._table[row, words.FLAGS] = 0
        self._table[row, words.TOP_N] = 0

    def wanted(self, row: int) -> tuple[bool, int]:
        """Whether the row's sequence asked for log-probabilities, and for how many top tokens."""
        flags, top_n = self._table[row, words.FLAGS], self._table[row, words.TOP_N]
        return bool(flags & words.LOGPROB), int(top_n)

    def feed(self, token_ids: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> None:
        """``token_ids[tokens]`` = what ``rows`` sampled last; all int32."""
        feed_kernel[(triton.cdiv(len(tokens), 256),)](
            token_ids,
            tokens,
            rows,
            self._last_tokens,
            len(tokens),
            BLOCK=256,
            num_warps=4,
            **self._traits.launch_options(),
        )

    def sample(
        self,
        logits: torch.Tensor,
        rows: _Int32Array,
        positions: _Int32Array,
        rows_on_device: torch.Tensor,
    ) -> SampledTokens:
        """Choose a token for each row of logits; what it returns is overwritten by the next step.

        Args:
            logits: [R, vocab] float32; bias and bans are written into them.
            rows: [R] row of each.
            positions: [R] position in its sequence of the token to choose.
            rows_on_device: [R] int32, the same rows.
        """
        count = len(rows)
        found = self._most_likely
        found.find(logits, rows_on_device, self._last_tokens)
        flags = self._table[rows, words.FLAGS]
        banned = positions < self._banned_until[rows]
        top_n = int(self._table[rows, words.TOP_N].max())
        tells = bool(top_n or (flags & words.LOGPROB).any())
        draws = bool(((flags & ~words.LOGPROB) != 0).any() or banned.any())
        if tells or draws:
            self._send(rows, positions, banned)
        if tells:
            self._tell(logits, 0, found.token_ids, 0, count, self._logprobs, sampled=True)
        if draws:
            self._draw(logits)
        return SampledTokens(
            found.token_ids[:count],
            found.finite[:count],
            self._logprobs[:count] if tells else None,
            self._top_ids[:count, :top_n] if top_n else None,
            self._top_logprobs[:count, :top_n] if top_n else None,
        )

    def token_logprobs(
        self, logits: torch.Tensor, first_row: int, token_ids: torch.Tensor, first: int, count: int
    ) -> torch.Tensor:
        """Log-probabilities [count] of ``token_ids[first : first + count]``; see ``TokenSampler``.

        They lie in one buffer for all ``first`` of a step, which the next step overwrites.
        """
        self._tell(logits, first_row, token_ids, first, count, self._prompt_logprobs, sampled=False)
        return self._prompt_logprobs[first : first + count]

    def _send(
        self, rows: _Int32Array, positions: _Int32Array, banned: npt.NDArray[np.bool_]
    ) -> None:
        self._turn = (self._turn + 1) % len(self._staging)
        staging = self._staging[self._turn][: len(rows)]
        written = staging.numpy()
        np.take(self._table, rows, axis=0, out=written)
        written[banned, words.FLAGS] |= words.BANNED
        reals = written.view(np.float32)
        reals[:, words.UNIFORM] = uniforms(self._seeds[rows], positions)
        self._parameters[: len(rows)].copy_(staging, non_blocking=True)

    def _tell(
        self,
        logits: torch.Tensor,
        first_row: int,
        token_ids: torch.Tensor,
        first: int,
        count: int,
        out: torch.Tensor,
        *,
        sampled: bool,
    ) -> None:
        logprob_kernel[(count,)](
            logits,
            first_row,
            token_ids,
            first,
            self._parameters,
            self._log_totals,
            out,
            self._top_ids,
            self._top_logprobs,
            self._vocab_size,
            logits.stride(0),
            self._top_ids.stride(0),
            COLUMNS=words.COLUMNS,
            SAMPLED=sampled,
            LANES=self._block,
            DEPTH=triton.next_power_of_2(triton.cdiv(self._vocab_size, self._block)),
            num_warps=_WARPS,
            **self._traits.launch_options(),
        )

    def _draw(self, logits: torch.Tensor) -> None:
        found = self._most_likely
        draw_kernel[(logits.shape[0],)](
            logits,
            self._parameters,
            self._parameters.view(torch.float32),
            found.token_ids,
            found.finite,
            self._last_tokens,
            self._counts,
            self._adjusted_ids,
            self._adjusted_by,
            self._adjusted_from,
            self._log_totals,
            self._logprobs,
            self._near_values,
            self._near_ids,
            self._vocab_size,
            logits.stride(0),
            COLUMNS=words.COLUMNS,
            NEAR=_NEAR,
            CHUNKS=triton.next_power_of_2(triton.cdiv(self._vocab_size, self._block)),
            BLOCK=self._block,
            num_warps=_WARPS,
            **self._traits.launch_options(),
        )

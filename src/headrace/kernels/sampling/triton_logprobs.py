"""Log-probabilities of chosen tokens and the most likely tokens, one program a row.

A lane of the program keeps the largest of the logits that it has seen (those of its residue
class); the most likely tokens are taken from the lanes one after the other, each time refilling one
lane, so that the row is read twice however many are asked for.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.sampling.row_parameters import LOGPROB
from headrace.kernels.triton_launch import start_dependents, wait_for_inputs

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_LOGPROB: tl.constexpr = tl.constexpr(LOGPROB)
_NO_TOKEN: tl.constexpr = tl.constexpr(2147483647)


@triton.jit(do_not_specialize=["first_row", "first"])
def logprob_kernel(
    logits,
    first_row,
    token_ids,
    first,
    parameters,
    log_totals,
    logprobs,
    top_ids,
    top_logprobs,
    vocab_size,
    logits_stride,
    top_stride,
    COLUMNS: tl.constexpr,
    SAMPLED: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,).

    Args:
        logits: [first_row + R, vocab_size] float32; ``LANES * DEPTH`` covers a row.
        token_ids: [first + R] int64 with ``SAMPLED``, else int32: whose log-probability is told.
        parameters: [R, COLUMNS] int32, see ``row_parameters``; read with ``SAMPLED`` only, where
            rows that want nothing are passed over.
        log_totals: [R] float32: log of the sum of exponentials; written with ``SAMPLED`` only.
        logprobs: [first + R] float32.
        top_ids: [R, n] int64: the most likely tokens, of equals the first by id.
        top_logprobs: [R, n] float32.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    number = tl.program_id(0)
    wanted = True
    top_n = 0
    if SAMPLED:
        top_n = tl.load(parameters + number * COLUMNS + 3)
        wanted = (top_n > 0) | ((tl.load(parameters + number * COLUMNS) & _LOGPROB) != 0)
    if wanted:
        lane = tl.arange(0, LANES)
        source = logits + (first_row + number).to(tl.int64) * logits_stride
        peaks = tl.full([LANES], float("-inf"), tl.float32)
        ids = tl.full([LANES], _NO_TOKEN, tl.int32)
        for start in range(0, vocab_size, LANES):
            index = start + lane
            value = tl.load(source + index, mask=index < vocab_size, other=float("-inf"))
            better = (value > peaks) | ((ids == _NO_TOKEN) & (index < vocab_size))
            peaks = tl.where(better, value, peaks)
            ids = tl.where(better, index, ids)
        peak = tl.max(peaks, axis=0)
        sums = tl.zeros([LANES], tl.float32)
        for start in range(0, vocab_size, LANES):
            index = start + lane
            value = tl.load(source + index, mask=index < vocab_size, other=float("-inf"))
            sums += tl.exp2((value - peak) * _LOG2_E)
        log_total = peak + tl.log2(tl.sum(sums, axis=0)) * _LN_2
        token = tl.load(token_ids + first + number).to(tl.int32)
        token = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
        tl.store(logprobs + first + number, tl.load(source + token) - log_total)
        if SAMPLED:
            tl.store(log_totals + number, log_total)
            depth = tl.arange(0, DEPTH)
            for place in range(0, top_n):
                best = tl.max(peaks, axis=0)
                token = tl.min(tl.where(peaks == best, ids, _NO_TOKEN), axis=0)
                token = tl.minimum(token, vocab_size - 1)
                tl.store(top_ids + number.to(tl.int64) * top_stride + place, token.to(tl.int64))
                tl.store(top_logprobs + number.to(tl.int64) * top_stride + place, best - log_total)
                index = token % LANES + depth * LANES
                value = tl.load(source + index, mask=index < vocab_size, other=float("-inf"))
                left = (value < best) | ((value == best) & (index > token))
                left = left & (index < vocab_size)
                value = tl.where(left, value, float("-inf"))
                refill = tl.max(value, axis=0)
                refill_id = tl.min(tl.where(left & (value == refill), index, _NO_TOKEN), axis=0)
                mine = lane == token % LANES
                peaks = tl.where(mine, refill, peaks)
                ids = tl.where(mine, refill_id, ids)

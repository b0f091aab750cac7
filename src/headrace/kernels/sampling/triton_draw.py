"""One token a row under temperature, top-k, top-p, typical-p, penalties, bias: one program a row.

Nothing is sorted and no row is copied. Each filter keeps the tokens whose key is small (the
negated logit for top-k and top-p, the distance from the expected information for typical-p) until
their weight reaches what was asked for; the last key kept is found by narrowing an interval around
it with three pivots a pass over the row, which lies in the L2 cache. It ends when the interval
holds one key only, so the threshold is exact. The idea of searching a pivot instead of sorting is
FlashInfer's (Ye et al., "Sorting-Free GPU Kernels for LLM Sampling", 2025).

Ties: top-k keeps every token whose logit equals the last one; top-p and typical-p keep the first of
equals by token id, as many as are needed. Tokens more than 40 nats less likely than the most likely
one count as impossible.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.sampling.row_parameters import (
    BANNED,
    BIASED,
    DRAWS,
    LOGPROB,
    MOST_ADJUSTMENTS,
    PENALISED,
)
from headrace.kernels.triton_launch import start_dependents, wait_for_inputs

_COUNT: tl.constexpr = tl.constexpr(0)
_MASS: tl.constexpr = tl.constexpr(1)
_DISTANCE: tl.constexpr = tl.constexpr(2)
_NATS: tl.constexpr = tl.constexpr(40.0)
_MOST_PASSES: tl.constexpr = tl.constexpr(64)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_DRAWS: tl.constexpr = tl.constexpr(DRAWS)
_PENALISED: tl.constexpr = tl.constexpr(PENALISED)
_BIASED: tl.constexpr = tl.constexpr(BIASED)
_BANNED: tl.constexpr = tl.constexpr(BANNED)
_LOGPROB: tl.constexpr = tl.constexpr(LOGPROB)
_ADJUSTMENTS: tl.constexpr = tl.constexpr(MOST_ADJUSTMENTS)


@triton.jit
def _penalised(value, count, repetition, frequency, presence):
    """Penalties on logits whose tokens' counts are as ``row_counts`` holds them."""
    seen = count != 0
    outputs = count & 0x7FFF
    value = tl.where(seen, tl.where(value > 0, value / repetition, value * repetition), value)
    value = value - frequency * outputs.to(tl.float32)
    return tl.where(outputs > 0, value - presence, value)


@triton.jit
def _logits(row, index):
    """Logits of a row at ``index``, with its penalties.

    Args:
        row: Where its logits and its counts lie, how many there are, whether they are penalised,
            and where the repetition, frequency and presence penalties lie.
    """
    source, counts, length, penalised, penalties = row
    value = tl.load(source + index, mask=index < length, other=float("-inf"))
    if penalised:
        count = tl.load(counts + index, mask=index < length, other=0).to(tl.int32)
        value = _penalised(
            value, count, tl.load(penalties), tl.load(penalties + 1), tl.load(penalties + 2)
        )
    return value


@triton.jit
def _key_and_weight(value, index, kept, KIND: tl.constexpr):
    """What a filter orders tokens by and adds up; excluded tokens have no weight.

    Args:
        kept: The largest logit; 1 / temperature in bits; what was kept so far, which is logits
            above a floor, and equal to it up to an index; the mean exponent of typical-p.
    """
    peak, scale, floor, cut, centre = kept
    key = -value
    if KIND == _COUNT:
        weight = tl.where(value > float("-inf"), 1.0, 0.0)
    else:
        exponent = (value - peak) * scale
        inside = (value > floor) | ((value == floor) & (index <= cut))
        weight = tl.where(inside, tl.exp2(exponent), 0.0)
        if KIND == _DISTANCE:
            key = tl.abs(exponent - centre)
        key = tl.where(inside, key, float("inf"))
    return key, weight


@triton.jit
def _threshold(row, kept, low, high, target, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Smallest key at or below which weights reach ``target``; ``high`` if they never do.

    Args:
        low: Below every key.
        high: Where the search begins from above.
    """
    lane = tl.arange(0, BLOCK)
    length = row[2]
    passes = 0
    while passes < _MOST_PASSES:
        quarter = (high - low) * 0.25
        first, second, third = low + quarter, low + 2.0 * quarter, low + 3.0 * quarter
        to_first = tl.zeros([BLOCK], tl.float32)
        to_second = tl.zeros([BLOCK], tl.float32)
        to_third = tl.zeros([BLOCK], tl.float32)
        smallest = tl.full([BLOCK], float("inf"), tl.float32)
        largest = tl.full([BLOCK], float("-inf"), tl.float32)
        value = _logits(row, lane)
        for start in range(0, length, BLOCK):
            ahead = _logits(row, start + BLOCK + lane)
            key, weight = _key_and_weight(value, start + lane, kept, KIND)
            to_first += tl.where(key <= first, weight, 0.0)
            to_second += tl.where(key <= second, weight, 0.0)
            to_third += tl.where(key <= third, weight, 0.0)
            smallest = tl.minimum(smallest, tl.where(key > low, key, float("inf")))
            largest = tl.maximum(largest, tl.where(key <= high, key, float("-inf")))
            value = ahead
        least, most = tl.min(smallest, axis=0), tl.max(largest, axis=0)
        if least >= most:
            # One key is left between them, or none.
            high = tl.where(least == most, most, high)
            passes = _MOST_PASSES
        else:
            in_first = tl.sum(to_first, axis=0) >= target
            in_second = tl.sum(to_second, axis=0) >= target
            in_third = tl.sum(to_third, axis=0) >= target
            low = tl.where(
                in_first, low, tl.where(in_second, first, tl.where(in_third, second, third))
            )
            high = tl.where(
                in_first, first, tl.where(in_second, second, tl.where(in_third, third, high))
            )
            high = tl.minimum(high, most)
            passes += 1
    return high


@triton.jit
def _cut_among_equals(row, kept, threshold, target, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Index of the last token with the threshold's key that is needed to reach ``target``."""
    lane = tl.arange(0, BLOCK)
    length = row[2]
    below = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, length, BLOCK):
        key, weight = _key_and_weight(_logits(row, start + lane), start + lane, kept, KIND)
        below += tl.where(key < threshold, weight, 0.0)
        number += (key == threshold).to(tl.int32)
    last = length
    if tl.sum(number, axis=0) > 1:
        reached = tl.sum(below, axis=0)
        start = 0
        while start < length:
            index = start + lane
            key, weight = _key_and_weight(_logits(row, index), index, kept, KIND)
            equal = key == threshold
            weight = tl.where(equal, weight, 0.0)
            total = tl.sum(weight, axis=0)
            if reached + total >= target:
                enough = equal & (reached + tl.cumsum(weight, axis=0) >= target)
                last = tl.min(tl.where(enough, index, length), axis=0)
                start = length
            reached += total
            start += BLOCK
    return last


@triton.jit
def _mass(row, kept, BLOCK: tl.constexpr):
    """Weight of what is kept, and its exponents' mean in bits, at most 0."""
    lane = tl.arange(0, BLOCK)
    mass = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for start in range(0, row[2], BLOCK):
        value = _logits(row, start + lane)
        _, weight = _key_and_weight(value, start + lane, kept, _MASS)
        mass += weight
        moment += tl.where(weight > 0.0, weight * ((value - kept[0]) * kept[1]), 0.0)
    total = tl.sum(mass, axis=0)
    return total, tl.sum(moment, axis=0) / total


@triton.jit
def _most_likely(row, BLOCK: tl.constexpr):
    """The largest logit and its token, the first of equals."""
    lane = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.full([BLOCK], 2147483647, tl.int32)
    for start in range(0, row[2], BLOCK):
        value = _logits(row, start + lane)
        better = value > peaks
        peaks = tl.where(better, value, peaks)
        ids = tl.where(better, start + lane, ids)
    peak = tl.max(peaks, axis=0)
    token = tl.min(tl.where(peaks == peak, ids, 2147483647), axis=0)
    return peak, tl.minimum(token, row[2] - 1)


@triton.jit
def _number_from(row, floor, BLOCK: tl.constexpr):
    """How many logits are at least ``floor``."""
    lane = tl.arange(0, BLOCK)
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, row[2], BLOCK):
        number += (_logits(row, start + lane) >= floor).to(tl.int32)
    return tl.sum(number, axis=0)


@triton.jit
def _copy_from(row, floor, values, ids, BLOCK: tl.constexpr):
    """Write the logits that are at least ``floor``, and their tokens, in order of token id."""
    lane = tl.arange(0, BLOCK)
    place = 0
    for start in range(0, row[2], BLOCK):
        value = _logits(row, start + lane)
        inside = (value >= floor).to(tl.int32)
        here = tl.sum(inside, axis=0)
        if here > 0:
            slot = place + tl.cumsum(inside, axis=0) - 1
            tl.store(values + slot, value, mask=inside != 0)
            tl.store(ids + slot, start + lane, mask=inside != 0)
        place += here
    tl.debug_barrier()


@triton.jit
def _kept_weight(row, kept, far, far_cut, index):
    key, weight = _key_and_weight(_logits(row, index), index, kept, _DISTANCE)
    return tl.where((key < far) | ((key == far) & (index <= far_cut)), weight, 0.0)


@triton.jit
def _draw(row, kept, far, far_cut, uniform, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Index where the cumulative probability exceeds ``uniform``: the row's chunk, then in it."""
    lane = tl.arange(0, BLOCK)
    chunk = tl.arange(0, CHUNKS)
    sums = tl.zeros([CHUNKS], tl.float32)
    for start in range(0, row[2], BLOCK):
        total = tl.sum(_kept_weight(row, kept, far, far_cut, start + lane), axis=0)
        sums = tl.where(chunk == start // BLOCK, total, sums)
    upto = tl.cumsum(sums, axis=0)
    point = uniform * tl.max(upto, axis=0)
    where = tl.min(tl.where((sums > 0.0) & (upto > point), chunk, CHUNKS), axis=0)
    where = tl.minimum(where, tl.max(tl.where(sums > 0.0, chunk, 0), axis=0))
    before = tl.sum(tl.where(chunk < where, sums, 0.0), axis=0)
    index = where * BLOCK + lane
    weight = _kept_weight(row, kept, far, far_cut, index)
    passed = (weight > 0.0) & (before + tl.cumsum(weight, axis=0) > point)
    found = tl.min(tl.where(passed, index, 2147483647), axis=0)
    return tl.minimum(found, tl.max(tl.where(weight > 0.0, index, 0), axis=0))


@triton.jit
def _adjust(source, ids, by, before, num_biased, num_banned, BLOCK: tl.constexpr):
    """Add biases to logits in place, keeping what they were; then forbid tokens."""
    lane = tl.arange(0, BLOCK)
    for start in range(0, num_biased, BLOCK):
        slot = start + lane
        inside = slot < num_biased
        token = tl.load(ids + slot, mask=inside, other=0)
        value = tl.load(source + token, mask=inside, other=0.0)
        tl.store(before + slot, value, mask=inside)
        value += tl.load(by + slot, mask=inside, other=0.0)
        tl.store(source + token, value, mask=inside)
    tl.debug_barrier()
    for start in range(0, num_banned, BLOCK):
        slot = start + lane
        inside = slot < num_banned
        token = tl.load(ids + num_biased + slot, mask=inside, other=0)
        tl.store(source + token, float("-inf"), mask=inside)
    tl.debug_barrier()


@triton.jit
def _unchanged(source, token, ids, before, num_biased, BLOCK: tl.constexpr):
    """A token's logit as it was before its bias."""
    lane = tl.arange(0, BLOCK)
    value = tl.load(source + token)
    for start in range(0, num_biased, BLOCK):
        slot = start + lane
        inside = slot < num_biased
        mine = tl.load(ids + slot, mask=inside, other=-1) == token
        was = tl.load(before + slot, mask=inside, other=0.0)
        if tl.max(mine.to(tl.int32), axis=0) > 0:
            value = tl.sum(tl.where(mine, was, 0.0), axis=0)
    return value


@triton.jit
def draw_kernel(
    logits,
    parameters,
    reals,
    token_ids,
    finite,
    last_tokens,
    row_counts,
    adjusted_ids,
    adjusted_by,
    adjusted_from,
    log_totals,
    logprobs,
    near_values,
    near_ids,
    vocab_size,
    logits_stride,
    COLUMNS: tl.constexpr,
    NEAR: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,). Rows that ask for the most likely token of unchanged logits do nothing.

    Args:
        logits: [R, vocab_size]; bias and bans are written into them.
        parameters: [R, COLUMNS] int32, see ``row_parameters``.
        reals: The same memory as float32.
        token_ids: [R] int64: the most likely tokens; those drawn replace them.
        finite: [R] bool: where false, nothing is drawn.
        last_tokens: [rows] int32, by row.
        row_counts: [rows, vocab_size] int16: occurrences in the output; the highest bit: in the
            prompt. The drawn token is counted.
        adjusted_ids: [rows, MOST_ADJUSTMENTS] int32: biased tokens, then forbidden ones.
        adjusted_by: The same in float32: their bias.
        adjusted_from: The same: their logit before.
        log_totals: [R] float32: log of the sum of exponentials; read where a log-probability is
            wanted.
        logprobs: [R] float32, of the drawn tokens under the unchanged logits.
        near_values: [R, NEAR] scratch: what top-k has kept, if no more than that.
        near_ids: The same in int32.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    number = tl.program_id(0)
    words = parameters + number * COLUMNS
    flags = tl.load(words)
    special = (flags & (_DRAWS | _PENALISED | _BIASED | _BANNED)) != 0
    if special & (tl.load(finite + number).to(tl.int32) != 0):
        words_real = reals + number * COLUMNS
        row = tl.load(words + 1).to(tl.int64)
        num_biased = tl.load(words + 4)
        penalised = (flags & _PENALISED) != 0
        source = logits + number.to(tl.int64) * logits_stride
        counts = row_counts + row * vocab_size
        mine = (source, counts, vocab_size, penalised, words_real + 9)
        ids = adjusted_ids + row * _ADJUSTMENTS
        before = adjusted_from + row * _ADJUSTMENTS
        chosen = tl.load(token_ids + number).to(tl.int32)
        peak = tl.load(source + chosen)
        if (flags & (_PENALISED | _BIASED | _BANNED)) != 0:
            by = adjusted_by + row * _ADJUSTMENTS
            num_banned = tl.where((flags & _BANNED) != 0, tl.load(words + 5), 0)
            _adjust(source, ids, by, before, num_biased, num_banned, BLOCK)
            peak, chosen = _most_likely(mine, BLOCK)
        if ((flags & _DRAWS) != 0) & (peak > float("-inf")) & (peak < float("inf")):
            temperature = tl.load(words_real + 6)
            scale = _LOG2_E / temperature
            # Keys are negated logits: below all of them, and where they no longer count.
            lowest = -peak - tl.maximum(1.0, tl.abs(peak) * 1e-6)
            highest = -peak + _NATS * temperature
            none = tl.full((), 0.0, tl.float32)
            floor = tl.full((), float("-inf"), tl.float32)
            cut = vocab_size
            length = vocab_size
            base = source
            changed = penalised
            near = number.to(tl.int64) * NEAR
            top_k = tl.load(words + 2)
            if top_k < vocab_size:
                wanted = top_k.to(tl.float32)
                kept = (peak, scale, floor, cut, none)
                floor = -_threshold(mine, kept, lowest, highest, wanted, _COUNT, BLOCK)
                left = _number_from(mine, floor, BLOCK)
                if left <= NEAR:
                    # Half as many lanes: a scan and two scattered writes hold many registers.
                    _copy_from(mine, floor, near_values + near, near_ids + near, BLOCK // 2)
                    base = near_values + near
                    changed = left < 0
                    length = left
                    cut = left
            short = (base, counts, length, changed, words_real + 9)
            top_p = tl.load(words_real + 7)
            if top_p < 1.0:
                kept = (peak, scale, floor, cut, none)
                total, _ = _mass(short, kept, BLOCK)
                target = total * top_p
                key = _threshold(short, kept, lowest, highest, target, _MASS, BLOCK)
                last = _cut_among_equals(short, kept, key, target, _MASS, BLOCK)
                cut = tl.where(-key == floor, tl.minimum(cut, last), last)
                floor = -key
            far = tl.full((), float("inf"), tl.float32)
            far_cut = length
            centre = none
            typical_p = tl.load(words_real + 8)
            if typical_p < 1.0:
                # The expected information less a token's own: the partition sum cancels.
                total, centre = _mass(short, (peak, scale, floor, cut, none), BLOCK)
                target = total * typical_p
                kept = (peak, scale, floor, cut, centre)
                far = _threshold(
                    short, kept, none - 1.0, none + 2.0 * _NATS, target, _DISTANCE, BLOCK
                )
                far_cut = _cut_among_equals(short, kept, far, target, _DISTANCE, BLOCK)
            kept = (peak, scale, floor, cut, centre)
            uniform = tl.load(words_real + 12)
            chosen = _draw(short, kept, far, far_cut, uniform, CHUNKS, BLOCK)
            if length < vocab_size:
                chosen = tl.load(near_ids + near + chosen)
        tl.store(token_ids + number, chosen.to(tl.int64))
        tl.store(last_tokens + row, chosen)
        if penalised:
            count = tl.load(counts + chosen).to(tl.int32) & 0xFFFF
            more = tl.minimum((count & 0x7FFF) + 1, 0x7FFF) | (count & 0x8000)
            tl.store(counts + chosen, more.to(tl.int16))
        if (flags & _LOGPROB) != 0:
            was = _unchanged(source, chosen, ids, before, num_biased, BLOCK)
            tl.store(logprobs + number, was - tl.load(log_totals + number))

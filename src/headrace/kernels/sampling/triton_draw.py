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
def _logits(source, counts, index, length, penalised, repetition, frequency, presence):
    value = tl.load(source + index, mask=index < length, other=float("-inf"))
    if penalised:
        count = tl.load(counts + index, mask=index < length, other=0).to(tl.int32)
        value = _penalised(value, count, repetition, frequency, presence)
    return value


@triton.jit
def _key_and_weight(value, index, peak, scale, floor, cut, centre, KIND: tl.constexpr):
    """What a filter orders tokens by and adds up; excluded tokens have no weight.

    Kept so far are logits above ``floor``, and equal to it up to the index ``cut``.
    """
    if KIND == _COUNT:
        key = -value
        weight = tl.where(value > float("-inf"), 1.0, 0.0)
    else:
        exponent = (value - peak) * scale
        inside = (value > floor) | ((value == floor) & (index <= cut))
        weight = tl.where(inside, tl.exp2(exponent), 0.0)
        key = -value
        if KIND == _DISTANCE:
            key = tl.abs(exponent - centre)
        key = tl.where(inside, key, float("inf"))
    return key, weight


@triton.jit
def _threshold(
    source,
    counts,
    length,
    penalised,
    repetition,
    frequency,
    presence,
    peak,
    scale,
    floor,
    cut,
    centre,
    low,
    high,
    target,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Smallest key at or below which weights reach ``target``; ``high`` if they never do.

    Args:
        low: Below every key.
        high: Where the search begins from above.
    """
    lane = tl.arange(0, BLOCK)
    passes = 0
    while passes < _MOST_PASSES:
        quarter = (high - low) * 0.25
        first, second, third = low + quarter, low + 2.0 * quarter, low + 3.0 * quarter
        to_first = tl.zeros([BLOCK], tl.float32)
        to_second = tl.zeros([BLOCK], tl.float32)
        to_third = tl.zeros([BLOCK], tl.float32)
        smallest = tl.full([BLOCK], float("inf"), tl.float32)
        largest = tl.full([BLOCK], float("-inf"), tl.float32)
        value = _logits(source, counts, lane, length, penalised, repetition, frequency, presence)
        for start in range(0, length, BLOCK):
            ahead = _logits(
                source,
                counts,
                start + BLOCK + lane,
                length,
                penalised,
                repetition,
                frequency,
                presence,
            )
            key, weight = _key_and_weight(
                value, start + lane, peak, scale, floor, cut, centre, KIND
            )
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
def _cut_among_equals(
    source,
    counts,
    length,
    penalised,
    repetition,
    frequency,
    presence,
    peak,
    scale,
    floor,
    cut,
    centre,
    threshold,
    target,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Index of the last token with the threshold's key that is needed to reach ``target``."""
    lane = tl.arange(0, BLOCK)
    below = tl.zeros([BLOCK], tl.float32)
    number = tl.zeros([BLOCK], tl.int32)
    for start in range(0, length, BLOCK):
        index = start + lane
        value = _logits(source, counts, index, length, penalised, repetition, frequency, presence)
        key, weight = _key_and_weight(value, index, peak, scale, floor, cut, centre, KIND)
        below += tl.where(key < threshold, weight, 0.0)
        number += (key == threshold).to(tl.int32)
    last = length
    if tl.sum(number, axis=0) > 1:
        reached = tl.sum(below, axis=0)
        start = 0
        while start < length:
            index = start + lane
            value = _logits(
                source, counts, index, length, penalised, repetition, frequency, presence
            )
            key, weight = _key_and_weight(value, index, peak, scale, floor, cut, centre, KIND)
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
    flags = tl.load(parameters + number * COLUMNS)
    special = (flags & (_DRAWS | _PENALISED | _BIASED | _BANNED)) != 0
    if special & (tl.load(finite + number).to(tl.int32) != 0):
        row = tl.load(parameters + number * COLUMNS + 1).to(tl.int64)
        top_k = tl.load(parameters + number * COLUMNS + 2)
        num_biased = tl.load(parameters + number * COLUMNS + 4)
        num_banned = tl.load(parameters + number * COLUMNS + 5)
        temperature = tl.load(reals + number * COLUMNS + 6)
        top_p = tl.load(reals + number * COLUMNS + 7)
        typical_p = tl.load(reals + number * COLUMNS + 8)
        repetition = tl.load(reals + number * COLUMNS + 9)
        frequency = tl.load(reals + number * COLUMNS + 10)
        presence = tl.load(reals + number * COLUMNS + 11)
        penalised = (flags & _PENALISED) != 0
        source = logits + number.to(tl.int64) * logits_stride
        counts = row_counts + row * vocab_size
        lane = tl.arange(0, BLOCK)
        adjustments = row * _ADJUSTMENTS
        if num_biased > 0:
            for start in range(0, num_biased, BLOCK):
                slot = start + lane
                inside = slot < num_biased
                token = tl.load(adjusted_ids + adjustments + slot, mask=inside, other=0)
                before = tl.load(source + token, mask=inside, other=0.0)
                by = tl.load(adjusted_by + adjustments + slot, mask=inside, other=0.0)
                tl.store(adjusted_from + adjustments + slot, before, mask=inside)
                tl.store(source + token, before + by, mask=inside)
            tl.debug_barrier()
        if (flags & _BANNED) != 0:
            for start in range(0, num_banned, BLOCK):
                slot = start + lane
                inside = slot < num_banned
                token = tl.load(
                    adjusted_ids + adjustments + num_biased + slot, mask=inside, other=0
                )
                tl.store(source + token, float("-inf"), mask=inside)
            tl.debug_barrier()

        chosen = tl.load(token_ids + number).to(tl.int32)
        peak = tl.load(source + chosen)
        if (flags & (_PENALISED | _BIASED | _BANNED)) != 0:
            peaks = tl.full([BLOCK], float("-inf"), tl.float32)
            ids = tl.full([BLOCK], 2147483647, tl.int32)
            for start in range(0, vocab_size, BLOCK):
                index = start + lane
                value = _logits(
                    source, counts, index, vocab_size, penalised, repetition, frequency, presence
                )
                better = value > peaks
                peaks = tl.where(better, value, peaks)
                ids = tl.where(better, index, ids)
            peak = tl.max(peaks, axis=0)
            chosen = tl.min(tl.where(peaks == peak, ids, 2147483647), axis=0)
            chosen = tl.minimum(chosen, vocab_size - 1)

        if ((flags & _DRAWS) != 0) & (peak > float("-inf")) & (peak < float("inf")):
            scale = _LOG2_E / temperature
            length = vocab_size
            near = number.to(tl.int64) * NEAR
            floor = tl.full((), float("-inf"), tl.float32)
            cut = vocab_size
            compact = tl.full((), 0, tl.int32)
            if top_k < vocab_size:
                key = _threshold(
                    source,
                    counts,
                    length,
                    penalised,
                    repetition,
                    frequency,
                    presence,
                    peak,
                    scale,
                    floor,
                    cut,
                    0.0,
                    -peak - tl.maximum(1.0, tl.abs(peak) * 1e-6),
                    -peak + _NATS * temperature,
                    top_k.to(tl.float32),
                    _COUNT,
                    BLOCK,
                )
                floor = -key
                kept = tl.zeros([BLOCK], tl.int32)
                for start in range(0, length, BLOCK):
                    value = _logits(
                        source,
                        counts,
                        start + lane,
                        length,
                        penalised,
                        repetition,
                        frequency,
                        presence,
                    )
                    kept += (value >= floor).to(tl.int32)
                if tl.sum(kept, axis=0) <= NEAR:
                    place = 0
                    for start in range(0, length, BLOCK):
                        index = start + lane
                        value = _logits(
                            source,
                            counts,
                            index,
                            length,
                            penalised,
                            repetition,
                            frequency,
                            presence,
                        )
                        inside = (value >= floor).to(tl.int32)
                        here = tl.sum(inside, axis=0)
                        if here > 0:
                            slot = place + tl.cumsum(inside, axis=0) - 1
                            tl.store(near_values + near + slot, value, mask=inside != 0)
                            tl.store(near_ids + near + slot, index, mask=inside != 0)
                        place += here
                    tl.debug_barrier()
                    compact = tl.full((), 1, tl.int32)
                    length = place
                    cut = place
            base = source
            if compact != 0:
                base = near_values + near
            changed = penalised & (compact == 0)
            if top_p < 1.0:
                mass = tl.zeros([BLOCK], tl.float32)
                for start in range(0, length, BLOCK):
                    index = start + lane
                    value = _logits(
                        base, counts, index, length, changed, repetition, frequency, presence
                    )
                    _, weight = _key_and_weight(value, index, peak, scale, floor, cut, 0.0, _MASS)
                    mass += weight
                target = tl.sum(mass, axis=0) * top_p
                key = _threshold(
                    base,
                    counts,
                    length,
                    changed,
                    repetition,
                    frequency,
                    presence,
                    peak,
                    scale,
                    floor,
                    cut,
                    0.0,
                    -peak - tl.maximum(1.0, tl.abs(peak) * 1e-6),
                    -peak + _NATS * temperature,
                    target,
                    _MASS,
                    BLOCK,
                )
                last = _cut_among_equals(
                    base,
                    counts,
                    length,
                    changed,
                    repetition,
                    frequency,
                    presence,
                    peak,
                    scale,
                    floor,
                    cut,
                    0.0,
                    key,
                    target,
                    _MASS,
                    BLOCK,
                )
                cut = tl.where(-key == floor, tl.minimum(cut, last), last)
                floor = -key
            far = tl.full((), float("inf"), tl.float32)
            far_cut = length
            centre = tl.full((), 0.0, tl.float32)
            if typical_p < 1.0:
                mass = tl.zeros([BLOCK], tl.float32)
                moment = tl.zeros([BLOCK], tl.float32)
                for start in range(0, length, BLOCK):
                    index = start + lane
                    value = _logits(
                        base, counts, index, length, changed, repetition, frequency, presence
                    )
                    _, weight = _key_and_weight(value, index, peak, scale, floor, cut, 0.0, _MASS)
                    mass += weight
                    moment += tl.where(weight > 0.0, weight * ((value - peak) * scale), 0.0)
                total = tl.sum(mass, axis=0)
                # The expected information less a token's own, in bits: the partition sum cancels.
                centre = tl.sum(moment, axis=0) / total
                target = total * typical_p
                far = _threshold(
                    base,
                    counts,
                    length,
                    changed,
                    repetition,
                    frequency,
                    presence,
                    peak,
                    scale,
                    floor,
                    cut,
                    centre,
                    tl.full((), -1.0, tl.float32),
                    tl.full((), 2.0 * _NATS, tl.float32),
                    target,
                    _DISTANCE,
                    BLOCK,
                )
                far_cut = _cut_among_equals(
                    base,
                    counts,
                    length,
                    changed,
                    repetition,
                    frequency,
                    presence,
                    peak,
                    scale,
                    floor,
                    cut,
                    centre,
                    far,
                    target,
                    _DISTANCE,
                    BLOCK,
                )
            # Inverse of the cumulative distribution: first the chunk of the row, then the token.
            chunk = tl.arange(0, CHUNKS)
            sums = tl.zeros([CHUNKS], tl.float32)
            for start in range(0, length, BLOCK):
                index = start + lane
                value = _logits(
                    base, counts, index, length, changed, repetition, frequency, presence
                )
                key, weight = _key_and_weight(
                    value, index, peak, scale, floor, cut, centre, _DISTANCE
                )
                inside = (key < far) | ((key == far) & (index <= far_cut))
                total = tl.sum(tl.where(inside, weight, 0.0), axis=0)
                sums = tl.where(chunk == start // BLOCK, total, sums)
            upto = tl.cumsum(sums, axis=0)
            uniform = tl.load(reals + number * COLUMNS + 12)
            point = uniform * tl.max(upto, axis=0)
            where = tl.min(tl.where((sums > 0.0) & (upto > point), chunk, CHUNKS), axis=0)
            filled = tl.max(tl.where(sums > 0.0, chunk, 0), axis=0)
            where = tl.minimum(where, filled)
            before = tl.sum(tl.where(chunk < where, sums, 0.0), axis=0)
            index = where * BLOCK + lane
            value = _logits(base, counts, index, length, changed, repetition, frequency, presence)
            key, weight = _key_and_weight(value, index, peak, scale, floor, cut, centre, _DISTANCE)
            inside = (key < far) | ((key == far) & (index <= far_cut))
            weight = tl.where(inside, weight, 0.0)
            passed = (weight > 0.0) & (before + tl.cumsum(weight, axis=0) > point)
            found = tl.min(tl.where(passed, index, 2147483647), axis=0)
            final = tl.max(tl.where(weight > 0.0, index, 0), axis=0)
            found = tl.minimum(found, final)
            chosen = found
            if compact != 0:
                chosen = tl.load(near_ids + near + found)

        tl.store(token_ids + number, chosen.to(tl.int64))
        tl.store(last_tokens + row, chosen)
        if penalised:
            count = tl.load(counts + chosen).to(tl.int32) & 0xFFFF
            more = tl.minimum((count & 0x7FFF) + 1, 0x7FFF) | (count & 0x8000)
            tl.store(counts + chosen, more.to(tl.int16))
        if (flags & _LOGPROB) != 0:
            unchanged = tl.load(source + chosen)
            if num_biased > 0:
                for start in range(0, num_biased, BLOCK):
                    slot = start + lane
                    inside = slot < num_biased
                    token = tl.load(adjusted_ids + adjustments + slot, mask=inside, other=-1)
                    before = tl.load(adjusted_from + adjustments + slot, mask=inside, other=0.0)
                    mine = token == chosen
                    if tl.max(mine.to(tl.int32), axis=0) > 0:
                        unchanged = tl.sum(tl.where(mine, before, 0.0), axis=0)
            tl.store(logprobs + number, unchanged - tl.load(log_totals + number))

// The threshold that cuts a row where a measure of its greatest elements reaches a target: how
// many they are (top-k) or what they weigh (top-p, typical-p). Nothing is sorted: the interval that
// holds the threshold is halved, and only elements inside it are looked at again, so that most rows
// are read about three times (quickselect with pivots from the interval, Hoare 1961).
#pragma once

#include "kernel_table.hpp"
#include "lanes.hpp"

namespace headrace::HEADRACE_ISA {

// A row with room for kWidth elements after its last, which hold -infinity and weight 0. Elements
// of -infinity are no candidates.
struct Candidates {
    float* keys;
    float* weights;
    int32_t* tokens;
    int64_t count;
    float low;  // the least finite key
    float high;
};

struct Threshold {
    float key;
    double before;  // measure of the elements above it
};

// What a worker has for a row, or for a search in it.
HEADRACE_INLINE Candidates candidates_in(float* scratch, int64_t vocab, int worker, bool search) {
    const int64_t stride = sampling_stride(vocab);
    float* own = scratch + worker * kSamplingArrays * stride;
    auto* tokens = reinterpret_cast<int32_t*>(own + 4 * stride);
    if (search) return {own + 2 * stride, own + 3 * stride, nullptr, vocab, 0.0f, 0.0f};
    return {own, own + stride, tokens, vocab, 0.0f, 0.0f};
}

HEADRACE_INLINE void pad(float* keys, float* weights, int64_t count) {
    store(keys + count, broadcast(-__builtin_inff()));
    store(weights + count, zeros());
}

template <bool weighted>
double measure_at_least(const float* keys, const float* weights, int64_t count, float key) {
    WideSum sum;
    int64_t elements = 0;
    for (int64_t i = 0; i < count; i += kWidth) {
        const Mask above = lanes_at_least(load(keys + i), broadcast(key));
        if constexpr (weighted) {
            sum.add(choose(above, load(weights + i), zeros()));
        } else {
            elements += __builtin_popcount(bits_of(above));
        }
    }
    return weighted ? sum.total() : static_cast<double>(elements);
}

// Keeps what lies in [low, high), in order, and sets the interval to what was kept.
template <bool weighted>
void keep_between(const float* keys, const float* weights, float low, float high, Candidates& kept) {
    const Floats infinity = broadcast(__builtin_inff());
    Floats least = infinity, greatest = sub(zeros(), infinity);
    const int64_t count = kept.count;
    int64_t out = 0;
    for (int64_t i = 0; i < count; i += kWidth) {
        const Floats key = load(keys + i);
        const Mask inside = both(lanes_at_least(key, broadcast(low)), lanes_below(key, broadcast(high)));
        least = minimum(least, choose(inside, key, infinity));
        greatest = maximum(greatest, choose(inside, key, sub(zeros(), infinity)));
        if constexpr (weighted) pack_lanes(kept.weights + out, inside, load(weights + i));
        out += pack_lanes(kept.keys + out, inside, key);
    }
    kept.count = out;
    kept.low = reduce_min(least);
    kept.high = reduce_max(greatest);
    pad(kept.keys, kept.weights, out);
}

// Floats as integers of the same order, and back.
HEADRACE_INLINE int64_t rank_of(float value) {
    const int32_t bits = __builtin_bit_cast(int32_t, value);
    return bits >= 0 ? bits : -int64_t{bits & 0x7fffffff};
}
HEADRACE_INLINE float of_rank(int64_t rank) {
    const auto magnitude = static_cast<uint32_t>(rank >= 0 ? rank : -rank);
    return __builtin_bit_cast(float, rank >= 0 ? magnitude : magnitude | 0x80000000u);
}

// The greatest key at which the measure of the elements of at least that key reaches `target`, or
// the least key of all where it never does. The arrays of `room` are overwritten. A round leaves
// three quarters of the elements at most, or halves the floats in the interval the next time.
template <bool weighted>
Threshold find_threshold(const Candidates& row, double target, Candidates room) {
    const float *keys = row.keys, *weights = row.weights;
    room.count = row.count;
    room.low = row.low;
    room.high = row.high;
    double before = 0.0;
    bool by_rank = false;
    while (room.low < room.high) {
        // Halves of the interval suit values that are spread evenly, halves of the floats within
        // it those that differ in magnitude.
        float pivot = by_rank ? of_rank((rank_of(room.low) + rank_of(room.high) + 1) / 2)
                              : 0.5f * room.low + 0.5f * room.high;
        if (!(pivot > room.low && pivot <= room.high)) pivot = room.high;
        const double above = measure_at_least<weighted>(keys, weights, room.count, pivot);
        const int64_t looked_at = room.count;
        if (before + above >= target) {
            keep_between<weighted>(keys, weights, pivot, __builtin_nanf(""), room);
        } else {
            before += above;
            keep_between<weighted>(keys, weights, room.low, pivot, room);
        }
        by_rank = room.count > looked_at / 4 * 3;
        keys = room.keys;
        weights = room.weights;
    }
    return {room.low, before};
}

// Leaves what is not below the threshold, in order of token id; of what equals it, the first until
// the measure of all that is left reaches `target`.
template <bool weighted>
void keep_from(Threshold threshold, double target, Candidates& row) {
    double weight = threshold.before;
    int64_t out = 0;
    for (int64_t i = 0; i < row.count; i += kWidth) {
        const Floats key = load(row.keys + i);
        uint32_t kept = bits_of(lanes_at_least(key, broadcast(threshold.key)));
        if constexpr (weighted) {
            uint32_t equal = kept & bits_of(lanes_equal(key, broadcast(threshold.key)));
            for (; equal != 0; equal &= equal - 1) {
                const int lane = __builtin_ctz(equal);
                if (weight >= target) kept &= ~(1u << lane);
                weight += static_cast<double>(row.weights[i + lane]);
            }
            pack_lanes(row.weights + out, mask_of(kept), load(row.weights + i));
        }
        if (kept == 0) continue;
        auto* tokens = reinterpret_cast<float*>(row.tokens);
        pack_lanes(tokens + out, mask_of(kept), load(tokens + i));
        out += pack_lanes(row.keys + out, mask_of(kept), key);
    }
    row.count = out;
    row.low = threshold.key;
    pad(row.keys, row.weights, out);
}

}  // namespace headrace::HEADRACE_ISA

// Blocks of 32 activations as signed bytes with a scale, kWidth blocks at once: what is found of a
// block (its maximum, its sums) takes a lane, so that nothing is combined within a vector for one
// block alone. A block's bytes depend on nothing but the block.
#pragma once

#include "lanes.hpp"
#include "outliers.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(__AVX512F__)
constexpr bool kBiasedOffset = true;  // dot_biased leaves 128 * sum(signed) to take off
#else
constexpr bool kBiasedOffset = false;
#endif
constexpr float kLargestFinite = 0x1.fffffep127f;
constexpr float kSmallestMaximum = 1e-30f; // blocks below are quantized to zeros
constexpr int kBlockVectors = kBlock / kWidth;

HEADRACE_INLINE Ints magnitude_of(const Floats (&values)[kBlockVectors]) {
    // Of the bits, as integers: NaN is larger than infinity.
    Ints magnitude = broadcast_int(0);
    HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
        magnitude = max_ints(magnitude, bits_and(as_ints(values[i]), broadcast_int(0x7fffffff)));
    }
    return magnitude;
}

// Writes 32 bytes, the scale that gives the elements back, and what the kernel of the format wants
// beside it: a float or an int32. Dominant elements go to the piece's outliers.
template <class Outliers>
class BlockQuantizer {
  public:
    BlockQuantizer(Format format, Outliers& outliers)
        : format_(format), outliers_(outliers) {}

    // The block of row `row` that begins with column `column` of the piece; written at the latest
    // by `flush`.
    HEADRACE_INLINE_MEMBER void take(const Floats (&values)[kBlockVectors], int row, int column,
                                     uint8_t* target) {
        Floats squares = zeros();
        HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
            squares = fma(values[i], values[i], squares);
            store(values_[count_] + i * kWidth, values[i]);
        }
        squares_[count_] = as_ints(squares);
        magnitudes_[count_] = magnitude_of(values);
        places_[count_] = {target, row, column};
        if (++count_ == kWidth) flush();
    }

    void flush() {
        if (count_ == 0) return;
        for (int i = count_; i < kWidth; ++i) magnitudes_[i] = squares_[i] = broadcast_int(0);
        Floats maxima = largest_each();
        const Floats totals = as_floats(combine_each(
            squares_, [](Ints a, Ints b) { return as_ints(add(as_floats(a), as_floats(b))); }));
        const Mask finite = lanes_at_least(broadcast(kLargestFinite), maxima);
        const Mask large = lanes_at_least(maxima, broadcast(kSmallestMaximum));
        const Floats twice = mul(mul(broadcast(2.0f), maxima), maxima);
        const uint32_t dominated = bits_of(both(both(finite, large), lanes_below(totals, twice)));
        if (dominated != 0) {
            alignas(64) float largest[kWidth];
            store(largest, maxima);
            for (uint32_t left = dominated; left != 0; left &= left - 1) {
                const int i = __builtin_ctz(left);
                take_out(i, largest[i]);
            }
            maxima = largest_each();
        }
        const Mask something = both(finite, lanes_at_least(maxima, broadcast(kSmallestMaximum)));
        alignas(64) float inverses[kWidth], scales[kWidth], beside[kWidth];
        store(inverses, choose(something, div(broadcast(127.0f), maxima), zeros()));
        store(scales, choose(something, div(maxima, broadcast(127.0f)), zeros()));
        Ints sums[kWidth];
        for (int i = 0; i < count_; ++i) {
            auto* quants = reinterpret_cast<int8_t*>(places_[i].target);
            sums[i] = broadcast_int(0);
            if ((bits_of(finite) >> i & 1) == 0) {
                __builtin_memset(quants, 0, kBlock);
                scales[i] = __builtin_nanf("");
                continue;
            }
            const Floats inverse = broadcast(inverses[i]);
            HEADRACE_UNROLL for (int v = 0; v < kBlockVectors; ++v) {
                const Ints rounded = to_ints(mul(load(values_[i] + v * kWidth), inverse));
                store_bytes(quants + v * kWidth, rounded);
                sums[i] = add_ints(sums[i], rounded);
            }
        }
        for (int i = count_; i < kWidth; ++i) sums[i] = broadcast_int(0);
        const Ints sum = combine_each(sums, [](Ints a, Ints b) { return add_ints(a, b); });
        store(beside, as_floats(beside_scale(sum, load(scales))));
        for (int i = 0; i < count_; ++i) {
            __builtin_memcpy(places_[i].target + kBlock, scales + i, 4);
            __builtin_memcpy(places_[i].target + kBlock + 4, beside + i, 4);
        }
        count_ = 0;
    }

  private:
    struct Place {
        uint8_t* target;
        int row;
        int column;
    };

    HEADRACE_INLINE_MEMBER Floats largest_each() const {
        return as_floats(
            combine_each(magnitudes_, [](Ints a, Ints b) { return max_ints(a, b); }));
    }

    // Moves the first element of magnitude `largest` of block `i` to the outliers.
    HEADRACE_INLINE_MEMBER void take_out(int i, float largest) {
        Floats values[kBlockVectors];
        uint32_t equal = 0;
        HEADRACE_UNROLL for (int v = 0; v < kBlockVectors; ++v) {
            values[v] = load(values_[i] + v * kWidth);
            equal |= bits_of(lanes_equal(absolute(values[v]), broadcast(largest))) << v * kWidth;
        }
        const int column = __builtin_ctz(equal);
        outliers_.add(places_[i].row, places_[i].column + column, values_[i][column]);
        HEADRACE_UNROLL for (int v = 0; v < kBlockVectors; ++v) {
            const Mask taken = mask_of(uint32_t{1} << column >> v * kWidth);
            values[v] = choose(taken, zeros(), values[v]);
            store(values_[i] + v * kWidth, values[v]);
        }
        magnitudes_[i] = magnitude_of(values);
    }

    // For each block, of the sum of its bytes.
    HEADRACE_INLINE_MEMBER Ints beside_scale(Ints sum, Floats scale) const {
        if (format_ == Format::q4_1) return as_ints(mul(scale, to_floats(sum)));
        if (format_ == Format::q4_0) return sub_ints(broadcast_int(0), shift_left<3>(sum));
        if (kBiasedOffset) return sub_ints(broadcast_int(0), shift_left<7>(sum));
        return broadcast_int(0);
    }

    const Format format_;
    Outliers& outliers_;
    int count_ = 0;
    Ints magnitudes_[kWidth];
    Ints squares_[kWidth];
    alignas(64) float values_[kWidth][kBlock];
    Place places_[kWidth];
};

}  // namespace headrace::HEADRACE_ISA

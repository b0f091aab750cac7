// Running softmax sums of rows (arXiv:1805.02867), a segment of positions at a time.
#pragma once

#include "rows.hpp"

namespace headrace::HEADRACE_ISA {

HEADRACE_INLINE float exponential_of(float x) {
    alignas(64) float lanes[kWidth];
    store(lanes, exponential(broadcast(x)));
    return lanes[0];
}

// Weighted values of one row relative to the largest score, and the sum of the weights.
struct RowSums {
    float* sums;
    float maximum;
    float total;

    // Adds what another segment has.
    HEADRACE_INLINE_MEMBER void fold(const RowSums& other, int64_t dim) {
        const float now = other.maximum > maximum ? other.maximum : maximum;
        const float own = exponential_of(maximum - now), its = exponential_of(other.maximum - now);
        for (int64_t i = 0; i < dim; i += kWidth) {
            store(sums + i, fma(load(sums + i), broadcast(own),
                                mul(load(other.sums + i), broadcast(its))));
        }
        total = total * own + other.total * its;
        maximum = now;
    }
};

template <class D>
HEADRACE_INLINE void store_row(const RowSums& row, int64_t dim, typename D::Storage* out) {
    const Floats inverse = broadcast(1.0f / row.total);
    for (int64_t i = 0; i < dim; i += kWidth) {
        D::store_floats(out + i, mul(load(row.sums + i), inverse));
    }
}

// One row of a partial: maximum and total, then, a line further, the sums.
HEADRACE_INLINE float* partial_row(float* partial, int64_t row, int64_t dim) {
    return partial + row * (kPartialHeader + dim);
}
HEADRACE_INLINE RowSums read_partial(float* row) {
    return {row + kPartialHeader, row[0], row[1]};
}

// The sums of R rows over the segment at hand, and over those before it.
template <int R>
class SegmentSums {
  public:
    HEADRACE_INLINE_MEMBER void begin(int64_t dim) {
        for (int r = 0; r < R; ++r) {
            for (int64_t i = 0; i < dim; i += kWidth) store(sums[r] + i, zeros());
            store(totals_[r], zeros());
        }
        for (int i = 0; i < kLanes; i += kWidth) store(maxima + i, broadcast(kNoMaximum));
    }

    // The running maxima move on to those of a tile's scores; `corrections` are what earlier sums are
    // worth then. All rows together: one row would wait for its own exponential.
    void raise_maxima(const float (&scores)[R][kTile]) {
        alignas(64) float tile_maximum[kLanes];
        for (int i = 0; i < kLanes; i += kWidth) store(tile_maximum + i, broadcast(kNoMaximum));
        for (int r = 0; r < R; ++r) {
            Floats largest = load(scores[r]);
            HEADRACE_UNROLL for (int i = kWidth; i < kTile; i += kWidth) {
                largest = maximum(largest, load(scores[r] + i));
            }
            tile_maximum[r] = reduce_max(largest);
        }
        for (int i = 0; i < kLanes; i += kWidth) {
            const Floats old = load(maxima + i);
            const Floats now = maximum(load(tile_maximum + i), old);
            store(maxima + i, now);
            store(corrections + i, exponential(sub(old, now)));
        }
    }

    // Adds the weights of a tile, in lanes: they are added up where a segment ends.
    HEADRACE_INLINE_MEMBER void add_weights(int r, Floats weights) {
        store(totals_[r], fma(load(totals_[r]), broadcast(corrections[r]), weights));
    }

    void next_segment(int64_t dim) {
        fold(dim);
        begin(dim);
    }

    // Writes the first `count` rows: to `partial`, or the outputs that `out(row)` gives.
    template <class D, class Out>
    HEADRACE_INLINE_MEMBER void finish(int64_t count, int64_t dim, float* partial, const Out& out) {
        if (partial != nullptr) {
            for (int64_t r = 0; r < count; ++r) {
                float* row = partial_row(partial, r, dim);
                row[0] = maxima[r];
                row[1] = total(r);
                for (int64_t i = 0; i < dim; i += kWidth) {
                    store(row + kPartialHeader + i, load(sums[r] + i));
                }
            }
            return;
        }
        if (folded_) fold(dim);
        for (int64_t r = 0; r < count; ++r) {
            const RowSums row = folded_ ? RowSums{before_[r], before_maximum_[r], before_total_[r]}
                                        : RowSums{sums[r], maxima[r], total(r)};
            store_row<D>(row, dim, out(r));
        }
    }

    static constexpr int kLanes = (R + kWidth - 1) / kWidth * kWidth;
    alignas(64) float sums[R][kMaxHeadDim];
    alignas(64) float maxima[kLanes];
    alignas(64) float corrections[kLanes];

  private:
    float total(int64_t r) const { return reduce_add(load(totals_[r])); }

    void fold(int64_t dim) {
        for (int r = 0; r < R; ++r) {
            const RowSums segment{sums[r], maxima[r], total(r)};
            RowSums row{before_[r], before_maximum_[r], before_total_[r]};
            if (folded_) {
                row.fold(segment, dim);
            } else {
                for (int64_t i = 0; i < dim; i += kWidth) {
                    store(before_[r] + i, load(sums[r] + i));
                }
                row.maximum = segment.maximum;
                row.total = segment.total;
            }
            before_maximum_[r] = row.maximum;
            before_total_[r] = row.total;
        }
        folded_ = true;
    }

    alignas(64) float totals_[R][kWidth];
    alignas(64) float before_[R][kMaxHeadDim];
    float before_maximum_[R];
    float before_total_[R];
    bool folded_ = false;
};

}  // namespace headrace::HEADRACE_ISA

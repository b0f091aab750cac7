// Attention over keys and values in signed bytes with a scale each position and head; rows, tiles
// and order are those of cpu.cpp.
//
// Only the cache is held in 8 bits. A query, and the weights of a tile times the scales of its
// values, are integers of 15 bits in two bytes, and products are summed exactly in int32.
#include "int8_pages.hpp"
#include "rows.hpp"
#include "segment_sums.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kPerUnit = 4;  // bytes that one lane multiplies at once
constexpr int kLow = 128;    // an integer is kLow times its high byte and its low byte
constexpr float kLargest = 127.0f * kLow;
constexpr float kLeastScale = 1e-30f;  // below, everything is zero
#if defined(__AVX512F__)
constexpr uint32_t kBias = 128;  // dot_biased leaves so many times the signed sum to take off
#else
constexpr uint32_t kBias = 0;
#endif

HEADRACE_INLINE Ints combine(Ints high, Ints low) { return add_ints(shift_left<7>(high), low); }

template <class D, int R>
class Int8RowBlockAttention {
    using Storage = typename D::Storage;
    // Each product has two sums: with more than 16 of them they do not stay in registers.
    static constexpr int kJoint = kWidth < 16 || R > 4 ? 1 : R > 2 ? 2 : 4;
    static constexpr int kVectors = R > 4 ? 1 : kDimVectors;
    static constexpr int kFetchedLines = (kGroup * kVectors * kWidth + 63) / 64;

  public:
    Int8RowBlockAttention(const Attention& call, const RowBlock& block, const RowBlock& next)
        : call_(call), block_(block), next_(next), group_bytes_(int8_group_bytes(call.heads.dim)) {
        const int64_t dim = call.heads.dim;
        for (int r = 0; r < R; ++r) {
            // Rows past the end repeat the last one and are not stored.
            const RowPlace place = block.place(call.heads, r < block.count ? r : block.count - 1);
            position_[r] = place.position;
            out_[r] = place.out;
            split_query(r, static_cast<const Storage*>(call.qkv) + place.query);
        }
        state_.begin(dim);
    }

    void run() {
        const int64_t end = block_.end();
        const int64_t begin = block_.begin(call_.window);
        for (int64_t tile = begin; tile < end; tile += kTile) {
            if (tile % kSegment == 0 && tile != begin) state_.next_segment(call_.heads.dim);
            const int64_t count = end - tile < kTile ? end - tile : kTile;
            const bool more = tile + kTile < end;
            const RowBlock& ahead = more ? block_ : next_;
            const int64_t ahead_tile = more ? tile + kTile : next_.begin(call_.window);
            for (int64_t g = 0; g < kTile; g += kGroup) {
                ahead_[g / kGroup] =
                    group(ahead, ahead_tile + g < ahead.end() ? ahead_tile + g : ahead_tile);
                here_[g / kGroup] = group(block_, g < count ? tile + g : tile);
            }
            for (int64_t g = 0; g < kTile; g += kJoint * kGroup) score(tile, g);
            state_.raise_maxima(scores_);
            for (int r = 0; r < R; ++r) soften(r);
            for (int64_t d = 0; d < call_.heads.dim; d += kVectors * kWidth) accumulate(count, d);
        }
        state_.template finish<D>(
            block_.count, call_.heads.dim, block_.partial,
            [&](int64_t r) { return static_cast<Storage*>(call_.out) + out_[r]; });
    }

  private:
    // Offset of the group that a position lies in, of a block's KV head, within all pages.
    int64_t group(const RowBlock& block, int64_t position) const {
        const int64_t size = call_.cache.block_size;
        const int64_t page =
            block.pages[position / size] * call_.cache.heads_apart + block.kv_head;
        return (page * (size / kGroup) + position % size / kGroup) * group_bytes_;
    }

    const uint8_t* keys(int64_t offset) const {
        return static_cast<const uint8_t*>(call_.cache.keys) + offset;
    }
    const uint8_t* values(int64_t offset) const {
        return static_cast<const uint8_t*>(call_.cache.values) + offset;
    }
    // Of the 16 positions of a group.
    const float* scales(const uint8_t* group) const {
        return reinterpret_cast<const float*>(group + kGroup * call_.heads.dim);
    }

    void split_query(int r, const Storage* query) {
        const int64_t dim = call_.heads.dim;
        Floats largest = zeros(), sum = zeros();
        for (int64_t i = 0; i < dim; i += kWidth) {
            const Floats value = D::load_floats(query + i);
            largest = maximum(largest, absolute(value));
            sum = add(sum, value);
        }
        const float most = reduce_max(largest), total = reduce_add(sum);
        const Floats inverse = broadcast(most > kLeastScale ? kLargest / most : 0.0f);
        Ints integers = broadcast_int(0);
        for (int64_t i = 0; i < dim; i += kWidth) {
            const Ints value = to_ints(mul(D::load_floats(query + i), inverse));
            integers = add_ints(integers, value);
            const Ints high =
                to_ints(mul(to_floats(value), broadcast(1.0f / static_cast<float>(kLow))));
            store_bytes(query_high_[r] + i, high);
            store_bytes(query_low_[r] + i, sub_ints(value, shift_left<7>(high)));
        }
        // Of what is no number, anything: without overflow.
        bias_[r] = static_cast<int32_t>(kBias * static_cast<uint32_t>(reduce_add_ints(integers)));
        // What is no number stays none.
        query_scale_[r] = call_.scale * (most / kLargest) + (total - total);
    }

    // Scaled and masked scores of kJoint groups of positions from tile + column on.
    void score(int64_t tile, int64_t column) {
        constexpr int vectors = kJoint * kGroupVectors;
        const uint8_t *group[kJoint], *ahead[kJoint];
        for (int j = 0; j < kJoint; ++j) {
            group[j] = keys(here_[column / kGroup + j]);
            ahead[j] = keys(ahead_[column / kGroup + j]);
            __builtin_prefetch(scales(ahead[j]), 0, 1);
        }
        Ints high[R][vectors], low[R][vectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) {
                high[r][v] = low[r][v] = broadcast_int(0);
            }
        }
        for (int64_t d = 0; d < call_.heads.dim; d += kPerUnit) {
            Ints key[vectors];
            HEADRACE_UNROLL for (int j = 0; j < kJoint; ++j) {
                __builtin_prefetch(ahead[j] + d * kGroup, 0, 1);
                HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
                    key[j * kGroupVectors + v] =
                        load_ints(group[j] + d * kGroup + v * kWidth * kPerUnit);
                }
            }
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                const Ints query_high = broadcast_unit(query_high_[r] + d);
                const Ints query_low = broadcast_unit(query_low_[r] + d);
                HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) {
                    high[r][v] = dot_biased(high[r][v], key[v], query_high);
                    low[r][v] = dot_biased(low[r][v], key[v], query_low);
                }
            }
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) {
                store(scores_[r] + column + v * kWidth,
                      as_floats(combine(high[r][v], low[r][v])));
            }
        }
        for (int v = 0; v < vectors; ++v) {
            const Floats key_scale =
                load(scales(group[v / kGroupVectors]) + v % kGroupVectors * kWidth);
            const int64_t first = column + v * kWidth;
            for (int r = 0; r < R; ++r) {
                const Ints product =
                    sub_ints(load_ints(scores_[r] + first), broadcast_int(bias_[r]));
                const Floats value =
                    mul(to_floats(product), mul(key_scale, broadcast(query_scale_[r])));
                store(scores_[r] + first,
                      hide(value, tile + first, position_[r], call_.window));
            }
        }
    }

    // Scores of a tile become weights, in integers.
    void soften(int r) {
        Floats total = zeros(), scaled_total = zeros(), most = zeros();
        for (int i = 0; i < kTile; i += kWidth) {
            const Floats weight = exponential(sub(load(scores_[r] + i), broadcast(state_.maxima[r])));
            total = add(total, weight);
            const float* own = scales(values(here_[i / kGroup])) + i % kGroup;
            // A position without weight may hold anything.
            const Floats scaled = without_zeros(weight, mul(weight, load(own)));
            scaled_total = add(scaled_total, scaled);
            most = maximum(most, scaled);
            store(scores_[r] + i, scaled);
        }
        const float unit = reduce_max(most) / kLargest, sum = reduce_add(scaled_total);
        const Floats inverse = broadcast(unit > kLeastScale ? 1.0f / unit : 0.0f);
        for (int i = 0; i < kTile; i += kWidth) {
            const Ints value = to_ints(mul(load(scores_[r] + i), inverse));
            store_bytes(weights_high_[r] + i, shift_right<7>(value));
            store_bytes(weights_low_[r] + i, bits_and(value, broadcast_int(kLow - 1)));
        }
        unit_[r] = unit + (sum - sum);
        state_.add_weights(r, total);
    }

    // Adds the weighted values of `count` positions, for kVectors vectors from `d` on.
    void accumulate(int64_t count, int64_t d) {
        Ints high[R][kVectors], low[R][kVectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                high[r][v] = low[r][v] = broadcast_int(0);
            }
        }
        for (int64_t g = 0; g < count; g += kGroup) {
            const uint8_t* own = values(here_[g / kGroup]) + d * kPerUnit;
            const uint8_t* ahead = values(ahead_[g / kGroup]) + d * kGroup;
            HEADRACE_UNROLL for (int line = 0; line < kFetchedLines; ++line) {
                __builtin_prefetch(ahead + line * 64, 0, 1);
            }
            if (d == 0) __builtin_prefetch(scales(ahead), 0, 1);
            for (int64_t j = 0; j < kGroup; j += kPerUnit) {
                Ints value[kVectors];
                HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                    value[v] =
                        load_ints(own + j * call_.heads.dim + v * kWidth * kPerUnit);
                }
                HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                    const Ints weight_high = broadcast_unit(weights_high_[r] + g + j);
                    const Ints weight_low = broadcast_unit(weights_low_[r] + g + j);
                    HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                        high[r][v] = dot_unsigned_signed(high[r][v], weight_high, value[v]);
                        low[r][v] = dot_unsigned_signed(low[r][v], weight_low, value[v]);
                    }
                }
            }
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                float* sums = state_.sums[r] + d + v * kWidth;
                const Floats added =
                    mul(to_floats(combine(high[r][v], low[r][v])), broadcast(unit_[r]));
                store(sums, fma(load(sums), broadcast(state_.corrections[r]), added));
            }
        }
    }

    const Attention& call_;
    const RowBlock& block_;
    const RowBlock& next_;
    const int64_t group_bytes_;
    alignas(64) int8_t query_high_[R][kMaxHeadDim];
    alignas(64) int8_t query_low_[R][kMaxHeadDim];
    SegmentSums<R> state_;
    alignas(64) float scores_[R][kTile];
    alignas(64) int8_t weights_high_[R][kTile];
    alignas(64) int8_t weights_low_[R][kTile];
    int64_t here_[kTile / kGroup];
    int64_t ahead_[kTile / kGroup];
    int64_t position_[R];
    int64_t out_[R];
    int32_t bias_[R];
    float query_scale_[R];
    float unit_[R];
};

}  // namespace

void attention_int8(const Attention& call, const Step& step, Worker& worker) {
    attend_row_blocks<Int8RowBlockAttention, kMostRowsInt8>(call, step, worker);
}

}  // namespace headrace::HEADRACE_ISA

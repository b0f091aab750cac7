// Causal attention over paged keys and values with an online softmax (arXiv:1805.02867,
// arXiv:2205.14135): a block of rows (tokens x heads of one KV head) walks the pages in place.
//
// Positions are taken in tiles of 64 counted from position 0, and a row's arithmetic depends on
// nothing but the row and its context: decode, prefill in one piece and prefill in chunks give the
// same bits. A position that a row must not see has weight exactly 0 (so that NaN in a value may
// reach earlier rows of its own sequence, which is lost anyway, and never another sequence).
#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kGroup = 16;  // positions that a key vector interleaves
constexpr int kTile = 64;
constexpr int kGroupVectors = kGroup / kWidth;
constexpr int kDimVectors = 2;
#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
#else
constexpr int kMaxRows = 4;
#endif
constexpr float kMasked = -__builtin_inff();
// Stands for the maximum of nothing: finite, so that exp(masked - it) is 0 rather than NaN.
constexpr float kNoMaximum = -1e30f;

HEADRACE_INLINE Ints broadcast_unit(const void* p) {
    int32_t unit;
    __builtin_memcpy(&unit, p, 4);
    return broadcast_int(unit);
}

// Rows [first, first + count) of one sequence and KV head; row i is token i / group of the
// sequence's new tokens and query head i % group of the KV head's.
struct RowBlock {
    int64_t token;     // the sequence's first new token within the step
    int64_t position;  // its position
    int64_t group;     // query heads of a KV head
    int64_t kv_head;
    int64_t first;
    int64_t count;
    const int32_t* pages;

    int64_t end() const { return position + (first + count - 1) / group + 1; }
    // The tile that holds the first position that a row sees.
    int64_t begin(int64_t window) const {
        const int64_t oldest = window > 0 ? position + first / group - window + 1 : 0;
        return oldest > 0 ? oldest / kTile * kTile : 0;
    }
};

template <class D, int R>
class RowBlockAttention {
    using Storage = typename D::Storage;
    static constexpr int kPerUnit = 4 / sizeof(Storage);

  public:
    RowBlockAttention(const Attention& call, const RowBlock& block, const RowBlock& next)
        : call_(call), block_(block), next_(next) {
        const int64_t dim = call.heads.dim, group = block.group;
        for (int r = 0; r < R; ++r) {
            // Rows past the end repeat the last one and are not stored.
            const int64_t row = block.first + (r < block.count ? r : block.count - 1);
            const int64_t column = (block.kv_head * group + row % group) * dim;
            position_[r] = block.position + row / group;
            out_[r] = (block.token + row / group) * call.heads.query * dim + column;
            const auto* query = static_cast<const Storage*>(call.qkv) +
                                (block.token + row / group) *
                                    (call.heads.query + 2 * call.heads.kv) * dim +
                                column;
            __builtin_memcpy(query_[r], query, static_cast<size_t>(dim) * sizeof(Storage));
            for (int64_t i = 0; i < dim; i += kWidth) store(sums_[r] + i, zeros());
            maximum_[r] = kNoMaximum;
            total_[r] = 0.0f;
        }
    }

    void run() {
        const int64_t end = block_.end();
        for (int64_t tile = block_.begin(call_.window); tile < end; tile += kTile) {
            const int64_t count = end - tile < kTile ? end - tile : kTile;
            // Pages lie anywhere, so that the hardware cannot guess what comes next: the next tile,
            // or the first of the next block of rows.
            const bool more = tile + kTile < end;
            const RowBlock& ahead = more ? block_ : next_;
            const int64_t ahead_tile = more ? tile + kTile : next_.begin(call_.window);
            for (int64_t g = 0; g < kTile; g += kGroup) {
                const int64_t ahead_slot =
                    slot(ahead, ahead_tile + g < ahead.end() ? ahead_tile + g : ahead_tile);
                if (g < count) {
                    score(tile + g, g, ahead_slot);
                } else {
                    for (int r = 0; r < R; ++r) {
                        for (int v = 0; v < kGroupVectors; ++v) {
                            store(scores_[r] + g + v * kWidth, broadcast(kMasked));
                        }
                    }
                }
            }
            for (int r = 0; r < R; ++r) soften(r);
            for (int64_t d = 0; d < call_.heads.dim; d += kDimVectors * kWidth) {
                accumulate(tile, count, d);
            }
        }
        for (int64_t r = 0; r < block_.count; ++r) {
            const Floats inverse = broadcast(1.0f / total_[r]);
            Storage* out = static_cast<Storage*>(call_.out) + out_[r];
            for (int64_t i = 0; i < call_.heads.dim; i += kWidth) {
                D::store_floats(out + i, mul(load(sums_[r] + i), inverse));
            }
        }
    }

  private:
    // Offset of a position's keys, or values, of a block's KV head within all pages.
    int64_t slot(const RowBlock& block, int64_t position) const {
        const int64_t size = call_.cache.block_size;
        const int64_t page = block.pages[position / size];
        return ((page * call_.heads.kv + block.kv_head) * size + position % size) * call_.heads.dim;
    }

    // Scaled and masked scores of the 16 positions from `position` on; `ahead_slot` is fetched.
    void score(int64_t position, int64_t column, int64_t ahead_slot) {
        const auto* all_keys = static_cast<const Storage*>(call_.cache.keys);
        const auto* keys = all_keys + slot(block_, position);
        const auto* ahead_keys = all_keys + ahead_slot;
        const auto* ahead_values = static_cast<const Storage*>(call_.cache.values) + ahead_slot;
        Floats acc[R][kGroupVectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) acc[r][v] = zeros();
        }
        for (int64_t d = 0; d < call_.heads.dim; d += kPerUnit) {
            __builtin_prefetch(ahead_keys + d * kGroup, 0, 1);
            __builtin_prefetch(ahead_values + d * kGroup, 0, 1);
            Ints key[kGroupVectors];
            HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
                key[v] = load_ints(keys + d * kGroup + v * kWidth * kPerUnit);
            }
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                const Ints query = broadcast_unit(query_[r] + d);
                HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
                    acc[r][v] = dot_unit(D{}, acc[r][v], key[v], query);
                }
            }
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
                const int64_t first = position + v * kWidth;
                Floats value = mul(acc[r][v], broadcast(call_.scale));
                if (position_[r] + 1 - first < kWidth) {
                    value = keep_first(value, static_cast<int>(position_[r] + 1 - first), kMasked);
                }
                if (call_.window > 0 && position_[r] - call_.window + 1 > first) {
                    value = drop_first(
                        value, static_cast<int>(position_[r] - call_.window + 1 - first), kMasked);
                }
                store(scores_[r] + column + v * kWidth, value);
            }
        }
    }

    // Scores of a tile become weights; the running maximum and total move on.
    void soften(int r) {
        Floats largest = load(scores_[r]);
        for (int i = kWidth; i < kTile; i += kWidth) {
            largest = maximum(largest, load(scores_[r] + i));
        }
        const float old = maximum_[r];
        const float tile_maximum = reduce_max(largest);
        const float now = tile_maximum > old ? tile_maximum : old;
        maximum_[r] = now;
        Floats total = zeros();
        for (int i = 0; i < kTile; i += kWidth) {
            const Floats weight = exponential(sub(load(scores_[r] + i), broadcast(now)));
            total = add(total, weight);
            D::store_floats(weights_[r] + i, weight);
        }
        alignas(64) float factor[kWidth];
        store(factor, exponential(broadcast(old - now)));
        correction_[r] = factor[0];
        total_[r] = total_[r] * factor[0] + reduce_add(total);
    }

    // Adds the weighted values of `count` positions, for kDimVectors vectors from `d` on.
    void accumulate(int64_t tile, int64_t count, int64_t d) {
        Floats acc[R][kDimVectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
                acc[r][v] = mul(load(sums_[r] + d + v * kWidth), broadcast(correction_[r]));
            }
        }
        for (int64_t g = 0; g < count; g += kGroup) {
            const auto* values = static_cast<const Storage*>(call_.cache.values) +
                                 slot(block_, tile + g) +
                                 d * kPerUnit;
            const int64_t left = count - g < kGroup ? count - g : kGroup;
            const int64_t whole = left / kPerUnit * kPerUnit;
            for (int64_t j = 0; j < whole; j += kPerUnit) {
                add_unit<false>(acc, values + j * call_.heads.dim, g + j);
            }
            if (whole < left) add_unit<true>(acc, values + whole * call_.heads.dim, g + whole);
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
                store(sums_[r] + d + v * kWidth, acc[r][v]);
            }
        }
    }

    // `half`: the unit's second position is past the end and may hold anything, NaN included.
    template <bool half>
    __attribute__((always_inline)) void add_unit(Floats (&acc)[R][kDimVectors],
                                                 const Storage* values, int64_t column) const {
        Ints value[kDimVectors];
        HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
            value[v] = load_ints(values + v * kWidth * kPerUnit);
            if constexpr (half) value[v] = bits_and(value[v], broadcast_int(0xffff));
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            const Ints weight = broadcast_unit(weights_[r] + column);
            HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
                acc[r][v] = dot_unit(D{}, acc[r][v], value[v], weight);
            }
        }
    }

    const Attention& call_;
    const RowBlock& block_;
    const RowBlock& next_;
    alignas(64) Storage query_[R][kMaxHeadDim];
    alignas(64) float sums_[R][kMaxHeadDim];
    alignas(64) float scores_[R][kTile];
    alignas(64) Storage weights_[R][kTile];
    int64_t position_[R];
    int64_t out_[R];
    float maximum_[R];
    float total_[R];
    float correction_[R];
};

template <class D, int R>
void attend(const Attention& call, const RowBlock& block, const RowBlock& next) {
    RowBlockAttention<D, R>(call, block, next).run();
}

template <class D>
void attend_block(const Attention& call, const RowBlock& block, const RowBlock& next) {
    switch (block.count) {
        case 1: return attend<D, 1>(call, block, next);
        case 2: return attend<D, 2>(call, block, next);
        case 3: return attend<D, 3>(call, block, next);
        case 4: return attend<D, 4>(call, block, next);
#if defined(__AVX512F__)
        case 5:
        case 6: return attend<D, 6>(call, block, next);
        case 7:
        case 8: return attend<D, 8>(call, block, next);
        default: return attend<D, kMaxRows>(call, block, next);
#endif
    }
}

// All blocks of rows of a step, in order: by sequence, KV head and row.
class RowBlockWalk {
  public:
    RowBlockWalk(const Attention& call, const Step& step)
        : call_(call), step_(step), group_(call.heads.query / call.heads.kv) {}

    int64_t count() const {
        int64_t total = 0;
        for (int64_t s = 0; s < step_.sequences; ++s) total += blocks(s);
        return total;
    }

    // Block number `index`, which must not be below the last that was asked for.
    RowBlock at(int64_t index) {
        while (index >= before_ + blocks(sequence_)) before_ += blocks(sequence_++);
        const int64_t tokens = new_tokens(sequence_), rows = tokens * group_;
        const int64_t a_head = blocks(sequence_) / call_.heads.kv;
        const int64_t first = (index - before_) % a_head * kMaxRows;
        return {call_.query_start[sequence_],
                call_.context_lengths[sequence_] - tokens,
                group_,
                (index - before_) / a_head,
                first,
                rows - first < kMaxRows ? rows - first : kMaxRows,
                call_.block_tables + call_.rows[sequence_] * call_.max_blocks};
    }

  private:
    int64_t new_tokens(int64_t sequence) const {
        return call_.query_start[sequence + 1] - call_.query_start[sequence];
    }
    int64_t blocks(int64_t sequence) const {
        return (new_tokens(sequence) * group_ + kMaxRows - 1) / kMaxRows * call_.heads.kv;
    }

    const Attention& call_;
    const Step& step_;
    const int64_t group_;
    int64_t sequence_ = 0;
    int64_t before_ = 0;
};

}  // namespace

void attention(const Attention& call, const Step& step, Worker& worker) {
    RowBlockWalk walk(call, step);
    const int64_t total = walk.count();
    int64_t begin = 0, end = 0;
    while (worker.take_run(total, begin, end)) {
        RowBlock next = walk.at(begin);
        for (int64_t index = begin; index < end; ++index) {
            const RowBlock block = next;
            if (index + 1 < end) next = walk.at(index + 1);
            if (call.type == Type::float32) {
                attend_block<Float32>(call, block, next);
            } else {
                attend_block<BFloat16>(call, block, next);
            }
        }
    }
}

}  // namespace headrace::HEADRACE_ISA

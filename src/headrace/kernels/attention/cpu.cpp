// Causal attention over paged keys and values with an online softmax (arXiv:1805.02867,
// arXiv:2205.14135): a block of rows (tokens x heads of one KV head) walks the pages in place.
//
// Positions are taken in tiles of 64 and segments of 512 counted from position 0, and a row's
// arithmetic depends on nothing but the row and its context: decode, prefill in one piece and prefill
// in chunks give the same bits, and so does a context that several workers share. A position that a
// row must not see has weight exactly 0 (so that NaN in a value may reach earlier rows of its own
// sequence, which is lost anyway, and never another sequence).
#include "rows.hpp"
#include "segment_sums.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

template <class D, int R>
class RowBlockAttention {
    using Storage = typename D::Storage;
    static constexpr int kPerUnit = 4 / sizeof(Storage);
    static constexpr int kLine = 64 / sizeof(Storage);
    static constexpr int kFetchedLines = kGroup * kDimVectors * kWidth / kLine;
    // Groups of positions that are scored together: few rows would wait for their own sums, and many
    // would load a unit of a query for each product.
    static constexpr int kJoint = kWidth == 8 ? 1 : R <= 6 ? kTile / kGroup : 2;

  public:
    RowBlockAttention(const Attention& call, const RowBlock& block, const RowBlock& next)
        : call_(call), block_(block), next_(next) {
        const int64_t dim = call.heads.dim;
        for (int r = 0; r < R; ++r) {
            // Rows past the end repeat the last one and are not stored.
            const RowPlace place = block.place(call.heads, r < block.count ? r : block.count - 1);
            position_[r] = place.position;
            out_[r] = place.out;
            const auto* query = static_cast<const Storage*>(call.qkv) + place.query;
            __builtin_memcpy(query_[r], query, static_cast<size_t>(dim) * sizeof(Storage));
        }
        state_.begin(dim);
    }

    void run() {
        const int64_t end = block_.end();
        const int64_t begin = block_.begin(call_.window);
        for (int64_t tile = begin; tile < end; tile += kTile) {
            if (tile % kSegment == 0 && tile != begin) state_.next_segment(call_.heads.dim);
            const int64_t count = end - tile < kTile ? end - tile : kTile;
            // Pages lie anywhere, so that the hardware cannot guess what comes next: the next tile,
            // or the first of the next block of rows. Its keys are fetched while keys are read and
            // its values while values are, so that memory is never idle.
            const bool more = tile + kTile < end;
            const RowBlock& ahead = more ? block_ : next_;
            const int64_t ahead_tile = more ? tile + kTile : next_.begin(call_.window);
            for (int64_t g = 0; g < kTile; g += kGroup) {
                ahead_[g / kGroup] =
                    slot(ahead, ahead_tile + g < ahead.end() ? ahead_tile + g : ahead_tile);
            }
            for (int64_t g = 0; g < kTile; g += kJoint * kGroup) {
                if (g < count) {
                    score(tile + g, g);
                } else {
                    for (int r = 0; r < R; ++r) {
                        for (int v = 0; v < kJoint * kGroupVectors; ++v) {
                            store(scores_[r] + g + v * kWidth, broadcast(kMasked));
                        }
                    }
                }
            }
            soften();
            for (int64_t d = 0; d < call_.heads.dim; d += kDimVectors * kWidth) {
                accumulate(tile, count, d);
            }
        }
        state_.template finish<D>(
            block_.count, call_.heads.dim, block_.partial,
            [&](int64_t r) { return static_cast<Storage*>(call_.out) + out_[r]; });
    }

  private:
    // Offset of a position's keys, or values, of a block's KV head within all pages.
    int64_t slot(const RowBlock& block, int64_t position) const {
        const int64_t size = call_.cache.block_size;
        const int64_t page = block.pages[position / size];
        return ((page * call_.cache.heads_apart + block.kv_head) * size + position % size) *
               call_.heads.dim;
    }

    // Scaled and masked scores of kJoint groups of positions from `position` on. Of those past the
    // end the first group stands in; they are masked.
    void score(int64_t position, int64_t column) {
        const auto* all_keys = static_cast<const Storage*>(call_.cache.keys);
        const Storage *keys[kJoint], *ahead[kJoint];
        for (int j = 0; j < kJoint; ++j) {
            const int64_t group = position + j * kGroup;
            keys[j] = all_keys + slot(block_, group < block_.end() ? group : position);
            ahead[j] = all_keys + ahead_[column / kGroup + j];
        }
        constexpr int vectors = kJoint * kGroupVectors;
        Floats acc[R][vectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) acc[r][v] = zeros();
        }
        for (int64_t d = 0; d < call_.heads.dim; d += kPerUnit) {
            Ints key[vectors];
            HEADRACE_UNROLL for (int j = 0; j < kJoint; ++j) {
                __builtin_prefetch(ahead[j] + d * kGroup, 0, 1);
                HEADRACE_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
                    key[j * kGroupVectors + v] =
                        load_ints(keys[j] + d * kGroup + v * kWidth * kPerUnit);
                }
            }
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                const Ints query = broadcast_unit(query_[r] + d);
                HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) {
                    acc[r][v] = dot_unit(D{}, acc[r][v], key[v], query);
                }
            }
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < vectors; ++v) {
                const Floats value = mul(acc[r][v], broadcast(call_.scale));
                store(scores_[r] + column + v * kWidth,
                      hide(value, position + v * kWidth, position_[r], call_.window));
            }
        }
    }

    // Scores of a tile become weights.
    void soften() {
        state_.raise_maxima(scores_);
        for (int r = 0; r < R; ++r) {
            Floats total = zeros();
            HEADRACE_UNROLL for (int i = 0; i < kTile; i += kJointExponentials * kWidth) {
                Floats weights[kJointExponentials];
                HEADRACE_UNROLL for (int j = 0; j < kJointExponentials; ++j) {
                    weights[j] =
                        sub(load(scores_[r] + i + j * kWidth), broadcast(state_.maxima[r]));
                }
                exponentials(weights);
                HEADRACE_UNROLL for (int j = 0; j < kJointExponentials; ++j) {
                    total = add(total, weights[j]);
                    D::store_floats(weights_[r] + i + j * kWidth, weights[j]);
                }
            }
            state_.add_weights(r, total);
        }
    }

    // Adds the weighted values of `count` positions, for kDimVectors vectors from `d` on.
    void accumulate(int64_t tile, int64_t count, int64_t d) {
        Floats acc[R][kDimVectors];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
                acc[r][v] = mul(load(state_.sums[r] + d + v * kWidth), broadcast(state_.corrections[r]));
            }
        }
        const auto* all_values = static_cast<const Storage*>(call_.cache.values);
        for (int64_t g = 0; g < count; g += kGroup) {
            const auto* values = all_values + slot(block_, tile + g) + d * kPerUnit;
            const auto* ahead = all_values + ahead_[g / kGroup] + d * kGroup;
            HEADRACE_UNROLL for (int line = 0; line < kFetchedLines; ++line) {
                __builtin_prefetch(ahead + line * kLine, 0, 1);
            }
            const int64_t left = count - g < kGroup ? count - g : kGroup;
            const int64_t whole = left / kPerUnit * kPerUnit;
            for (int64_t j = 0; j < whole; j += kPerUnit) {
                add_unit<false>(acc, values + j * call_.heads.dim, g + j);
            }
            if (whole < left) add_unit<true>(acc, values + whole * call_.heads.dim, g + whole);
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < kDimVectors; ++v) {
                store(state_.sums[r] + d + v * kWidth, acc[r][v]);
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
    SegmentSums<R> state_;
    alignas(64) float scores_[R][kTile];
    alignas(64) Storage weights_[R][kTile];
    int64_t ahead_[kTile / kGroup];
    int64_t position_[R];
    int64_t out_[R];
};

}  // namespace

void attention_int8(const Attention& call, const Step& step, Worker& worker);

void attention(const Attention& call, const Step& step, Worker& worker) {
    if (call.cache.type == Type::int8) return attention_int8(call, step, worker);
    attend_row_blocks<RowBlockAttention, kMostRows>(call, step, worker);
}

namespace {

template <class D>
void fold_heads(const Attention& call, const Step& step, Worker& worker) {
    const int64_t dim = call.heads.dim, group = call.heads.query / call.heads.kv;
    const int64_t most_rows = call.cache.type == Type::int8 ? kMostRowsInt8 : kMostRows;
    RowBlockWalk walk(call, step, most_rows, worker.count());
    const int64_t total = walk.count_split_heads();
    int64_t index = 0;
    while (worker.take(total, index)) {
        walk.fold_split_head(index, [&](int64_t token, int64_t rows, int64_t kv_head,
                                        float* partials, int64_t segments) {
            for (int64_t r = 0; r < rows; ++r) {
                RowSums sums = read_partial(partial_row(partials, r, dim));
                for (int64_t s = 1; s < segments; ++s) {
                    float* other = partials + s * partial_slot_floats(dim);
                    sums.fold(read_partial(partial_row(other, r, dim)), dim);
                }
                const int64_t head = kv_head * group + r % group;
                store_row<D>(sums, dim,
                             static_cast<typename D::Storage*>(call.out) +
                                 ((token + r / group) * call.heads.query + head) * dim);
            }
        });
    }
}

}  // namespace

// What attention left in parts.
void fold_attention(const Attention& call, const Step& step, Worker& worker) {
    (call.type == Type::float32 ? fold_heads<Float32> : fold_heads<BFloat16>)(call, step, worker);
}

}  // namespace headrace::HEADRACE_ISA

// Rows of queries that walk the pages of a sequence together, and what hides positions from them.
#pragma once

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int kGroup = 16;  // positions that a key vector interleaves
constexpr int kTile = 64;
// Positions that are summed apart, then folded in order: so it changes no bit who sums which.
constexpr int kSegment = 512;
constexpr int kGroupVectors = kGroup / kWidth;
constexpr int kDimVectors = 2;
// Rows that share a walk over the pages; over int8, whose products have two sums each, fewer.
constexpr int kMostRows = kWidth == 16 ? 12 : 4;
constexpr int kMostRowsInt8 = kWidth == 16 ? 8 : 4;
constexpr float kMasked = -__builtin_inff();
// Stands for the maximum of nothing: finite, so that exp(masked - it) is 0 rather than NaN.
constexpr float kNoMaximum = -1e30f;

HEADRACE_INLINE Ints broadcast_unit(const void* p) {
    int32_t unit;
    __builtin_memcpy(&unit, p, 4);
    return broadcast_int(unit);
}

// Where a row stands: its position, and the first elements of its output and of its query.
struct RowPlace {
    int64_t position;
    int64_t out;
    int64_t query;
};

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
    float* partial;   // where the sums of one segment go; null: all segments are computed
    int64_t segment;  // that one

    RowPlace place(const Heads& heads, int64_t index) const {
        const int64_t row = first + index, at = token + row / group;
        const int64_t column = (kv_head * group + row % group) * heads.dim;
        return {position + row / group, at * heads.query * heads.dim + column,
                at * (heads.query + 2 * heads.kv) * heads.dim + column};
    }
    // Past the last position that counts.
    int64_t end() const {
        const int64_t seen = position + (first + count - 1) / group + 1;
        const int64_t last = (segment + 1) * kSegment;
        return partial != nullptr && last < seen ? last : seen;
    }
    // The tile that holds the first position that a row sees.
    int64_t begin(int64_t window) const {
        if (partial != nullptr) return segment * kSegment;
        const int64_t oldest = window > 0 ? position + first / group - window + 1 : 0;
        return oldest > 0 ? oldest / kTile * kTile : 0;
    }
};

// Scores of the positions from `first` on without those that the query's position must not see.
HEADRACE_INLINE Floats hide(Floats scores, int64_t first, int64_t position, int64_t window) {
    if (position + 1 - first < kWidth) {
        scores = keep_first(scores, static_cast<int>(position + 1 - first), kMasked);
    }
    if (window > 0 && position - window + 1 > first) {
        scores = drop_first(scores, static_cast<int>(position - window + 1 - first), kMasked);
    }
    return scores;
}

// All blocks of rows of a step, of `most_rows` at most, in order: by sequence, KV head and row. Where
// a sequence has few rows and a long context, a block is one segment of it: nobody should be left
// alone with it.
class RowBlockWalk {
  public:
    RowBlockWalk(const Attention& call, const Step& step, int64_t most_rows, int workers)
        : call_(call),
          step_(step),
          group_(call.heads.query / call.heads.kv),
          most_rows_(most_rows),
          split_(workers > 1 && call.window == 0 && call.partials != nullptr) {}

    int64_t count() const {
        RowBlockWalk walk = *this;
        int64_t total = 0;
        for (; walk.sequence_ < step_.sequences; walk.leave()) total += walk.blocks();
        return total;
    }

    // Block number `index`; found at once where it is not below the last that was asked for.
    RowBlock at(int64_t index) {
        if (index < before_) restart();
        while (index >= before_ + blocks()) leave();
        const int64_t rows = new_tokens() * group_, within = index - before_;
        const int64_t a_head = blocks() / call_.heads.kv, segments = split_segments();
        const int64_t first = segments > 0 ? 0 : within % a_head * most_rows_;
        return {call_.query_start[sequence_],
                call_.context_lengths[sequence_] - new_tokens(),
                group_,
                within / a_head,
                first,
                rows - first < most_rows_ ? rows - first : most_rows_,
                call_.block_tables + call_.rows[sequence_] * call_.max_blocks,
                segments > 0 ? partial(within) : nullptr,
                segments > 0 ? within % a_head : 0};
    }

    // Calls `fold(token, rows, kv_head, partials, segments)` for KV head number `index` of those
    // that are split; false: there is none.
    template <class Fold>
    bool fold_split_head(int64_t index, const Fold& fold) {
        if (index < split_heads_) restart();
        for (; sequence_ < step_.sequences; leave()) {
            const int64_t segments = split_segments();
            if (segments == 0) continue;
            if (index < split_heads_ + call_.heads.kv) {
                const int64_t head = index - split_heads_;
                fold(call_.query_start[sequence_], new_tokens() * group_, head,
                     partial(head * segments), segments);
                return true;
            }
        }
        return false;
    }

    int64_t count_split_heads() const {
        RowBlockWalk walk = *this;
        while (walk.sequence_ < step_.sequences) walk.leave();
        return walk.split_heads_;
    }

  private:
    int64_t new_tokens() const {
        return call_.query_start[sequence_ + 1] - call_.query_start[sequence_];
    }
    // 0: the sequence is not split.
    int64_t split_segments() const {
        const int64_t segments = (call_.context_lengths[sequence_] + kSegment - 1) / kSegment;
        const bool fits = slots_ + segments * call_.heads.kv <= kPartialSlots;
        const bool few = new_tokens() > 0 && new_tokens() * group_ <= most_rows_;
        return split_ && few && fits && segments > 1 ? segments : 0;
    }
    int64_t blocks() const {
        const int64_t segments = split_segments();
        if (segments > 0) return segments * call_.heads.kv;
        return (new_tokens() * group_ + most_rows_ - 1) / most_rows_ * call_.heads.kv;
    }
    float* partial(int64_t number) const {
        return call_.partials + (slots_ + number) * partial_slot_floats(call_.heads.dim);
    }
    void restart() { sequence_ = before_ = slots_ = split_heads_ = 0; }
    void leave() {
        const int64_t segments = split_segments();
        before_ += blocks();
        slots_ += segments * call_.heads.kv;
        if (segments > 0) split_heads_ += call_.heads.kv;
        ++sequence_;
    }

    const Attention& call_;
    const Step& step_;
    const int64_t group_;
    const int64_t most_rows_;
    const bool split_;
    int64_t sequence_ = 0;
    int64_t before_ = 0;
    int64_t slots_ = 0;
    int64_t split_heads_ = 0;
};

// Runs an attention over as many rows as `block` has, or a few more.
template <template <class, int> class RowBlockAttention, class D, int kMostRows>
HEADRACE_INLINE void attend_block(const Attention& call, const RowBlock& block,
                                  const RowBlock& next) {
    switch (block.count) {
        case 1: return RowBlockAttention<D, 1>(call, block, next).run();
        case 2: return RowBlockAttention<D, 2>(call, block, next).run();
        case 3: return RowBlockAttention<D, 3>(call, block, next).run();
        case 4: return RowBlockAttention<D, 4>(call, block, next).run();
        default: break;
    }
    if constexpr (kMostRows > 4) {
        if (block.count <= 6) return RowBlockAttention<D, 6>(call, block, next).run();
        if (block.count <= 8) return RowBlockAttention<D, 8>(call, block, next).run();
    }
    if constexpr (kMostRows > 8) return RowBlockAttention<D, kMostRows>(call, block, next).run();
}

// A worker's share of a step's attention.
template <template <class, int> class RowBlockAttention, int kMostRows>
HEADRACE_INLINE void attend_row_blocks(const Attention& call, const Step& step, Worker& worker) {
    RowBlockWalk walk(call, step, kMostRows, worker.count());
    const int64_t total = walk.count();
    int64_t begin = 0, end = 0;
    while (worker.take_run(total, begin, end)) {
        RowBlock next = walk.at(begin);
        for (int64_t index = begin; index < end; ++index) {
            const RowBlock block = next;
            if (index + 1 < end) next = walk.at(index + 1);
            if (call.type == Type::float32) {
                attend_block<RowBlockAttention, Float32, kMostRows>(call, block, next);
            } else {
                attend_block<RowBlockAttention, BFloat16, kMostRows>(call, block, next);
            }
        }
    }
}

}  // namespace headrace::HEADRACE_ISA

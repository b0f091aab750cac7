// Rows of queries that walk the pages of a sequence together, and what hides positions from them.
#pragma once

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int kGroup = 16;  // positions that a key vector interleaves
constexpr int kTile = 64;
constexpr int kGroupVectors = kGroup / kWidth;
constexpr int kDimVectors = 2;
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

// All blocks of rows of a step, of `most_rows` at most, in order: by sequence, KV head and row.
class RowBlockWalk {
  public:
    RowBlockWalk(const Attention& call, const Step& step, int64_t most_rows)
        : call_(call),
          step_(step),
          group_(call.heads.query / call.heads.kv),
          most_rows_(most_rows) {}

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
        const int64_t first = (index - before_) % a_head * most_rows_;
        return {call_.query_start[sequence_],
                call_.context_lengths[sequence_] - tokens,
                group_,
                (index - before_) / a_head,
                first,
                rows - first < most_rows_ ? rows - first : most_rows_,
                call_.block_tables + call_.rows[sequence_] * call_.max_blocks};
    }

  private:
    int64_t new_tokens(int64_t sequence) const {
        return call_.query_start[sequence + 1] - call_.query_start[sequence];
    }
    int64_t blocks(int64_t sequence) const {
        return (new_tokens(sequence) * group_ + most_rows_ - 1) / most_rows_ * call_.heads.kv;
    }

    const Attention& call_;
    const Step& step_;
    const int64_t group_;
    const int64_t most_rows_;
    int64_t sequence_ = 0;
    int64_t before_ = 0;
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
    RowBlockWalk walk(call, step, kMostRows);
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

// Low-rank updates chosen token by token: narrow rows first, then their expansion into the output.
//
// Every sum is one chain of additions in the order of K or of the rank, whatever else is in the
// step: a token's result depends on nothing but the token.
#include <algorithm>

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int64_t kTokens = 8;     // neighbours that share what they read, where the adapter is one
constexpr int64_t kSharedElements = 1 << 17;  // of `down`, below which a barrier costs more
constexpr int64_t kRows = 8;       // rows of `down` of one task
constexpr int64_t kColumns = 256;  // output columns of one task
#if defined(__AVX512F__)
constexpr int kRowTile = 4;
#else
constexpr int kRowTile = 2;  // of 16 registers
#endif
constexpr int kTokenTile = 4;
constexpr int kVectors = 4;

// Dot products of R rows of `down` with T rows of x.
template <class D, int R, int T>
HEADRACE_INLINE void dot_rows(const typename D::Storage* down, const typename D::Storage* x,
                              int64_t k, float* narrow, int64_t narrow_stride) {
    Floats sums[R][T];
    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
        HEADRACE_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = zeros();
    }
    int64_t i = 0;
    for (; i + kWidth <= k; i += kWidth) {
        Floats values[T];
        HEADRACE_UNROLL for (int t = 0; t < T; ++t) values[t] = D::load_floats(x + t * k + i);
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            const Floats weight = D::load_floats(down + r * k + i);
            HEADRACE_UNROLL for (int t = 0; t < T; ++t) {
                sums[r][t] = fma(weight, values[t], sums[r][t]);
            }
        }
    }
    if (i < k) {
        HEADRACE_UNROLL for (int t = 0; t < T; ++t) {
            const Floats value = load_first<D>(x + t * k + i, k - i);
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                sums[r][t] = fma(load_first<D>(down + r * k + i, k - i), value, sums[r][t]);
            }
        }
    }
    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
        HEADRACE_UNROLL for (int t = 0; t < T; ++t) {
            narrow[t * narrow_stride + r] = reduce_add(sums[r][t]);
        }
    }
}

template <class D, int T>
void narrow_rows(const LowRank& call, const typename D::Storage* down, int64_t token,
                 int64_t local, int64_t rows) {
    const auto* x = static_cast<const typename D::Storage*>(call.x) + token * call.k;
    float* narrow = call.narrow + token * call.most_rows + local;
    int64_t r = 0;
    for (; r + kRowTile <= rows; r += kRowTile) {
        dot_rows<D, kRowTile, T>(down + r * call.k, x, call.k, narrow + r, call.most_rows);
    }
    for (; r < rows; ++r) {
        dot_rows<D, 1, T>(down + r * call.k, x, call.k, narrow + r, call.most_rows);
    }
}

// Rows [local, local + kRows) of the adapter of tokens [first, last), which they share.
template <class D>
void narrow_run(const LowRank& call, int64_t first, int64_t last, int64_t local) {
    const int64_t* own = call.pieces + call.adapter_of_token[first] * call.projections * 3;
    const int64_t* end = own + (call.projections - 1) * 3;
    const int64_t left = end[0] + end[1] - own[0] - local;
    if (left <= 0) return;
    const int64_t rows = left < kRows ? left : kRows;
    const auto* down = static_cast<const typename D::Storage*>(call.down) +
                       (own[0] + local) * call.k;
    int64_t token = first;
    for (; token + kTokenTile <= last; token += kTokenTile) {
        narrow_rows<D, kTokenTile>(call, down, token, local, rows);
    }
    for (; token < last; ++token) narrow_rows<D, 1>(call, down, token, local, rows);
}

// out[0 .. V vectors) += sum over the rank of narrow * up.
template <class D, class Out, int V>
HEADRACE_INLINE void widen(const float* narrow, float scale, const typename D::Storage* up,
                           int64_t rank, int64_t width, typename Out::Storage* out) {
    Floats sums[V];
    HEADRACE_UNROLL for (int v = 0; v < V; ++v) sums[v] = zeros();
    for (int64_t r = 0; r < rank; ++r) {
        const Floats value = broadcast(narrow[r]);
        HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
            sums[v] = fma(value, D::load_floats(up + r * width + v * kWidth), sums[v]);
        }
    }
    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
        const Floats before = Out::load_floats(out + v * kWidth);
        Out::store_floats(out + v * kWidth, fma(sums[v], broadcast(scale), before));
    }
}

template <class D, class Out>
void widen_last(const float* narrow, float scale, const typename D::Storage* up, int64_t rank,
                int64_t width, int64_t count, typename Out::Storage* out) {
    Floats sums = zeros();
    for (int64_t r = 0; r < rank; ++r) {
        sums = fma(broadcast(narrow[r]), load_first<D>(up + r * width, count), sums);
    }
    typename Out::Storage part[kWidth];
    const Floats before = load_first<Out>(out, count);
    Out::store_floats(part, fma(sums, broadcast(scale), before));
    for (int64_t i = 0; i < count; ++i) out[i] = part[i];
}

// Columns [begin, end) of one token.
template <class D, class Out>
void widen_token(const LowRank& call, int64_t token, int64_t begin, int64_t end) {
    const int64_t adapter = call.adapter_of_token[token];
    const int64_t* own = call.pieces + adapter * call.projections * 3;
    auto* row = static_cast<typename Out::Storage*>(call.out) +
                token * call.columns[call.projections];
    for (int64_t p = 0; p < call.projections; ++p) {
        const int64_t* piece = own + p * 3;
        const int64_t start = call.columns[p];
        const int64_t width = call.columns[p + 1] - start;
        const int64_t first = begin > start ? begin : start;
        const int64_t last = end < start + width ? end : start + width;
        if (piece[1] == 0 || first >= last) continue;
        const float* narrow = call.narrow + token * call.most_rows + piece[0] - own[0];
        const float scale = call.scales[adapter * call.projections + p];
        const auto* up = static_cast<const typename D::Storage*>(call.up) + piece[2] - start;
        int64_t c = first;
        for (; c + kVectors * kWidth <= last; c += kVectors * kWidth) {
            widen<D, Out, kVectors>(narrow, scale, up + c, piece[1], width, row + c);
        }
        for (; c + kWidth <= last; c += kWidth) {
            widen<D, Out, 1>(narrow, scale, up + c, piece[1], width, row + c);
        }
        if (c < last) {
            widen_last<D, Out>(narrow, scale, up + c, piece[1], width, last - c, row + c);
        }
    }
}

// Rows [row, row + kRows) of what tokens [first, last) are narrowed to, run by run of one adapter.
template <class D>
void narrow_chunk(const LowRank& call, int64_t first, int64_t last, int64_t row) {
    const int32_t* adapters = call.adapter_of_token;
    for (int64_t token = first; token < last;) {
        int64_t end = token + 1;
        while (end < last && adapters[end] == adapters[token]) ++end;
        if (adapters[token] >= 0) narrow_run<D>(call, token, end, row);
        token = end;
    }
}

template <class D, class Out>
void widen_chunk(const LowRank& call, int64_t first, int64_t last, int64_t begin, int64_t end) {
    for (int64_t token = first; token < last; ++token) {
        if (call.adapter_of_token[token] >= 0) widen_token<D, Out>(call, token, begin, end);
    }
}

// A chunk of tokens is one worker's from end to end: no worker waits for another.
template <class D, class Out>
void add_by_chunks(const LowRank& call, int64_t tokens, int64_t chunk, Worker& worker) {
    const int64_t columns = call.columns[call.projections];
    int64_t index = 0;
    while (worker.take((tokens + chunk - 1) / chunk, index)) {
        const int64_t first = index * chunk;
        const int64_t last = first + chunk < tokens ? first + chunk : tokens;
        for (int64_t row = 0; row < call.most_rows; row += kRows) {
            narrow_chunk<D>(call, first, last, row);
        }
        widen_chunk<D, Out>(call, first, last, 0, columns);
    }
}

// All workers share every chunk: fewer tokens than workers, and much to read for each.
template <class D, class Out>
void add_together(const LowRank& call, int64_t tokens, Worker& worker) {
    const int64_t row_blocks = (call.most_rows + kRows - 1) / kRows;
    int64_t task = 0;
    while (worker.take(tokens * row_blocks, task)) {
        const int64_t token = task / row_blocks;
        narrow_chunk<D>(call, token, token + 1, task % row_blocks * kRows);
    }
    worker.next_phase();
    const int64_t columns = call.columns[call.projections];
    const int64_t column_blocks = (columns + kColumns - 1) / kColumns;
    while (worker.take(tokens * column_blocks, task)) {
        const int64_t token = task / column_blocks;
        const int64_t begin = task % column_blocks * kColumns;
        const int64_t end = begin + kColumns < columns ? begin + kColumns : columns;
        widen_chunk<D, Out>(call, token, token + 1, begin, end);
    }
}

template <class D, class Out>
void add_low_rank(const LowRank& call, const Step& step, Worker& worker) {
    const int64_t tokens = step.tokens, workers = worker.count();
    if (tokens == 0) return;
    if (tokens < workers && call.most_rows * call.k >= kSharedElements) {
        add_together<D, Out>(call, tokens, worker);
        return;
    }
    const int64_t share = (tokens + workers - 1) / workers;
    add_by_chunks<D, Out>(call, tokens, std::clamp<int64_t>(share, 1, kTokens), worker);
}

}  // namespace

void low_rank(const LowRank& call, const Step& step, Worker& worker) {
    if (call.type == Type::float32) {
        (call.out_type == Type::float32 ? add_low_rank<Float32, Float32>
                                        : add_low_rank<Float32, BFloat16>)(call, step, worker);
    } else {
        (call.out_type == Type::float32 ? add_low_rank<BFloat16, Float32>
                                        : add_low_rank<BFloat16, BFloat16>)(call, step, worker);
    }
}

}  // namespace headrace::HEADRACE_ISA

// Linear layers over interleaved tiles: activations are normalised and packed once, then every tile
// of weights meets every block of rows.
//
// One element of the output is one chain of additions along K, in the order of K, whatever the
// number of rows: a row's result depends on nothing but the row. (Block formats add int32 sums of
// 32 products, which are exact, so only the order of the blocks matters; the products of outliers
// come after, in the order of K too.)
#include "kernel_table.hpp"
#include "tile_products.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

// Below, every worker packs for itself, all columns as one piece: no waiting.
constexpr int kPrivateElements = 4096;
// Chunks of so many elements, those that K does not fill included.
constexpr int kPrivateChunks = kPrivateElements / kBlock + kMostPackedRows;
constexpr int64_t kPrivateBytes =
    kPrivateChunks * (packed_chunk_bytes(Format::float32) + outlier_row_bytes(1, 0)) +
    kMostPackedRows * outlier_row_bytes(0, 1);
using PrivateOutliers = OutlierCollector<kMostPackedRows, kPrivateChunks, kPrivateChunks>;

// Few rows give many pieces, so that all workers pack; of many rows, longer runs are read.
constexpr int kMostPieceChunks = 6;
constexpr int piece_chunks(int64_t rows) {
    return rows > kMostChunkRows ? kMostPieceChunks : kFewestPieceChunks;
}
using SharedOutliers =
    OutlierCollector<kMostChunkRows, kMostPieceChunks, kMostChunkRows * kMostPieceChunks>;

template <Format format>
struct FormatConstant {
    static constexpr Format value = format;
};

// The most rows that one pass over a tile serves, where nobody has measured. The registers hold 12
// rows (or, with an int32 and a float32 sum of each in a block format, 6), which is best where
// weights come from memory: then every pass beyond the first waits for nothing, and block formats
// gain by 8 rows with their float32 sums in memory. With many rows the weights are cached, and what
// counts is that the packed rows are (8 rows) and that sums stay in registers (6). AVX2 has half the
// registers, of half the width: 4 rows, and 6 where sums of products stay in int16.
constexpr int32_t usual_rows([[maybe_unused]] Format format, [[maybe_unused]] int64_t rows) {
#if defined(__AVX512F__)
    const bool many = rows > 64;
    if (is_dense(format)) return many ? 8 : 12;
    if (rows <= 8) return 8;
    return format == Format::q4_1 ? 12 : 6;
#else
    return is_dense(format) || format == Format::q8_0 ? 4 : 6;
#endif
}

// ---- what becomes of the sums -----------------------------------------------------------------

template <class Out>
void store_sums(const LinearCall& call, int64_t row, int64_t rows, int64_t column, int64_t columns,
                const float* sums) {
    for (int64_t r = 0; r < rows; ++r, sums += kTileRows) {
        auto* out = static_cast<typename Out::Storage*>(call.out) +
                    (row + r) * call.weight.n + column;
        for (int64_t i = 0; i < columns; i += kWidth) {
            Floats value = load(sums + i);
            if (call.bias != nullptr) {
                value = add(value, load_first<Float32>(call.bias + column + i, columns - i));
            }
            store_first<Out>(out + i, value, columns - i);
        }
    }
}

// Gate and up are rounded as if stored and read again: a step with adapters, which needs them apart,
// gives other requests the same bits.
template <class Out, int N>
HEADRACE_INLINE void store_gated_vectors(const LinearCall& call, int64_t row, int64_t column,
                                         const float* gates, const float* ups) {
    const int64_t width = call.weight.n / 2;
    Floats gate[N], up[N];
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) {
        const int at = i * kWidth, within = at % kTileRows;
        gate[i] = load(gates + at);
        up[i] = load(ups + at);
        if (call.bias != nullptr) {
            gate[i] = add(gate[i], load(call.bias + column + within));
            up[i] = add(up[i], load(call.bias + width + column + within));
        }
        gate[i] = Out::rounded(gate[i]);
        up[i] = Out::rounded(up[i]);
    }
    silu_mul(gate, up);
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) {
        const int at = i * kWidth;
        auto* out = static_cast<typename Out::Storage*>(call.out) +
                    (row + at / kTileRows) * width + column;
        Out::store_floats(out + at % kTileRows, gate[i]);
    }
}

template <class Out>
void store_gated(const LinearCall& call, int64_t row, int64_t rows, int64_t column,
                 const float* gates, const float* ups) {
    constexpr int joint_rows = kJointExponentials / kVectors;
    int64_t r = 0;
    for (; r + joint_rows <= rows; r += joint_rows) {
        store_gated_vectors<Out, kJointExponentials>(call, row + r, column, gates + r * kTileRows,
                                                     ups + r * kTileRows);
    }
    for (; r < rows; ++r) {
        store_gated_vectors<Out, kVectors>(call, row + r, column, gates + r * kTileRows,
                                           ups + r * kTileRows);
    }
}

// ---- the whole matrix -------------------------------------------------------------------------

// Of the rows from `first` to `stop`.
void add_products_of_outliers(const Matrix& weight, const uint8_t* tile, const PackedRows& packed,
                              int64_t first, int64_t stop, float* sums) {
    const auto piece = [&](int64_t i) -> const OutlierPiece* { return packed.outliers(first, i); };
    const auto add = [&](auto format) {
        add_outliers<decltype(format)::value>(tile, stop - first, packed.pieces(),
                                             packed.piece_chunks(), piece, sums);
    };
    switch (weight.format) {
        case Format::q8_0: return add(FormatConstant<Format::q8_0>{});
        case Format::q4_0: return add(FormatConstant<Format::q4_0>{});
        case Format::q4_1: return add(FormatConstant<Format::q4_1>{});
        default: return;
    }
}

// The products of all rows with the tiles that this worker takes; `prepare` is called before the
// first.
template <class Prepare>
void multiply_tiles(const LinearCall& call, const LinearPlan& plan, const RowBlocks& blocks,
                    const PackedRows& packed, Prepare&& prepare, Worker& worker) {
    const int64_t rows = blocks.rows;
    const int64_t chunk_rows = packed.chunk_rows(), chunks = packed.row_chunks();
    const Matrix& weight = call.weight;
    const bool wide = call.out_type == Type::float32;
    const int64_t tiles = (weight.n + kTileRows - 1) / kTileRows / (call.gated ? 2 : 1);
    const int64_t size = tile_bytes(weight.format, weight.k);
    // Every block of rows fetches its part of the next tile.
    const int64_t passes = rows < chunk_rows ? blocks.count : chunk_rows / blocks.size;
    const int64_t chunk_lines = tile_bytes(weight.format, kBlock) / kLineBytes;
    const auto lines = static_cast<int>((chunk_lines + passes - 1) / passes);
    const int64_t pass_bytes = lines * kLineBytes * chunk_count(weight.k);
    alignas(64) float sums[2][kMostChunkRows * kTileRows];
    int64_t begin = 0, end = 0;
    while (worker.take_run(tiles * chunks, begin, end)) {
        prepare();
        for (int64_t task = begin; task < end; ++task) {
            const int64_t tile = plan.split_by_rows ? task % tiles : task / chunks;
            const int64_t first =
                (plan.split_by_rows ? task / tiles : task % chunks) * chunk_rows;
            const int64_t stop = packed.chunk_end(first);
            const uint8_t* data = weight.tiles + tile * size;
            const uint8_t* up = data + tiles * size;
            const int ahead_lines = tile + 1 < tiles ? lines : 0;
            int64_t ahead = size;
            for (int64_t row = first; row < stop; row += blocks.size, ahead += pass_bytes) {
                const uint8_t* x = packed.block(row);
                const Multiply multiply = multiply_for(weight.format, blocks.padded(row));
                const int64_t at = (row - first) * kTileRows;
                multiply(data, x, weight.k, {data + ahead, ahead_lines}, sums[0] + at);
                if (!call.gated) continue;
                multiply(up, x, weight.k, {up + ahead, ahead_lines}, sums[1] + at);
            }
            add_products_of_outliers(weight, data, packed, first, stop, sums[0]);
            const int64_t column = tile * kTileRows, left = weight.n - column;
            if (call.gated) {
                add_products_of_outliers(weight, up, packed, first, stop, sums[1]);
                (wide ? store_gated<Float32> : store_gated<BFloat16>)(
                    call, first, stop - first, column, sums[0], sums[1]);
            } else {
                (wide ? store_sums<Float32> : store_sums<BFloat16>)(
                    call, first, stop - first, column, left < kTileRows ? left : kTileRows, sums[0]);
            }
        }
    }
}

}  // namespace

LinearPlan default_plan(Format format, int64_t rows) {
    return {usual_rows(format, rows), kMostChunkRows, true, true};
}

bool has_rows(Format format, int64_t rows) {
    return rows == padded_rows(rows) && multiply_for(format, static_cast<int>(rows)) != nullptr;
}

void linear(const LinearCall& call, const Step& step, Worker& worker) {
    const int64_t rows = row_count(call.rows, step);
    const int64_t k = call.weight.k;
    if (rows == 0) return;
    const LinearPlan& plan = call.plans[plan_index(rows)];
    const RowBlocks blocks(rows, plan.most_rows);
    if (plan.packs_privately && blocks.count == 1 && blocks.last * k <= kPrivateElements) {
        alignas(64) uint8_t scratch[kPrivateBytes];
        const PackedRows packed(call.weight, blocks, plan.chunk_rows, chunk_count(k),
                                scratch);
        bool is_packed = false;
        const auto prepare = [&] {
            if (!is_packed) pack_piece<PrivateOutliers>(call, blocks, packed, 0, 0);
            is_packed = true;
        };
        multiply_tiles(call, plan, blocks, packed, prepare, worker);
        return;
    }
    const PackedRows packed(call.weight, blocks, plan.chunk_rows, piece_chunks(rows), call.scratch);
    const int64_t pieces = packed.pieces();
    int64_t begin = 0, end = 0;
    while (worker.take_run(packed.row_chunks() * pieces, begin, end)) {
        for (int64_t task = begin; task < end; ++task) {
            pack_piece<SharedOutliers>(call, blocks, packed,
                                       task / pieces * packed.chunk_rows(), task % pieces);
        }
    }
    worker.next_phase();
    multiply_tiles(call, plan, blocks, packed, [] {}, worker);
}

}  // namespace headrace::HEADRACE_ISA

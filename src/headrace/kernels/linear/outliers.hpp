// Elements of activations that are too large for their block of 32, and their products.
//
// An element with more than half of its block's sum of squares would leave the other 31 few of the
// 255 steps that a byte has: it is taken out and multiplied in float32 by the dequantized weight
// (mixed-precision decomposition, arXiv:2208.07339, a block and a row at a time). Rows share most of
// the columns of such elements: a column is dequantized once for all rows that meet a tile.
#pragma once

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int kPieceColumns = kPieceChunks * kBlock;

static inline int64_t piece_count(int64_t k) { return (k + kPieceColumns - 1) / kPieceColumns; }

// Where a block of `padded` packed rows has the outliers of its pieces.
static inline int64_t outlier_offset(Format format, int64_t k, int padded) {
    return (k + kBlock - 1) / kBlock * packed_chunk_bytes(format) * padded;
}

// The outliers of one piece of a block of rows, as they lie in memory: which columns there are, and
// each with its row, by chunk and row. Every row has at most one a chunk.
struct OutlierPiece {
    uint32_t columns[kPieceChunks];  // a bit a column
    int32_t count;

    OutlierEntry* entries() { return reinterpret_cast<OutlierEntry*>(this + 1); }
    const OutlierEntry* entries() const { return reinterpret_cast<const OutlierEntry*>(this + 1); }
    void clear() {
        for (uint32_t& bits : columns) bits = 0;
        count = 0;
    }
    void add(int row, int column, float value) {
        columns[column / kBlock] |= uint32_t{1} << column % kBlock;
        entries()[count++] = {static_cast<int16_t>(row), static_cast<int16_t>(column), value};
    }
};

static inline OutlierPiece* outlier_piece(uint8_t* block, Format format, int64_t k, int padded,
                                          int64_t piece) {
    return reinterpret_cast<OutlierPiece*>(block + outlier_offset(format, k, padded) +
                                           piece * outlier_piece_bytes(padded));
}
static inline const OutlierPiece* outlier_piece(const uint8_t* block, Format format, int64_t k,
                                                int padded, int64_t piece) {
    return outlier_piece(const_cast<uint8_t*>(block), format, k, padded, piece);
}

// One vector of the weights of column `k`, for the outputs of a tile from `output` on.
template <Format format>
HEADRACE_INLINE Floats dequantized(const uint8_t* tile, int output, int32_t k) {
    constexpr bool has_minimum = format == Format::q4_1;
    const uint8_t* block = tile + k / kBlock * tile_bytes(format, kBlock);
    const uint8_t* units = block + (has_minimum ? 128 : 64) + output * 4;
    const int element = k % kBlock;
    const Floats scale = load_half(block + output * 2);
    if constexpr (format == Format::q8_0) {
        const Ints unit = load_ints(units + element / 4 * kTileRows * 4);
        const Ints quant = bits_and(shift_right(unit, element % 4 * 8), broadcast_int(0xff));
        return mul(scale, sub(to_floats(quant), broadcast(128.0f)));
    } else {
        const Ints unit = load_ints(units + element % 16 / 4 * kTileRows * 4);
        const int shift = element % 4 * 8 + (element < 16 ? 0 : 4);
        const Ints quant = bits_and(shift_right(unit, shift), broadcast_int(0xf));
        if constexpr (has_minimum) {
            return fma(scale, to_floats(quant), load_half(block + 64 + output * 2));
        } else {
            return mul(scale, sub(to_floats(quant), broadcast(8.0f)));
        }
    }
}

// Adds the products of the outliers of a block of one row to `sums` of the outputs from `output` on.
template <Format format, int V>
HEADRACE_INLINE void add_outliers_of_row(const uint8_t* tile, int output, const uint8_t* block,
                                         int64_t k, Floats (&sums)[V]) {
    for (int64_t piece = 0; piece < piece_count(k); ++piece) {
        const auto* own = outlier_piece(block, format, k, 1, piece);
        for (int i = 0; i < own->count; ++i) {
            const OutlierEntry& entry = own->entries()[i];
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                const Floats weight =
                    dequantized<format>(tile, output + v * kWidth, entry.column);
                sums[v] = fma(weight, broadcast(entry.value), sums[v]);
            }
        }
        tile += kPieceChunks * tile_bytes(format, kBlock);
    }
}

// Adds the products of the outliers of the blocks of rows from `first` to `stop` with one tile to
// sums[stop - first, padding included][32]; `packed(row)` gives the block that begins with `row`.
// Blocks of one row have added their own.
template <Format format, class Blocks, class Packed>
void add_outliers(const uint8_t* tile, int64_t k, const Blocks& blocks, int64_t first, int64_t stop,
                  Packed&& packed, float* sums) {
    // Only the last block has fewer rows than the others.
    if (blocks.padded(first) == 1) return;
    if (blocks.padded(stop - 1 - (stop - 1 - first) % blocks.size) == 1) --stop;
    alignas(64) float weights[kPieceColumns * kTileRows];
    int32_t columns[kPieceColumns + kBlock];
    for (int64_t piece = 0; piece < piece_count(k); ++piece) {
        uint32_t all[kPieceChunks] = {};
        for (int64_t row = first; row < stop; row += blocks.size) {
            const auto* own = outlier_piece(packed(row), format, k, blocks.padded(row), piece);
            for (int chunk = 0; chunk < kPieceChunks; ++chunk) all[chunk] |= own->columns[chunk];
        }
        int count = 0;
        for (int chunk = 0; chunk < kPieceChunks; ++chunk) {
            count += store_set_bits(columns + count, all[chunk], chunk * kBlock);
        }
        for (int i = 0; i < count; ++i) {
            HEADRACE_UNROLL for (int output = 0; output < kTileRows; output += kWidth) {
                store(weights + columns[i] * kTileRows + output,
                      dequantized<format>(tile, output, columns[i]));
            }
        }
        for (int64_t row = first; row < stop; row += blocks.size) {
            const auto* own = outlier_piece(packed(row), format, k, blocks.padded(row), piece);
            for (int i = 0; i < own->count; ++i) {
                const OutlierEntry& entry = own->entries()[i];
                float* sum = sums + (row - first + entry.row) * kTileRows;
                const float* weight = weights + entry.column * kTileRows;
                HEADRACE_UNROLL for (int output = 0; output < kTileRows; output += kWidth) {
                    store(sum + output,
                          fma(load(weight + output), broadcast(entry.value), load(sum + output)));
                }
            }
        }
        tile += kPieceChunks * tile_bytes(format, kBlock);
    }
}

}  // namespace headrace::HEADRACE_ISA

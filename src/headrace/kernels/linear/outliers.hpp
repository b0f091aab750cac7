// Elements of activations that are too large for their block of 32, and their products.
//
// An element with more than half of its block's sum of squares would leave the other 31 few of the
// 255 steps that a byte has: it is taken out and multiplied in float32 by the dequantized weight
// (mixed-precision decomposition, arXiv:2208.07339, a block and a row at a time). Rows share most of
// the columns of such elements, so they are kept by column: a tile dequantizes a column once for all
// rows that have it.
#pragma once

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int kVectors = kTileRows / kWidth;

// Outliers in the order in which a tile meets them: a chunk of 32 columns that has any is followed by
// its columns, and a column by its elements.
union OutlierItem {
    struct {
        int32_t index;
        int32_t columns;
    } chunk;
    struct {
        int32_t index;  // within the chunk
        int32_t elements;
    } column;
    struct {
        int32_t row;  // of those that meet a tile together
        float value;
    } element;
};
static_assert(sizeof(OutlierItem) == kOutlierItemBytes);

// The outliers of one piece of the columns of the rows that meet a tile together, as they lie in
// memory. Chunks ascend, and a row has at most one element a chunk: it adds its products in the order
// of K.
struct OutlierPiece {
    int64_t chunks;

    OutlierItem* items() { return reinterpret_cast<OutlierItem*>(this + 1); }
    const OutlierItem* items() const { return reinterpret_cast<const OutlierItem*>(this + 1); }
};
static_assert(sizeof(OutlierPiece) == kOutlierItemBytes);

// Gathers the outliers of one piece, of which every row has at most one a chunk. A piece has at most
// `most_rows` rows, `most_chunks` chunks and `most_both` of chunks a row.
template <int most_rows, int most_chunks, int most_both>
class OutlierCollector {
  public:
    explicit OutlierCollector(int64_t chunks) : chunks_(chunks) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) columns_[chunk] = 0;
    }

    HEADRACE_INLINE_MEMBER void add(int row, int column, float value) {
        const uint32_t bit = uint32_t{1} << column % kBlock;
        uint32_t& columns = columns_[column / kBlock];
        counts_[column] = (columns & bit) == 0 ? 1 : counts_[column] + 1;
        columns |= bit;
        found_[count_++] = {static_cast<int16_t>(row), static_cast<int16_t>(column), value};
    }

    void write(OutlierPiece* piece) const {
        OutlierItem* next = piece->items();
        OutlierItem* elements[most_chunks * kBlock];
        piece->chunks = 0;
        for (int32_t chunk = 0; chunk < chunks_; ++chunk) {
            if (columns_[chunk] == 0) continue;
            ++piece->chunks;
            (next++)->chunk = {chunk, __builtin_popcount(columns_[chunk])};
            for (uint32_t left = columns_[chunk]; left != 0; left &= left - 1) {
                const int index = __builtin_ctz(left), column = chunk * kBlock + index;
                (next++)->column = {index, counts_[column]};
                elements[column] = next;
                next += counts_[column];
            }
        }
        for (int i = 0; i < count_; ++i) {
            const Found& found = found_[i];
            (elements[found.column]++)->element = {found.row, found.value};
        }
    }

  private:
    struct Found {
        int16_t row;
        int16_t column;
        float value;
    };
    static_assert(most_rows <= 255 && most_chunks * kBlock <= 32767);

    const int64_t chunks_;
    int count_ = 0;
    uint32_t columns_[most_chunks];           // a bit a column
    uint8_t counts_[most_chunks * kBlock];    // of columns whose bit is set
    Found found_[most_both];
};

// Dequantizes columns of one block of a tile.
template <Format format>
class BlockColumns {
    static constexpr bool kHasMinimum = format == Format::q4_1;

  public:
    explicit HEADRACE_INLINE_MEMBER BlockColumns(const uint8_t* block)
        : units_(block + (kHasMinimum ? 128 : 64)) {
        HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
            scale_[v] = load_half(block + v * kWidth * 2);
            least_[v] = zeros();
            if (kHasMinimum) least_[v] = load_half(block + 64 + v * kWidth * 2);
        }
    }

    // The weights of one column.
    HEADRACE_INLINE_MEMBER void get(int32_t column, Floats (&weights)[kVectors]) const {
        constexpr bool bytes = format == Format::q8_0;
        const uint8_t* unit = units_ + (bytes ? column : column % 16) / 4 * kTileRows * 4;
        const int32_t nibble = bytes || column < 16 ? 0 : 4;
        const Ints shift = broadcast_int(column % 4 * 8 + nibble);
        const Ints mask = broadcast_int(bytes ? 0xff : 0xf);
        HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
            const Ints quants =
                bits_and(shift_right(load_ints(unit + v * kWidth * 4), shift), mask);
            if constexpr (kHasMinimum) {
                weights[v] = fma(scale_[v], to_floats(quants), least_[v]);
            } else {
                const Ints offset = broadcast_int(bytes ? 128 : 8);
                weights[v] = mul(scale_[v], to_floats(sub_ints(quants, offset)));
            }
        }
    }

  private:
    const uint8_t* units_;
    Floats scale_[kVectors], least_[kVectors];
};

// Adds the products of outliers with one tile to sums[rows][32]; `piece(i)` gives the outliers of
// these rows in piece i of `piece_chunks` chunks.
template <Format format, class Piece>
void add_outliers(const uint8_t* tile, int64_t rows, int64_t pieces, int64_t piece_chunks,
                  const Piece& piece, float* sums) {
    // A single row would wait for its own sums, so that it has them in registers.
    Floats own[kVectors];
    HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) own[v] = load(sums + v * kWidth);
    for (int64_t i = 0; i < pieces; ++i, tile += piece_chunks * tile_bytes(format, kBlock)) {
        const OutlierPiece* outliers = piece(i);
        const OutlierItem* item = outliers->items();
        for (int64_t chunks = outliers->chunks; chunks > 0; --chunks) {
            const auto chunk = (item++)->chunk;
            const BlockColumns<format> block(tile + chunk.index * tile_bytes(format, kBlock));
            for (int32_t columns = chunk.columns; columns > 0; --columns) {
                const auto column = (item++)->column;
                Floats weights[kVectors];
                block.get(column.index, weights);
                if (rows == 1) {
                    const Floats value = broadcast((item++)->element.value);
                    HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                        own[v] = fma(weights[v], value, own[v]);
                    }
                    continue;
                }
                for (const OutlierItem* end = item + column.elements; item < end; ++item) {
                    const Floats value = broadcast(item->element.value);
                    float* sum = sums + item->element.row * kTileRows;
                    HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) {
                        store(sum + v * kWidth, fma(weights[v], value, load(sum + v * kWidth)));
                    }
                }
            }
        }
    }
    if (rows != 1) return;
    HEADRACE_UNROLL for (int v = 0; v < kVectors; ++v) store(sums + v * kWidth, own[v]);
}

}  // namespace headrace::HEADRACE_ISA

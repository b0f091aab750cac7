// Activations as linears want them: in blocks of rows, each with its chunks of 32 columns.
#pragma once

#include "block_quantizer.hpp"

namespace headrace::HEADRACE_ISA {

constexpr bool is_dense(Format format) {
    return format == Format::float32 || format == Format::bfloat16;
}

// The row counts that kernels exist for; others are padded with zero rows.
constexpr int padded_rows(int64_t rows) {
    for (int size : {1, 2, 3, 4, 6, 8}) {
        if (rows <= size) return size;
    }
    return 12;
}

// How rows are cut into blocks: all of one size but the last.
struct RowBlocks {
    RowBlocks(int64_t rows, int64_t most) : rows(rows), count((rows + most - 1) / most) {
        size = padded_rows((rows + count - 1) / count);
        last = padded_rows(rows - (count - 1) * size);
    }
    // Rows of the block that begins with row `first`, padding included.
    int padded(int64_t first) const { return rows - first <= size ? last : size; }
    int64_t padded_total() const { return (count - 1) * size + last; }

    int64_t rows;
    int64_t count;
    int size = 0;
    int last = 0;
};

// Columns of one row in chunks of 32, as [chunk][row of its block]{32 elements, and for a block
// format their scale and what the kernel wants beside it}. Columns past K are zero.
template <class X>
class RowSource {
    using Storage = typename X::Storage;

  public:
    RowSource(const LinearCall& call, int64_t row)
        : x_(static_cast<const Storage*>(call.x) + row * call.weight.k),
          k_(call.weight.k) {}

    // Columns [column, column + kWidth).
    HEADRACE_INLINE_MEMBER Floats load(int64_t column) const {
        return load_first<X>(x_ + column, k_ - column);
    }

  private:
    const Storage* x_;
    int64_t k_;
};

template <class Element, class X>
HEADRACE_INLINE void pack_dense(const RowSource<X>& source, int64_t column, uint8_t* target) {
    auto* elements = reinterpret_cast<typename Element::Storage*>(target);
    for (int i = 0; i < kBlock; i += kWidth) {
        Element::store_floats(elements + i, source.load(column + i));
    }
}

// Piece `piece` of the columns of the block of rows that begins with row `first`, and behind the
// block's chunks its outliers; rows past the step's are zeros. `pack(source, column, row,
// target)` takes one chunk of one row.
template <class X, class Pack>
HEADRACE_INLINE void pack_chunks(const LinearCall& call, const RowBlocks& blocks, int64_t first,
                                 int64_t piece, uint8_t* block, Pack&& pack) {
    const int64_t k = call.weight.k;
    const int padded = blocks.padded(first);
    const int64_t chunk_bytes = packed_chunk_bytes(call.weight.format);
    const int64_t begin = piece * kPieceColumns, left = k - begin;
    const int64_t end = left < kPieceColumns ? k : begin + kPieceColumns;
    uint8_t* target = block + begin / kBlock * chunk_bytes * padded;
    for (int64_t column = begin; column < end; column += kBlock) {
        for (int row = 0; row < padded; ++row, target += chunk_bytes) {
            if (first + row < blocks.rows) {
                pack(RowSource<X>(call, first + row), column, row, target);
            } else {
                __builtin_memset(target, 0, static_cast<size_t>(chunk_bytes));
            }
        }
    }
}

template <class X>
void pack_piece_of(const LinearCall& call, const RowBlocks& blocks, int64_t first, int64_t piece,
                   uint8_t* block) {
    const Format format = call.weight.format;
    using Source = RowSource<X>;
    const auto pack = [&](auto&& chunk) {
        pack_chunks<X>(call, blocks, first, piece, block, chunk);
    };
    if (format == Format::float32) {
        pack([](const Source& source, int64_t column, int, uint8_t* target) {
            pack_dense<Float32>(source, column, target);
        });
    } else if (format == Format::bfloat16) {
        pack([](const Source& source, int64_t column, int, uint8_t* target) {
            pack_dense<BFloat16>(source, column, target);
        });
    } else {
        OutlierPiece* outliers =
            outlier_piece(block, format, call.weight.k, blocks.padded(first), piece);
        BlockQuantizer quantizer(format, *outliers);
        pack([&](const Source& source, int64_t column, int row, uint8_t* target) {
            Floats values[kBlockVectors];
            HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
                values[i] = source.load(column + i * kWidth);
            }
            quantizer.take(values, row, static_cast<int>(column - piece * kPieceColumns), target);
        });
        quantizer.flush();
    }
}

inline void pack_piece(const LinearCall& call, const RowBlocks& blocks, int64_t first,
                       int64_t piece, uint8_t* block) {
    (call.x_type == Type::float32 ? pack_piece_of<Float32> : pack_piece_of<BFloat16>)(
        call, blocks, first, piece, block);
}

}  // namespace headrace::HEADRACE_ISA

// Activations as linears want them: in blocks of rows, each with its chunks of 32 columns.
#pragma once

#include "block_quantizer.hpp"

namespace headrace::HEADRACE_ISA {

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

// Where the packed rows of a step lie, in `scratch`: blocks of rows, each in chunks of 32 columns, as
// [chunk][row of its block]{32 elements, and for a block format their scale and what the kernel wants
// beside it}, columns past K zero; behind them, for each chunk of rows that meets a tile together,
// its outliers by pieces of columns. A piece of a chunk of rows is packed by one worker.
class PackedRows {
  public:
    PackedRows(const Matrix& weight, const RowBlocks& blocks, int64_t most_rows,
               int64_t piece_chunks, uint8_t* scratch)
        : rows_(blocks.rows),
          chunk_rows_((most_rows + blocks.size - 1) / blocks.size * blocks.size),
          chunks_(chunk_count(weight.k)),
          piece_chunks_(piece_chunks),
          pieces_((chunks_ + piece_chunks - 1) / piece_chunks),
          row_bytes_(chunks_ * packed_chunk_bytes(weight.format)),
          blocks_(scratch),
          outliers_(scratch + blocks.padded_total() * row_bytes_) {}

    // Rows that meet a tile together, of which the last such chunk may have fewer; whole blocks.
    int64_t chunk_rows() const { return chunk_rows_; }
    int64_t row_chunks() const { return (rows_ + chunk_rows_ - 1) / chunk_rows_; }
    // Past the last row of the chunk that begins with row `first`.
    int64_t chunk_end(int64_t first) const {
        return rows_ - first < chunk_rows_ ? rows_ : first + chunk_rows_;
    }
    int64_t pieces() const { return pieces_; }
    int64_t piece_chunks() const { return piece_chunks_; }
    // Past the last chunk of columns of a piece.
    int64_t piece_end(int64_t piece) const {
        const int64_t begin = piece * piece_chunks_;
        return chunks_ - begin < piece_chunks_ ? chunks_ : begin + piece_chunks_;
    }
    // The block that begins with row `first`.
    uint8_t* block(int64_t first) const { return blocks_ + first * row_bytes_; }
    // Of the chunk of rows that begins with row `first`.
    OutlierPiece* outliers(int64_t first, int64_t piece) const {
        const int64_t rows = chunk_end(first) - first;
        return reinterpret_cast<OutlierPiece*>(
            outliers_ + first * outlier_row_bytes(chunks_, pieces_) +
            rows * outlier_row_bytes(piece * piece_chunks_, piece));
    }

  private:
    const int64_t rows_;
    const int64_t chunk_rows_;
    const int64_t chunks_;
    const int64_t piece_chunks_;
    const int64_t pieces_;
    const int64_t row_bytes_;
    uint8_t* const blocks_;
    uint8_t* const outliers_;
};

// One row's columns.
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

// Piece `piece` of the columns of the chunk of rows that begins with row `first`; rows past the
// step's are zeros. `pack(source, column, row, target)` takes 32 columns of one row.
template <class X, class Pack>
HEADRACE_INLINE void pack_chunks(const LinearCall& call, const RowBlocks& blocks,
                                 const PackedRows& packed, int64_t first, int64_t piece,
                                 Pack&& pack) {
    const int64_t chunk_bytes = packed_chunk_bytes(call.weight.format);
    const int64_t begin = piece * packed.piece_chunks(), end = packed.piece_end(piece);
    const int64_t stop = packed.chunk_end(first);
    for (int64_t block = first; block < stop; block += blocks.size) {
        const int padded = blocks.padded(block);
        uint8_t* target = packed.block(block) + begin * chunk_bytes * padded;
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            for (int64_t row = block; row < block + padded; ++row, target += chunk_bytes) {
                if (row < blocks.rows) {
                    pack(RowSource<X>(call, row), chunk * kBlock, row, target);
                } else {
                    __builtin_memset(target, 0, static_cast<size_t>(chunk_bytes));
                }
            }
        }
    }
}

template <class X, class Outliers>
void pack_piece_of(const LinearCall& call, const RowBlocks& blocks, const PackedRows& packed,
                   int64_t first, int64_t piece) {
    const Format format = call.weight.format;
    using Source = RowSource<X>;
    const auto pack = [&](auto&& chunk) {
        pack_chunks<X>(call, blocks, packed, first, piece, chunk);
    };
    if (format == Format::float32) {
        pack([](const Source& source, int64_t column, int64_t, uint8_t* target) {
            pack_dense<Float32>(source, column, target);
        });
    } else if (format == Format::bfloat16) {
        pack([](const Source& source, int64_t column, int64_t, uint8_t* target) {
            pack_dense<BFloat16>(source, column, target);
        });
    } else {
        const int64_t begin = piece * packed.piece_chunks();
        Outliers outliers(packed.piece_end(piece) - begin);
        BlockQuantizer<Outliers> quantizer(format, outliers);
        pack([&](const Source& source, int64_t column, int64_t row, uint8_t* target) {
            Floats values[kBlockVectors];
            HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
                values[i] = source.load(column + i * kWidth);
            }
            quantizer.take(values, static_cast<int>(row - first),
                           static_cast<int>(column - begin * kBlock), target);
        });
        quantizer.flush();
        outliers.write(packed.outliers(first, piece));
    }
}

template <class Outliers>
void pack_piece(const LinearCall& call, const RowBlocks& blocks, const PackedRows& packed,
                int64_t first, int64_t piece) {
    (call.x_type == Type::float32 ? pack_piece_of<Float32, Outliers>
                                  : pack_piece_of<BFloat16, Outliers>)(call, blocks, packed, first,
                                                                       piece);
}

}  // namespace headrace::HEADRACE_ISA

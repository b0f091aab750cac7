// Activations as linears want them: in blocks of rows, each with its chunks of 32 columns.
#pragma once

#include "outliers.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(__AVX512F__)
constexpr bool kBiasedOffset = true;  // dot_biased leaves 128 * sum(signed) to take off
#else
constexpr bool kBiasedOffset = false;
#endif
constexpr uint32_t kLargestFinite = 0x7f7fffff;
constexpr float kSmallestMaximum = 1e-30f; // blocks below are quantized to zeros

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

constexpr int kBlockVectors = kBlock / kWidth;

HEADRACE_INLINE uint32_t largest_magnitude(const Floats (&values)[kBlockVectors]) {
    Ints magnitude = broadcast_int(0);
    HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
        magnitude = max_ints(magnitude, bits_and(as_ints(values[i]), broadcast_int(0x7fffffff)));
    }
    return static_cast<uint32_t>(reduce_max_ints(magnitude));
}

HEADRACE_INLINE bool dominates(float maximum, const Floats (&values)[kBlockVectors]) {
    Floats squares = zeros();
    HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
        squares = fma(values[i], values[i], squares);
    }
    return 2.0f * maximum * maximum > reduce_add(squares);
}

// An element that was taken out of a block.
struct Outlier {
    int column;  // of the block; negative: none was
    float value;
};

// Takes the first element of magnitude `maximum` out of `values`.
HEADRACE_INLINE Outlier take_out(Floats (&values)[kBlockVectors], float maximum) {
    alignas(64) float elements[kBlock];
    for (int i = 0; i < kBlockVectors; ++i) store(elements + i * kWidth, values[i]);
    int index = 0;
    while (index < kBlock - 1 && __builtin_fabsf(elements[index]) != maximum) ++index;
    const Outlier outlier{index, elements[index]};
    elements[index] = 0.0f;
    for (int i = 0; i < kBlockVectors; ++i) values[i] = load(elements + i * kWidth);
    return outlier;
}

// 32 elements as signed bytes, the scale that gives them back, and what the kernel of the format
// wants beside it: a float or an int32. Returns the element that was taken out, if any.
template <class X>
HEADRACE_INLINE Outlier pack_block(Format format, const RowSource<X>& source, int64_t column,
                                   uint8_t* target) {
    auto* quants = reinterpret_cast<int8_t*>(target);
    Outlier outlier{-1, 0.0f};
    Floats values[kBlockVectors];
    HEADRACE_UNROLL for (int i = 0; i < kBlockVectors; ++i) {
        values[i] = source.load(column + i * kWidth);
    }
    uint32_t bits = largest_magnitude(values);
    float maximum = __builtin_bit_cast(float, bits);
    if (bits <= kLargestFinite && maximum >= kSmallestMaximum && dominates(maximum, values)) {
        outlier = take_out(values, maximum);
        bits = largest_magnitude(values);
        maximum = __builtin_bit_cast(float, bits);
    }
    float scale = 0.0f;
    int32_t sum = 0;
    if (bits > kLargestFinite || maximum < kSmallestMaximum) {
        __builtin_memset(quants, 0, kBlock);
        if (bits > kLargestFinite) scale = __builtin_nanf("");
    } else {
        const Floats inverse = broadcast(127.0f / maximum);
        Ints total = broadcast_int(0);
        HEADRACE_UNROLL for (int i = 0; i < kBlock / kWidth; ++i) {
            const Ints rounded = to_ints(mul(values[i], inverse));
            store_bytes(quants + i * kWidth, rounded);
            total = add_ints(total, rounded);
        }
        sum = reduce_add_ints(total);
        scale = maximum / 127.0f;
    }
    uint32_t beside = 0;
    if (format == Format::q4_1) {
        beside = __builtin_bit_cast(uint32_t, scale * static_cast<float>(sum));
    } else if (format == Format::q4_0) {
        beside = static_cast<uint32_t>(-8 * sum);
    } else if (kBiasedOffset) {
        beside = static_cast<uint32_t>(-128 * sum);
    }
    __builtin_memcpy(target + kBlock, &scale, 4);
    __builtin_memcpy(target + kBlock + 4, &beside, 4);
    return outlier;
}

// Piece `piece` of the columns of the block of rows that begins with row `first`, and behind the
// block's chunks its outliers; rows past the step's are zeros.
template <class X>
void pack_piece_of(const LinearCall& call, const RowBlocks& blocks, int64_t first, int64_t piece,
                   uint8_t* block) {
    const Format format = call.weight.format;
    const int64_t k = call.weight.k;
    const int padded = blocks.padded(first);
    const int64_t chunk_bytes = packed_chunk_bytes(format);
    const int64_t begin = piece * kPieceColumns, left = k - begin;
    const int64_t end = left < kPieceColumns ? k : begin + kPieceColumns;
    uint8_t* target = block + begin / kBlock * chunk_bytes * padded;
    OutlierPiece* outliers =
        is_dense(format) ? nullptr : outlier_piece(block, format, k, padded, piece);
    if (outliers != nullptr) outliers->clear();
    for (int64_t column = begin; column < end; column += kBlock) {
        for (int row = 0; row < padded; ++row, target += chunk_bytes) {
            if (first + row >= blocks.rows) {
                __builtin_memset(target, 0, static_cast<size_t>(chunk_bytes));
                continue;
            }
            const RowSource<X> source(call, first + row);
            if (format == Format::float32) {
                pack_dense<Float32>(source, column, target);
            } else if (format == Format::bfloat16) {
                pack_dense<BFloat16>(source, column, target);
            } else {
                const Outlier outlier = pack_block(format, source, column, target);
                if (outlier.column < 0) continue;
                const int within = static_cast<int>(column - begin) + outlier.column;
                outliers->add(row, within, outlier.value);
            }
        }
    }
}

inline void pack_piece(const LinearCall& call, const RowBlocks& blocks, int64_t first,
                       int64_t piece, uint8_t* block) {
    (call.x_type == Type::float32 ? pack_piece_of<Float32> : pack_piece_of<BFloat16>)(
        call, blocks, first, piece, block);
}

}  // namespace headrace::HEADRACE_ISA

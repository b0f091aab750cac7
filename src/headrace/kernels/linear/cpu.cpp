// Linear layers over interleaved tiles: activations are packed once, then every tile of weights
// meets every block of rows.
//
// One element of the output is one chain of additions along K, in the order of K, whatever the
// number of rows: a row's result depends on nothing but the row. (Block formats add int32 sums of
// 32 products, which are exact, so only the order of the blocks matters.)
//
// Block formats meet activations rounded to 8 bits in blocks of 32. An element with more than half
// of its block's sum of squares would leave the other 31 few steps: it is taken out and multiplied
// in float32 (mixed-precision decomposition, arXiv:2208.07339, a block and a row at a time).
#include <cstring>

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kVectors = kTileRows / kWidth;
constexpr int64_t kChunkRows = 96;         // rows that share a pass over the weights, in L2
constexpr int kMostRows = 12;              // of one pass
constexpr int64_t kPackSegment = 256;      // elements of K that one worker packs at a time
constexpr int64_t kPrivateElements = 4096; // below, every worker packs for itself: no barrier
constexpr uint32_t kLargestFinite = 0x7f7fffff;
constexpr float kSmallestMaximum = 1e-30f; // blocks below are quantized to zeros

constexpr bool is_dense(Format format) {
    return format == Format::float32 || format == Format::bfloat16;
}

// The most rows that one pass over a tile serves. The registers hold 12 rows (or, with an int32
// and a float32 sum of each in a block format, 6), which is best where weights come from memory:
// then every pass beyond the first waits for nothing, and block formats gain by 8 rows although
// they spill. With many rows the weights are cached, and what counts is that the packed rows are
// (8 rows) and that nothing spills (6).
constexpr int64_t max_rows([[maybe_unused]] Format format, [[maybe_unused]] int64_t rows) {
#if defined(__AVX512F__)
    const bool many = rows > 64;
    if (is_dense(format)) return many ? 8 : 12;
    return many ? 6 : 8;
#else
    return 4;
#endif
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
    RowBlocks(Format format, int64_t rows)
        : rows(rows), count((rows + max_rows(format, rows) - 1) / max_rows(format, rows)) {
        size = padded_rows((rows + count - 1) / count);
        last = padded_rows(rows - (count - 1) * size);
    }
    int64_t rows;
    int64_t count;
    int size = 0;
    int last = 0;
};

HEADRACE_INLINE Ints broadcast_unit(const uint8_t* p) {
    int32_t unit;
    __builtin_memcpy(&unit, p, 4);
    return broadcast_int(unit);
}

HEADRACE_INLINE Floats broadcast_float(const uint8_t* p) {
    float value;
    __builtin_memcpy(&value, p, 4);
    return broadcast(value);
}

// ---- packing of activations -------------------------------------------------------------------

template <class X>
HEADRACE_INLINE const typename X::Storage* row_of(const LinearCall& call, int64_t row) {
    return static_cast<const typename X::Storage*>(call.x) + row * call.weight.k;
}

// Columns [first, last) of `rows` rows as [unit][padded] units of `Element`.
template <class Element, class X>
void pack_units(const LinearCall& call, int64_t first_row, int64_t rows, int padded, int64_t first,
                int64_t last, uint8_t* block) {
    constexpr int64_t per_unit = 4 / sizeof(typename Element::Storage);
    for (int r = 0; r < padded; ++r) {
        const auto* x = r < rows ? row_of<X>(call, first_row + r) : nullptr;
        for (int64_t unit = first / per_unit; unit < last / per_unit; ++unit) {
            typename Element::Storage values[per_unit] = {};
            if (x != nullptr) {
                for (int64_t i = 0; i < per_unit; ++i) {
                    values[i] = Element::narrow(X::widen(x[unit * per_unit + i]));
                }
            }
            __builtin_memcpy(block + (unit * padded + r) * 4, values, 4);
        }
    }
}

// An element that is multiplied apart from its block.
struct Outlier {
    int32_t column;  // of the row; negative: no more in this segment
    float value;
};

HEADRACE_INLINE uint32_t largest_magnitude(const Floats (&values)[kBlock / kWidth]) {
    Ints magnitude = broadcast_int(0);
    for (const Floats& value : values) {
        magnitude = max_ints(magnitude, bits_and(as_ints(value), broadcast_int(0x7fffffff)));
    }
    return static_cast<uint32_t>(reduce_max_ints(magnitude));
}

// Takes the element of magnitude `maximum` out of `values` where it dominates; its index or -1.
HEADRACE_INLINE int take_outlier(Floats (&values)[kBlock / kWidth], float maximum, float* taken) {
    Floats squares = zeros();
    for (const Floats& value : values) squares = fma(value, value, squares);
    if (!(2.0f * maximum * maximum > reduce_add(squares))) return -1;
    alignas(64) float elements[kBlock];
    for (int i = 0; i < kBlock / kWidth; ++i) store(elements + i * kWidth, values[i]);
    int index = 0;
    while (index < kBlock - 1 && __builtin_fabsf(elements[index]) != maximum) ++index;
    *taken = elements[index];
    elements[index] = 0.0f;
    for (int i = 0; i < kBlock / kWidth; ++i) values[i] = load(elements + i * kWidth);
    return index;
}

// One block of 32 elements as signed bytes, with the scale that gives them back. `outlier` has a
// negative column where none is taken out.
template <class X>
HEADRACE_INLINE float quantize_block(const typename X::Storage* x, int8_t* quants, int32_t* sum,
                                     Outlier* outlier) {
    Floats values[kBlock / kWidth];
    for (int i = 0; i < kBlock / kWidth; ++i) values[i] = X::load_floats(x + i * kWidth);
    uint32_t bits = largest_magnitude(values);
    float maximum = __builtin_bit_cast(float, bits);
    outlier->column = -1;
    if (bits <= kLargestFinite && maximum >= kSmallestMaximum) {
        outlier->column = take_outlier(values, maximum, &outlier->value);
        if (outlier->column >= 0) {
            bits = largest_magnitude(values);
            maximum = __builtin_bit_cast(float, bits);
        }
    }
    if (bits > kLargestFinite || maximum < kSmallestMaximum) {
        __builtin_memset(quants, 0, kBlock);
        *sum = 0;
        return bits > kLargestFinite ? __builtin_nanf("") : 0.0f;
    }
    const Floats inverse = broadcast(127.0f / maximum);
    for (int i = 0; i < kBlock / kWidth; ++i) {
        store_bytes(quants + i * kWidth, to_ints(mul(values[i], inverse)));
    }
    int32_t total = 0;
    for (int i = 0; i < kBlock; ++i) total += quants[i];
    *sum = total;
    return maximum / 127.0f;
}

// What the kernel of a block format wants beside the scale: a float or an int32 as 4 bytes.
HEADRACE_INLINE uint32_t block_offset(Format format, float scale, int32_t sum) {
    if (format == Format::q4_1) {
        return __builtin_bit_cast(uint32_t, scale * static_cast<float>(sum));
    }
    if (format == Format::q4_0) return static_cast<uint32_t>(-8 * sum);
#if defined(__AVX512F__)
    return static_cast<uint32_t>(-128 * sum);
#else
    return 0;
#endif
}

// Outliers lie behind the rows' blocks: [padded][segments of K][8], each segment ended by a
// negative column or by its size.
constexpr int64_t kSegmentOutliers = kPackSegment / kBlock;

HEADRACE_INLINE int64_t outlier_offset(int64_t k, int padded, int row) {
    return padded * (k + k / kBlock * 8) +
           row * (k / kBlock) * static_cast<int64_t>(sizeof(Outlier));
}

template <class X>
void pack_blocks(const LinearCall& call, int64_t first_row, int64_t rows, int padded,
                 int64_t first, int64_t last, uint8_t* block) {
    const int64_t stride = padded * (kBlock + 8);
    uint8_t* outliers[kMostRows];
    for (int r = 0; r < padded; ++r) {
        outliers[r] = block + outlier_offset(call.weight.k, padded, r) +
                      first / kBlock * static_cast<int64_t>(sizeof(Outlier));
    }
    for (int64_t b = first / kBlock; b < last / kBlock; ++b) {
        uint8_t* target = block + b * stride;
        for (int r = 0; r < padded; ++r) {
            alignas(64) int8_t quants[kBlock] = {};
            float scale = 0.0f;
            int32_t sum = 0;
            if (r < rows) {
                Outlier outlier;
                scale = quantize_block<X>(row_of<X>(call, first_row + r) + b * kBlock, quants,
                                          &sum, &outlier);
                if (outlier.column >= 0) {
                    outlier.column += static_cast<int32_t>(b * kBlock);
                    __builtin_memcpy(outliers[r], &outlier, sizeof(outlier));
                    outliers[r] += sizeof(outlier);
                }
            }
            for (int unit = 0; unit < 8; ++unit) {
                __builtin_memcpy(target + (unit * padded + r) * 4, quants + unit * 4, 4);
            }
            const uint32_t offset = block_offset(call.weight.format, scale, sum);
            __builtin_memcpy(target + (8 * padded + r) * 4, &scale, 4);
            __builtin_memcpy(target + (9 * padded + r) * 4, &offset, 4);
        }
    }
    for (int r = 0; r < padded; ++r) {
        const uint8_t* end = block + outlier_offset(call.weight.k, padded, r) +
                             last / kBlock * static_cast<int64_t>(sizeof(Outlier));
        const Outlier none{-1, 0.0f};
        if (outliers[r] != end) __builtin_memcpy(outliers[r], &none, sizeof(none));
    }
}

template <class X>
void pack_rows(const LinearCall& call, int64_t first_row, int64_t rows, int padded, int64_t first,
               int64_t last, uint8_t* block) {
    switch (call.weight.format) {
        case Format::float32:
            return pack_units<Float32, X>(call, first_row, rows, padded, first, last, block);
        case Format::bfloat16:
            return pack_units<BFloat16, X>(call, first_row, rows, padded, first, last, block);
        default: return pack_blocks<X>(call, first_row, rows, padded, first, last, block);
    }
}

void pack(const LinearCall& call, int64_t first_row, int64_t rows, int padded, int64_t first,
          int64_t last, uint8_t* block) {
    if (call.x_type == Type::float32) {
        pack_rows<Float32>(call, first_row, rows, padded, first, last, block);
    } else {
        pack_rows<BFloat16>(call, first_row, rows, padded, first, last, block);
    }
}

// ---- one block of rows against vectors of one tile --------------------------------------------

template <class Element>
struct Dense {
    static constexpr bool is_dense = true;
    static constexpr int vectors(int) { return 2; }

    template <int R, int V>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Floats (&acc)[R][V]) {
        tile += column * 4;
        const int64_t units = k * static_cast<int64_t>(sizeof(typename Element::Storage)) / 4;
        for (int64_t unit = 0; unit < units; ++unit) {
            Ints weights[V];
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                weights[v] = load_ints(tile + v * kWidth * 4);
            }
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                const Ints value = broadcast_unit(x + r * 4);
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                    acc[r][v] = dot_unit(Element{}, acc[r][v], weights[v], value);
                }
            }
            tile += kTileRows * 4;
            x += R * 4;
        }
    }
};

template <Format format>
struct Blocks {
    static constexpr bool is_dense = false;
    static constexpr int vectors([[maybe_unused]] int rows) {
#if defined(__AVX512F__)
        return 2;
#else
        return rows == 1 ? 2 : 1;
#endif
    }

    template <int R, int V>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Floats (&acc)[R][V]) {
        constexpr bool has_minimum = format == Format::q4_1;
        constexpr int header = has_minimum ? 128 : 64;
        for (int64_t block = 0; block < k; block += kBlock) {
            Ints sums[R][V];
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                const Ints start = has_minimum ? broadcast_int(0)
                                               : broadcast_unit(x + (9 * R + r) * 4);
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = start;
            }
            const uint8_t* units = tile + header + column * 4;
            if constexpr (format == Format::q8_0) {
                for (int p = 0; p < 8; ++p) {
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        const Ints weights = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                            sums[r][v] = dot_biased(sums[r][v], weights,
                                                    broadcast_unit(x + (p * R + r) * 4));
                        }
                    }
                }
            } else {
                const Ints nibble = broadcast_int(0x0f0f0f0f);
                for (int p = 0; p < 4; ++p) {
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        const Ints both = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                        const Ints low = bits_and(both, nibble);
                        const Ints high = bits_and(shift_right<4>(both), nibble);
                        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                            sums[r][v] = dot_unsigned_signed(sums[r][v], low,
                                                             broadcast_unit(x + (p * R + r) * 4));
                            sums[r][v] = dot_unsigned_signed(
                                sums[r][v], high, broadcast_unit(x + ((p + 4) * R + r) * 4));
                        }
                    }
                }
            }
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                const Floats scale = load_half(tile + (column + v * kWidth) * 2);
                HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                    const Floats both = mul(scale, broadcast_float(x + (8 * R + r) * 4));
                    acc[r][v] = fma(both, to_floats(sums[r][v]), acc[r][v]);
                }
                if constexpr (has_minimum) {
                    const Floats least = load_half(tile + 64 + (column + v * kWidth) * 2);
                    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                        acc[r][v] =
                            fma(least, broadcast_float(x + (9 * R + r) * 4), acc[r][v]);
                    }
                }
            }
            tile += tile_bytes(format, kBlock);
            x += R * (kBlock + 8);
        }
    }

    // Adds one row's outliers to its sums of `V` vectors of columns from `column` on.
    template <int V>
    static void add_outliers(const uint8_t* tile, int column, const uint8_t* outliers, int64_t k,
                             float* sums) {
        Floats acc[V];
        HEADRACE_UNROLL for (int v = 0; v < V; ++v) acc[v] = load(sums + v * kWidth);
        bool any = false;
        for (int64_t first = 0; first < k; first += kPackSegment) {
            const int64_t blocks = (k - first < kPackSegment ? k - first : kPackSegment) / kBlock;
            for (int64_t i = 0; i < blocks; ++i) {
                Outlier outlier;
                __builtin_memcpy(&outlier, outliers + i * sizeof(outlier), sizeof(outlier));
                if (outlier.column < 0) break;
                any = true;
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                    acc[v] = fma(weights_at(tile, column + v * kWidth, outlier.column),
                                 broadcast(outlier.value), acc[v]);
                }
            }
            outliers += kSegmentOutliers * sizeof(Outlier);
        }
        if (!any) return;
        HEADRACE_UNROLL for (int v = 0; v < V; ++v) store(sums + v * kWidth, acc[v]);
    }

    // One vector of weights of element `k` of K, for the columns from `column` on.
    HEADRACE_INLINE Floats weights_at(const uint8_t* tile, int column, int32_t k) {
        constexpr bool has_minimum = format == Format::q4_1;
        const uint8_t* block = tile + k / kBlock * tile_bytes(format, kBlock);
        const uint8_t* units = block + (has_minimum ? 128 : 64) + column * 4;
        const int element = k % kBlock;
        const Floats scale = load_half(block + column * 2);
        if constexpr (format == Format::q8_0) {
            const Ints unit = load_ints(units + element / 4 * kTileRows * 4);
            const Ints quant = bits_and(shift_right(unit, element % 4 * 8), broadcast_int(0xff));
            return mul(scale, sub(to_floats(quant), broadcast(128.0f)));
        } else {
            const Ints unit = load_ints(units + element % 16 / 4 * kTileRows * 4);
            const int shift = element % 4 * 8 + (element < 16 ? 0 : 4);
            const Ints quant = bits_and(shift_right(unit, shift), broadcast_int(0xf));
            if constexpr (has_minimum) {
                return fma(scale, to_floats(quant), load_half(block + 64 + column * 2));
            } else {
                return mul(scale, sub(to_floats(quant), broadcast(8.0f)));
            }
        }
    }
};

// ---- one block of rows against one tile -------------------------------------------------------

struct Destination {
    void* out;
    Type type;
    int64_t stride;
    const float* bias;
    int64_t columns;  // of this tile, at most 32
};

// Adds the bias and rounds `width` columns from `column` on of each row of `sums`.
void store_rows(const Destination& to, int64_t rows, int column, int width, const float* sums) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int i = 0; i < width; i += kWidth) {
            const int64_t first = column + i;
            const int64_t left = to.columns - first;
            const int64_t index = row * to.stride + first;
            const float* source = sums + row * width + i;
            if (left >= kWidth) {
                Floats value = load(source);
                if (to.bias != nullptr) value = add(value, load(to.bias + first));
                if (to.type == Type::float32) {
                    store(static_cast<float*>(to.out) + index, value);
                } else {
                    store_bf16(static_cast<uint16_t*>(to.out) + index, value);
                }
                continue;
            }
            for (int64_t j = 0; j < left; ++j) {
                const float value = to.bias != nullptr ? source[j] + to.bias[first + j] : source[j];
                if (to.type == Type::float32) {
                    static_cast<float*>(to.out)[index + j] = value;
                } else {
                    static_cast<uint16_t*>(to.out)[index + j] = float_to_bf16(value);
                }
            }
        }
    }
}

template <class Kernel, int R>
void multiply(const uint8_t* tile, const uint8_t* x, int64_t k, int64_t rows,
              const Destination& to) {
    constexpr int V = Kernel::vectors(R);
    for (int v = 0; v < kVectors; v += V) {
        Floats acc[R][V];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int i = 0; i < V; ++i) acc[r][i] = zeros();
        }
        Kernel::template accumulate<R, V>(tile, v * kWidth, x, k, acc);
        alignas(64) float sums[R * V * kWidth];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int i = 0; i < V; ++i) {
                store(sums + (r * V + i) * kWidth, acc[r][i]);
            }
        }
        if constexpr (!Kernel::is_dense) {
            for (int r = 0; r < rows; ++r) {
                Kernel::template add_outliers<V>(tile, v * kWidth, x + outlier_offset(k, R, r), k,
                                                 sums + r * V * kWidth);
            }
        }
        store_rows(to, rows, v * kWidth, V * kWidth, sums);
    }
}

using Multiply = void (*)(const uint8_t*, const uint8_t*, int64_t, int64_t, const Destination&);

template <class Kernel, bool dense>
Multiply multiply_for(int padded) {
    switch (padded) {
        case 1: return multiply<Kernel, 1>;
        case 2: return multiply<Kernel, 2>;
        case 3: return multiply<Kernel, 3>;
        case 4: return multiply<Kernel, 4>;
#if defined(__AVX512F__)
        case 6: return multiply<Kernel, 6>;
        case 8: return multiply<Kernel, 8>;
        case 12:
            if constexpr (dense) return multiply<Kernel, 12>;
            return nullptr;
#endif
        default: return nullptr;
    }
}

Multiply multiply_for(Format format, int padded) {
    switch (format) {
        case Format::float32: return multiply_for<Dense<Float32>, true>(padded);
        case Format::bfloat16: return multiply_for<Dense<BFloat16>, true>(padded);
        case Format::q8_0: return multiply_for<Blocks<Format::q8_0>, false>(padded);
        case Format::q4_0: return multiply_for<Blocks<Format::q4_0>, false>(padded);
        default: return multiply_for<Blocks<Format::q4_1>, false>(padded);
    }
}

// ---- the whole matrix -------------------------------------------------------------------------

void multiply_tiles(const LinearCall& call, const RowBlocks& blocks, const uint8_t* packed,
                    Worker& worker) {
    const int64_t rows = blocks.rows;
    const Matrix& weight = call.weight;
    const int64_t tiles = (weight.n + kTileRows - 1) / kTileRows;
    const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
    const int64_t row_bytes = packed_row_bytes(weight.format, weight.k);
    const int64_t element = call.out_type == Type::float32 ? 4 : 2;
    const Multiply whole = multiply_for(weight.format, blocks.size);
    const Multiply tail = multiply_for(weight.format, blocks.last);
    const int64_t size = tile_bytes(weight.format, weight.k);
    int64_t begin = 0, end = 0;
    while (worker.take_run(tiles * chunks, begin, end)) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t tile = task % tiles;
            const int64_t first = task / tiles * kChunkRows;
            const int64_t stop = first + kChunkRows < rows ? first + kChunkRows : rows;
            const int64_t column = tile * kTileRows;
            const int64_t columns = weight.n - column < kTileRows ? weight.n - column : kTileRows;
            const uint8_t* data = weight.tiles + tile * size;
            for (int64_t row = first; row < stop; row += blocks.size) {
                const Destination to{
                    static_cast<uint8_t*>(call.out) + (row * weight.n + column) * element,
                    call.out_type, weight.n,
                    call.bias == nullptr ? nullptr : call.bias + column, columns};
                const bool is_last = rows - row <= blocks.size;
                (is_last ? tail : whole)(data, packed + row * row_bytes, weight.k,
                                         is_last ? rows - row : blocks.size, to);
            }
        }
    }
}

void pack_together(const LinearCall& call, const RowBlocks& blocks, Worker& worker) {
    const int64_t k = call.weight.k;
    const int64_t segments = (k + kPackSegment - 1) / kPackSegment;
    const int64_t row_bytes = packed_row_bytes(call.weight.format, k);
    for (int64_t task = worker.take(1); task < blocks.count * segments; task = worker.take(1)) {
        const int64_t row = task / segments * blocks.size;
        const bool is_last = blocks.rows - row <= blocks.size;
        const int64_t first = task % segments * kPackSegment;
        const int64_t last = first + kPackSegment < k ? first + kPackSegment : k;
        pack(call, row, is_last ? blocks.rows - row : blocks.size,
             is_last ? blocks.last : blocks.size, first, last, call.scratch + row * row_bytes);
    }
}

}  // namespace

void linear(const LinearCall& call, const Step& step, Worker& worker) {
    const int64_t rows = row_count(call.rows, step);
    const int64_t k = call.weight.k;
    if (rows == 0) return;
    const RowBlocks blocks(call.weight.format, rows);
    if (blocks.count == 1 && blocks.last * k <= kPrivateElements) {
        alignas(64) uint8_t packed[kPrivateElements * 4];
        for (int64_t first = 0; first < k; first += kPackSegment) {
            const int64_t last = first + kPackSegment < k ? first + kPackSegment : k;
            pack(call, 0, rows, blocks.last, first, last, packed);
        }
        multiply_tiles(call, blocks, packed, worker);
        return;
    }
    pack_together(call, blocks, worker);
    worker.next_phase();
    multiply_tiles(call, blocks, call.scratch, worker);
}

}  // namespace headrace::HEADRACE_ISA

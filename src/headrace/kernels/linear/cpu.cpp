// Linear layers over interleaved tiles: activations are normalised and packed once, then every tile
// of weights meets every block of rows.
//
// One element of the output is one chain of additions along K, in the order of K, whatever the
// number of rows: a row's result depends on nothing but the row. (Block formats add int32 sums of
// 32 products, which are exact, so only the order of the blocks matters.)
//
// Block formats meet activations rounded to 8 bits in blocks of 32. An element with more than half
// of its block's sum of squares would leave the other 31 few steps: it is taken out and multiplied
// in float32 (mixed-precision decomposition, arXiv:2208.07339, a block and a row at a time). Rows
// that are computed together mostly share the columns of such elements: each of these columns is
// dequantized once for all of them.
#include <cstring>

#include "kernel_table.hpp"
#include "vector.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int kVectors = kTileRows / kWidth;
constexpr int32_t kChunkRows = 96;         // packed, about half of a second-level cache
constexpr int64_t kPrivateElements = 4096; // below, every worker packs for itself: no waiting
// Packed bytes of that many elements, whole pieces of padded rows included.
constexpr int64_t kPrivateBytes =
    (kPrivateElements / kBlock + kMostPackedRows * kPieceChunks) *
    (kBlock * 4 + 8 + 4 * kMostPackedRows);
constexpr int64_t kLineBytes = 64;
constexpr uint32_t kLargestFinite = 0x7f7fffff;
constexpr float kSmallestMaximum = 1e-30f; // blocks below are quantized to zeros

#if defined(__AVX512F__)
constexpr bool kBiasedOffset = true;  // dot_biased leaves 128 * sum(signed) to take off
#else
constexpr bool kBiasedOffset = false;
#endif

constexpr bool is_dense(Format format) {
    return format == Format::float32 || format == Format::bfloat16;
}

// The most rows that one pass over a tile serves, where nobody has measured. The registers hold 12
// rows (or, with an int32 and a float32 sum of each in a block format, 6), which is best where
// weights come from memory: then every pass beyond the first waits for nothing, and block formats
// gain by 8 rows although they spill. With many rows the weights are cached, and what counts is that
// the packed rows are (8 rows) and that nothing spills (6). AVX2 has half the registers, of half the
// width: 4 rows, and 6 where sums of products stay in int16.
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

// A block of rows as packed: its chunks [chunk][row], and in a block format, behind them, the
// outliers of each piece of kPieceChunks chunks: how many columns, and for each its number and the
// elements of all rows in it, 0 where a row has no outlier there.
int64_t piece_count(int64_t k) { return (k + kPieceChunks * kBlock - 1) / (kPieceChunks * kBlock); }

int64_t outlier_column_bytes(int padded) { return 4 + 4 * padded; }

// Every row has at most one outlier a chunk.
int64_t outlier_piece_bytes(int padded) {
    return 4 + kPieceChunks * padded * outlier_column_bytes(padded);
}

int64_t outlier_offset(Format format, int64_t k, int padded) {
    return (k + kBlock - 1) / kBlock * packed_chunk_bytes(format) * padded;
}

// ---- packing of activations -------------------------------------------------------------------

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
        outlier.column += static_cast<int32_t>(column);
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

// The outlier columns of one piece of a block of rows, in ascending order.
class OutlierColumns {
  public:
    OutlierColumns(uint8_t* target, int padded)
        : target_(target), bytes_(outlier_column_bytes(padded)) {}

    // Columns of earlier chunks stay as they are.
    void begin_chunk() { chunk_ = count_; }

    void add(const Outlier& outlier, int row) {
        int32_t at = chunk_;
        while (at < count_ && column(at) < outlier.column) ++at;
        if (at == count_ || column(at) != outlier.column) {
            __builtin_memmove(entry(at + 1), entry(at), static_cast<size_t>((count_ - at) * bytes_));
            ++count_;
            __builtin_memset(entry(at), 0, static_cast<size_t>(bytes_));
            __builtin_memcpy(entry(at), &outlier.column, 4);
        }
        __builtin_memcpy(entry(at) + 4 + row * 4, &outlier.value, 4);
    }

    void end() { __builtin_memcpy(target_, &count_, 4); }

  private:
    uint8_t* entry(int32_t index) { return target_ + 4 + index * bytes_; }
    int32_t column(int32_t index) {
        int32_t result;
        __builtin_memcpy(&result, entry(index), 4);
        return result;
    }

    uint8_t* target_;
    int64_t bytes_;
    int32_t count_ = 0;
    int32_t chunk_ = 0;
};

// Piece `piece` of the columns of the block of rows that begins with row `first`; rows past the
// step's are zeros.
template <class X>
void pack_piece_of(const LinearCall& call, const RowBlocks& blocks, int64_t first, int64_t piece,
                   uint8_t* block) {
    const Format format = call.weight.format;
    const int64_t k = call.weight.k;
    const int padded = blocks.padded(first);
    const int64_t chunk_bytes = packed_chunk_bytes(format);
    const int64_t begin = piece * kPieceChunks * kBlock, left = k - begin;
    const int64_t end = left < kPieceChunks * kBlock ? k : begin + kPieceChunks * kBlock;
    uint8_t* target = block + begin / kBlock * chunk_bytes * padded;
    OutlierColumns outliers(
        block + outlier_offset(format, k, padded) + piece * outlier_piece_bytes(padded), padded);
    for (int64_t column = begin; column < end; column += kBlock) {
        outliers.begin_chunk();
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
                if (outlier.column >= 0) outliers.add(outlier, row);
            }
        }
    }
    if (!is_dense(format)) outliers.end();
}

void pack_piece(const LinearCall& call, const RowBlocks& blocks, int64_t first, int64_t piece,
                uint8_t* block) {
    (call.x_type == Type::float32 ? pack_piece_of<Float32> : pack_piece_of<BFloat16>)(
        call, blocks, first, piece, block);
}

// ---- one block of rows against vectors of one tile --------------------------------------------

// Lines of the tile to come, so many with each 32 columns: they travel while this one computes.
struct Ahead {
    const uint8_t* line;
    int lines;

    HEADRACE_INLINE_MEMBER void fetch() {
        for (int i = 0; i < lines; ++i) __builtin_prefetch(line + i * kLineBytes, 0, 2);
        line += lines * kLineBytes;
    }
};

template <Format kind, class Element>
struct Dense {
    static constexpr Format format = kind;
    static constexpr int vectors(int) { return 2; }

    template <int R, int V>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Ahead ahead, Floats (&acc)[R][V]) {
        constexpr int per_unit = 4 / sizeof(typename Element::Storage);
        constexpr int chunk_bytes = kBlock / per_unit * 4;
        tile += column * 4;
        for (int64_t chunk = 0; chunk < k; chunk += kBlock) {
            const int64_t units = (k - chunk < kBlock ? k - chunk : kBlock) / per_unit;
            ahead.fetch();
            for (int64_t unit = 0; unit < units; ++unit) {
                Ints weights[V];
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                    weights[v] = load_ints(tile + v * kWidth * 4);
                }
                HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                    const Ints value = broadcast_unit(x + r * chunk_bytes + unit * 4);
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        acc[r][v] = dot_unit(Element{}, acc[r][v], weights[v], value);
                    }
                }
                tile += kTileRows * 4;
            }
            x += R * chunk_bytes;
        }
    }
};

template <Format kind>
struct Blocks {
    static constexpr Format format = kind;
    static constexpr int vectors([[maybe_unused]] int rows) {
#if defined(__AVX512F__)
        return rows <= 6 ? 2 : 1;
#else
        return rows == 1 ? 2 : 1;
#endif
    }

    template <int R, int V>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Ahead ahead, Floats (&acc)[R][V]) {
        constexpr int chunk_bytes = kBlock + 8;
        constexpr bool has_minimum = format == Format::q4_1;
        constexpr int header = has_minimum ? 128 : 64;
        for (int64_t block = 0; block < k; block += kBlock) {
            ahead.fetch();
            constexpr bool nibbles = format != Format::q8_0;
            const auto start = [&](int r) {
                return has_minimum ? broadcast_int(0) : broadcast_unit(x + r * chunk_bytes + 36);
            };
            Ints sums[R][V];
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                    sums[r][v] = nibbles ? begin_nibbles(start(r)) : start(r);
                }
            }
            const uint8_t* units = tile + header + column * 4;
            if constexpr (format == Format::q8_0) {
                HEADRACE_UNROLL for (int p = 0; p < 8; ++p) {
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        const Ints weights = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                            sums[r][v] = dot_biased(sums[r][v], weights,
                                                    broadcast_unit(x + r * chunk_bytes + p * 4));
                        }
                    }
                }
            } else {
                const Ints nibble = broadcast_int(0x0f0f0f0f);
                HEADRACE_UNROLL for (int p = 0; p < 4; ++p) {
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        const Ints both = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                        const Ints low = bits_and(both, nibble);
                        const Ints high = bits_and(shift_right<4>(both), nibble);
                        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                            sums[r][v] = dot_nibbles(
                                sums[r][v], low, broadcast_unit(x + r * chunk_bytes + p * 4));
                            sums[r][v] = dot_nibbles(
                                sums[r][v], high, broadcast_unit(x + r * chunk_bytes + p * 4 + 16));
                        }
                    }
                }
            }
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                const Floats scale = load_half(tile + (column + v * kWidth) * 2);
                HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                    const Floats both = mul(scale, broadcast_float(x + r * chunk_bytes + 32));
                    const Ints sum = nibbles ? end_nibbles(sums[r][v], start(r)) : sums[r][v];
                    acc[r][v] = fma(both, to_floats(sum), acc[r][v]);
                }
                if constexpr (has_minimum) {
                    const Floats least = load_half(tile + 64 + (column + v * kWidth) * 2);
                    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                        acc[r][v] =
                            fma(least, broadcast_float(x + r * chunk_bytes + 36), acc[r][v]);
                    }
                }
            }
            tile += tile_bytes(format, kBlock);
            x += R * chunk_bytes;
        }
    }

    // Adds the products of the outliers of a block of rows.
    template <int R, int V>
    HEADRACE_INLINE void add_outliers(const uint8_t* tile, int column, const uint8_t* pieces,
                                      int64_t k, Floats (&acc)[R][V]) {
        for (int64_t piece = piece_count(k); piece > 0; --piece) {
            int32_t count;
            __builtin_memcpy(&count, pieces, 4);
            const uint8_t* entry = pieces + 4;
            for (; count > 0; --count, entry += outlier_column_bytes(R)) {
                int32_t element;
                __builtin_memcpy(&element, entry, 4);
                HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                    const Floats weights = weights_at(tile, column + v * kWidth, element);
                    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                        acc[r][v] = fma(weights, broadcast_float(entry + 4 + r * 4), acc[r][v]);
                    }
                }
            }
            pieces += outlier_piece_bytes(R);
        }
        // A row without an outlier in another's column must not show that it met the column: of
        // all sums only -0 would, which this makes 0.
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) acc[r][v] = add(acc[r][v], zeros());
        }
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

// sums[R][32] = the rows' products with the tile.
template <class Kernel, int R>
void multiply(const uint8_t* tile, const uint8_t* x, int64_t k, Ahead ahead, float* sums) {
    constexpr int V = Kernel::vectors(R);
    for (int v = 0; v < kVectors; v += V) {
        Floats acc[R][V];
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int i = 0; i < V; ++i) acc[r][i] = zeros();
        }
        Kernel::template accumulate<R, V>(tile, v * kWidth, x, k, ahead, acc);
        ahead.lines = 0;
        if constexpr (Kernel::format != Format::float32 && Kernel::format != Format::bfloat16) {
            Kernel::template add_outliers<R, V>(
                tile, v * kWidth, x + outlier_offset(Kernel::format, k, R), k, acc);
        }
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int i = 0; i < V; ++i) {
                store(sums + r * kTileRows + (v + i) * kWidth, acc[r][i]);
            }
        }
    }
}

using Multiply = void (*)(const uint8_t*, const uint8_t*, int64_t, Ahead, float*);

template <class Kernel>
Multiply multiply_for(int padded) {
    switch (padded) {
        case 1: return multiply<Kernel, 1>;
        case 2: return multiply<Kernel, 2>;
        case 3: return multiply<Kernel, 3>;
        case 4: return multiply<Kernel, 4>;
        case 6: return multiply<Kernel, 6>;
#if defined(__AVX512F__)
        case 8: return multiply<Kernel, 8>;
        case 12: return multiply<Kernel, 12>;
#endif
        default: return nullptr;
    }
}

Multiply multiply_for(Format format, int padded) {
    switch (format) {
        case Format::float32: return multiply_for<Dense<Format::float32, Float32>>(padded);
        case Format::bfloat16: return multiply_for<Dense<Format::bfloat16, BFloat16>>(padded);
        case Format::q8_0: return multiply_for<Blocks<Format::q8_0>>(padded);
        case Format::q4_0: return multiply_for<Blocks<Format::q4_0>>(padded);
        default: return multiply_for<Blocks<Format::q4_1>>(padded);
    }
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

// As a product that is stored and read again: a step with adapters, which needs gate and up apart,
// gives other requests the same bits.
template <class Out>
HEADRACE_INLINE Floats rounded(Floats value) {
    alignas(64) typename Out::Storage stored[kWidth];
    Out::store_floats(stored, value);
    return Out::load_floats(stored);
}

template <class Out>
void store_gated(const LinearCall& call, int64_t row, int64_t rows, int64_t column,
                 const float* gates, const float* ups) {
    const int64_t width = call.weight.n / 2;
    for (int64_t r = 0; r < rows; ++r, gates += kTileRows, ups += kTileRows) {
        auto* out = static_cast<typename Out::Storage*>(call.out) + (row + r) * width + column;
        for (int64_t i = 0; i < kTileRows; i += kWidth) {
            Floats gate = load(gates + i), up = load(ups + i);
            if (call.bias != nullptr) {
                gate = add(gate, load(call.bias + column + i));
                up = add(up, load(call.bias + width + column + i));
            }
            Out::store_floats(out + i, silu_mul(rounded<Out>(gate), rounded<Out>(up)));
        }
    }
}

// ---- the whole matrix -------------------------------------------------------------------------

// The products of all rows with the tiles that this worker takes; `packed(row)` gives the packed
// block of rows that begins with `row`.
template <class Packed>
void multiply_tiles(const LinearCall& call, const LinearPlan& plan, const RowBlocks& blocks,
                    Packed&& packed, Worker& worker) {
    const int64_t rows = blocks.rows;
    const int64_t chunk_rows = (plan.chunk_rows + blocks.size - 1) / blocks.size * blocks.size;
    const Matrix& weight = call.weight;
    const bool wide = call.out_type == Type::float32;
    const int64_t tiles = (weight.n + kTileRows - 1) / kTileRows / (call.gated ? 2 : 1);
    const int64_t chunks = (rows + chunk_rows - 1) / chunk_rows;
    const int64_t size = tile_bytes(weight.format, weight.k);
    // Every block of rows fetches its part of the next tile.
    const int64_t passes = rows < chunk_rows ? blocks.count : chunk_rows / blocks.size;
    const int64_t chunk_lines = tile_bytes(weight.format, kBlock) / kLineBytes;
    const auto lines = static_cast<int>((chunk_lines + passes - 1) / passes);
    const int64_t pass_bytes = lines * kLineBytes * ((weight.k + kBlock - 1) / kBlock);
    alignas(64) float sums[2][kMostPackedRows * kTileRows];
    int64_t begin = 0, end = 0;
    while (worker.take_run(tiles * chunks, begin, end)) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t tile = plan.split_by_rows ? task % tiles : task / chunks;
            const int64_t first =
                (plan.split_by_rows ? task / tiles : task % chunks) * chunk_rows;
            const int64_t stop = first + chunk_rows < rows ? first + chunk_rows : rows;
            const int64_t column = tile * kTileRows;
            const uint8_t* data = weight.tiles + tile * size;
            int64_t pass = 0;
            for (int64_t row = first; row < stop; row += blocks.size, ++pass) {
                const int64_t count = rows - row < blocks.size ? rows - row : blocks.size;
                const uint8_t* x = packed(row);
                const Multiply multiply = multiply_for(weight.format, blocks.padded(row));
                const bool fetches = tile + 1 < tiles;
                const Ahead ahead{data + size + pass * pass_bytes, fetches ? lines : 0};
                multiply(data, x, weight.k, ahead, sums[0]);
                if (call.gated) {
                    const uint8_t* up = data + tiles * size;
                    const Ahead up_ahead{up + size + pass * pass_bytes, fetches ? lines : 0};
                    multiply(up, x, weight.k, up_ahead, sums[1]);
                    (wide ? store_gated<Float32> : store_gated<BFloat16>)(call, row, count, column,
                                                                          sums[0], sums[1]);
                } else {
                    const int64_t left = weight.n - column;
                    (wide ? store_sums<Float32> : store_sums<BFloat16>)(
                        call, row, count, column, left < kTileRows ? left : kTileRows, sums[0]);
                }
            }
        }
    }
}

}  // namespace

LinearPlan default_plan(Format format, int64_t rows) {
    return {usual_rows(format, rows), kChunkRows, true, true};
}

bool has_rows(Format format, int64_t rows) {
    return rows == padded_rows(rows) && multiply_for(format, static_cast<int>(rows)) != nullptr;
}

void linear(const LinearCall& call, const Step& step, Worker& worker) {
    const int64_t rows = row_count(call.rows, step);
    const Format format = call.weight.format;
    const int64_t k = call.weight.k;
    if (rows == 0) return;
    const LinearPlan& plan = call.plans[plan_index(rows)];
    const RowBlocks blocks(rows, plan.most_rows);
    const int64_t pieces = piece_count(k);
    if (plan.packs_privately && blocks.count == 1 && blocks.last * k <= kPrivateElements) {
        alignas(64) uint8_t packed[kPrivateBytes];
        bool is_packed = false;
        multiply_tiles(
            call, plan, blocks,
            [&](int64_t) {
                for (int64_t piece = 0; !is_packed && piece < pieces; ++piece) {
                    pack_piece(call, blocks, 0, piece, packed);
                }
                is_packed = true;
                return static_cast<const uint8_t*>(packed);
            },
            worker);
        return;
    }
    int64_t begin = 0, end = 0;
    while (worker.take_run(blocks.count * pieces, begin, end)) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t first = task / pieces * blocks.size;
            pack_piece(call, blocks, first, task % pieces,
                       call.scratch + first * packed_row_bytes(format, k));
        }
    }
    worker.next_phase();
    const int64_t row_bytes = packed_row_bytes(format, k);
    multiply_tiles(
        call, plan, blocks,
        [&](int64_t row) { return static_cast<const uint8_t*>(call.scratch) + row * row_bytes; },
        worker);
}

}  // namespace headrace::HEADRACE_ISA

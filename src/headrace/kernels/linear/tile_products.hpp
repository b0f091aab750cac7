// Products of a block of packed rows with one tile of weights, outliers left aside.
#pragma once

#include "packed_rows.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int64_t kLineBytes = 64;

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

// Lines of the tile to come, so many with each 32 columns: they travel while this one computes.
struct Ahead {
    const uint8_t* line;
    int lines;

    HEADRACE_INLINE_MEMBER void fetch() {
        for (int i = 0; i < lines; ++i) __builtin_prefetch(line + i * kLineBytes, 0, 2);
        line += lines * kLineBytes;
    }
};

// Sums of R rows and V vectors of outputs.
template <int R, int V>
struct SumsInRegisters {
    Floats values[R][V];

    HEADRACE_INLINE_MEMBER Floats at(int r, int v) const { return values[r][v]; }
    HEADRACE_INLINE_MEMBER void set(int r, int v, Floats value) { values[r][v] = value; }
};

// The same where registers are wanted for more: rows kTileRows apart.
template <int R, int V>
struct SumsInMemory {
    float* values;

    HEADRACE_INLINE_MEMBER Floats at(int r, int v) const {
        return load(values + r * kTileRows + v * kWidth);
    }
    HEADRACE_INLINE_MEMBER void set(int r, int v, Floats value) {
        store(values + r * kTileRows + v * kWidth, value);
    }
};

template <Format kind, class Element>
struct Dense {
    static constexpr Format format = kind;
    static constexpr int vectors(int) { return 2; }
    static constexpr bool sums_in_registers(int) { return true; }

    template <int R, int V>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Ahead ahead, SumsInRegisters<R, V>& sums) {
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
                        sums.set(r, v, dot_unit(Element{}, sums.at(r, v), weights[v], value));
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
        return rows <= 8 ? 2 : 1;
#else
        return rows == 1 ? 2 : 1;
#endif
    }
    // An int32 and a float32 sum of each: of more rows the latter is in use once a block only.
    static constexpr bool sums_in_registers(int rows) { return rows * vectors(rows) <= 12; }

    template <int R, int V, class Sums>
    HEADRACE_INLINE void accumulate(const uint8_t* tile, int column, const uint8_t* x, int64_t k,
                                    Ahead ahead, Sums& acc) {
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
                    Ints weights[V];
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        weights[v] = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                    }
                    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                        const Ints value = broadcast_unit(x + r * chunk_bytes + p * 4);
                        HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                            sums[r][v] = dot_biased(sums[r][v], weights[v], value);
                        }
                    }
                }
            } else {
                const Ints nibble = broadcast_int(0x0f0f0f0f);
                HEADRACE_UNROLL for (int p = 0; p < 4; ++p) {
                    Ints low[V], high[V];
                    HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                        const Ints both = load_ints(units + (p * kTileRows + v * kWidth) * 4);
                        low[v] = bits_and(both, nibble);
                        high[v] = bits_and(shift_right<4>(both), nibble);
                    }
                    HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                        const Ints first = broadcast_unit(x + r * chunk_bytes + p * 4);
                        HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                            sums[r][v] = dot_nibbles(sums[r][v], low[v], first);
                        }
                        const Ints second = broadcast_unit(x + r * chunk_bytes + p * 4 + 16);
                        HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                            sums[r][v] = dot_nibbles(sums[r][v], high[v], second);
                        }
                    }
                }
            }
            HEADRACE_UNROLL for (int v = 0; v < V; ++v) {
                const Floats scale = load_half(tile + (column + v * kWidth) * 2);
                Floats least = zeros();
                if constexpr (has_minimum) least = load_half(tile + 64 + (column + v * kWidth) * 2);
                HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                    const Floats both = mul(scale, broadcast_float(x + r * chunk_bytes + 32));
                    const Ints sum = nibbles ? end_nibbles(sums[r][v], start(r)) : sums[r][v];
                    Floats total = fma(both, to_floats(sum), acc.at(r, v));
                    if constexpr (has_minimum) {
                        total = fma(least, broadcast_float(x + r * chunk_bytes + 36), total);
                    }
                    acc.set(r, v, total);
                }
            }
            tile += tile_bytes(format, kBlock);
            x += R * chunk_bytes;
        }
    }
};

// sums[R][32] = the rows' products with the tile.
template <class Kernel, int R>
void multiply(const uint8_t* tile, const uint8_t* x, int64_t k, Ahead ahead, float* sums) {
    constexpr int V = Kernel::vectors(R);
    for (int v = 0; v < kVectors; v += V) {
        SumsInRegisters<R, V> totals;
        SumsInMemory<R, V> stored{sums + v * kWidth};
        const auto move = [](const auto& from, auto& to) {
            HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
                HEADRACE_UNROLL for (int i = 0; i < V; ++i) to.set(r, i, from.at(r, i));
            }
        };
        HEADRACE_UNROLL for (int r = 0; r < R; ++r) {
            HEADRACE_UNROLL for (int i = 0; i < V; ++i) totals.set(r, i, zeros());
        }
        if constexpr (Kernel::sums_in_registers(R)) {
            Kernel::template accumulate<R, V>(tile, v * kWidth, x, k, ahead, totals);
            move(totals, stored);
        } else {
            move(totals, stored);
            Kernel::template accumulate<R, V>(tile, v * kWidth, x, k, ahead, stored);
        }
        ahead.lines = 0;
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

inline Multiply multiply_for(Format format, int padded) {
    switch (format) {
        case Format::float32: return multiply_for<Dense<Format::float32, Float32>>(padded);
        case Format::bfloat16: return multiply_for<Dense<Format::bfloat16, BFloat16>>(padded);
        case Format::q8_0: return multiply_for<Blocks<Format::q8_0>>(padded);
        case Format::q4_0: return multiply_for<Blocks<Format::q4_0>>(padded);
        default: return multiply_for<Blocks<Format::q4_1>>(padded);
    }
}

}  // namespace headrace::HEADRACE_ISA

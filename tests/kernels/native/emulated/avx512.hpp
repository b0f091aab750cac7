// AVX-512's intrinsics lane by lane in plain C++, so that the kernels of that instruction set can be
// tested on a machine without it: their sources are compiled with this header before them and
// otherwise for AVX2. `make test-avx512` does so. Only what the kernels use is here, and what they
// use beyond it does not compile. vpdpbf16ps and vcvtneps2bf16 are left out: how they round and
// flush is the hardware's.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define __AVX512F__ 1

namespace emulated {

template <class T>
struct Lanes {
    static constexpr int count = 64 / sizeof(T);
    T at[count];
};

template <class T, class Vector>
inline Lanes<T> lanes(const Vector& vector) {
    static_assert(sizeof(Vector) == 64);
    Lanes<T> result;
    std::memcpy(&result, &vector, 64);
    return result;
}

template <class Vector, class T>
inline Vector vector(const Lanes<T>& lanes) {
    Vector result;
    std::memcpy(&result, &lanes, 64);
    return result;
}

// op(i) for each lane.
template <class T, class Vector, class Op>
inline Vector each(Op op) {
    Lanes<T> result;
    for (int i = 0; i < Lanes<T>::count; ++i) result.at[i] = static_cast<T>(op(i));
    return vector<Vector>(result);
}

template <class Op>
inline __m512 floats(__m512 a, __m512 b, Op op) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    return each<float, __m512>([&](int i) { return op(x.at[i], y.at[i]); });
}

template <class T = uint32_t, class Op>
inline __m512i ints(__m512i a, __m512i b, Op op) {
    const auto x = lanes<T>(a), y = lanes<T>(b);
    return each<T, __m512i>([&](int i) { return op(x.at[i], y.at[i]); });
}

template <class Op>
inline __mmask16 mask(Op op) {
    unsigned bits = 0;
    for (int i = 0; i < 16; ++i) bits |= static_cast<unsigned>(op(i)) << i;
    return static_cast<__mmask16>(bits);
}

inline bool has(__mmask16 mask, int i) { return mask >> i & 1; }

inline __m512 loadu_ps(const void* p) { return *static_cast<const __m512_u*>(p); }
inline void storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, 64); }
inline __m512i loadu_si512(const void* p) { return *static_cast<const __m512i_u*>(p); }
inline __m512 set1_ps(float x) { return each<float, __m512>([&](int) { return x; }); }
inline __m512 setzero_ps() { return set1_ps(0.0f); }
inline __m512i set1_epi32(int32_t x) { return each<int32_t, __m512i>([&](int) { return x; }); }
template <class... Ints>
inline __m512i setr_epi32(Ints... values) {
    return vector<__m512i>(Lanes<int32_t>{{values...}});
}
inline __m512 castsi512_ps(__m512i v) { return (__m512)v; }
inline __m512i castps_si512(__m512 v) { return (__m512i)v; }

// ---- float32 ----------------------------------------------------------------------------------

inline __m512 add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 div_ps(__m512 a, __m512 b) { return a / b; }
inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    const auto x = lanes<float>(a), y = lanes<float>(b), z = lanes<float>(c);
    return each<float, __m512>([&](int i) { return std::fma(x.at[i], y.at[i], z.at[i]); });
}
inline __m512 fnmadd_ps(__m512 a, __m512 b, __m512 c) { return fmadd_ps(-a, b, c); }
// The hardware's is within 2^-14.
inline __m512 rcp14_ps(__m512 v) { return set1_ps(1.0f) / v; }
// The second operand where either is no number.
inline __m512 max_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline __m512 min_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float y) { return x < y ? x : y; });
}
inline __m512 scalef_ps(__m512 a, __m512 b) {
    return floats(a, b, [](float x, float n) {
        if (std::isnan(n)) return n;
        return std::ldexp(x, static_cast<int>(std::fmin(std::fmax(std::floor(n), -999), 999)));
    });
}
inline __m512 roundscale_ps(__m512 v, int /* to the nearest */) {
    return floats(v, v, [](float x, float) { return std::nearbyint(x); });
}
inline __m512 cvtph_ps(__m256i halves) {
    uint16_t bits[16];
    std::memcpy(bits, &halves, 32);
    return each<float, __m512>([&](int i) { return _cvtsh_ss(bits[i]); });
}
inline __m512 cvtepi32_ps(__m512i v) {
    const auto x = lanes<int32_t>(v);
    return each<float, __m512>([&](int i) { return static_cast<float>(x.at[i]); });
}
inline __m512i cvtps_epi32(__m512 v) {
    const auto x = lanes<float>(v);
    return each<int32_t, __m512i>([&](int i) { return _mm_cvtss_si32(_mm_set_ss(x.at[i])); });
}

// ---- int32 ------------------------------------------------------------------------------------

inline __m512i and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i or_si512(__m512i a, __m512i b) { return a | b; }
inline __m512i xor_si512(__m512i a, __m512i b) { return a ^ b; }
inline __m512 abs_ps(__m512 v) { return castsi512_ps(castps_si512(v) & set1_epi32(0x7fffffff)); }
inline __m512i add_epi32(__m512i a, __m512i b) {
    return ints(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
inline __m512i sub_epi32(__m512i a, __m512i b) {
    return ints(a, b, [](uint32_t x, uint32_t y) { return x - y; });
}
inline __m512i max_epi32(__m512i a, __m512i b) {
    return ints<int32_t>(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; });
}
inline __m512i srlv_epi32(__m512i a, __m512i b) {
    return ints(a, b, [](uint32_t x, uint32_t n) { return n < 32 ? x >> n : 0; });
}
inline __m512i srli_epi32(__m512i v, uint32_t n) {
    return srlv_epi32(v, set1_epi32(static_cast<int32_t>(n)));
}
inline __m512i slli_epi32(__m512i v, uint32_t n) {
    return ints(v, v, [n](uint32_t x, uint32_t) { return n < 32 ? x << n : 0; });
}
inline __m512i cvtepu16_epi32(__m256i v) {
    uint16_t x[16];
    std::memcpy(x, &v, 32);
    return each<int32_t, __m512i>([&](int i) { return x[i]; });
}
inline __m256i cvtepi32_epi16(__m512i v) {
    const auto x = lanes<uint32_t>(v);
    uint16_t low[16];
    for (int i = 0; i < 16; ++i) low[i] = static_cast<uint16_t>(x.at[i]);
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
}
inline __m128i cvtsepi32_epi8(__m512i v) {
    const auto x = lanes<int32_t>(v);
    int8_t bytes[16];
    for (int i = 0; i < 16; ++i) {
        bytes[i] = static_cast<int8_t>(x.at[i] < -128 ? -128 : x.at[i] > 127 ? 127 : x.at[i]);
    }
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
inline __m512i dpbusd_epi32(__m512i sums, __m512i unsigned_bytes, __m512i signed_bytes) {
    const auto sum = lanes<uint32_t>(sums);
    const auto x = lanes<uint8_t>(unsigned_bytes);
    const auto y = lanes<int8_t>(signed_bytes);
    return each<uint32_t, __m512i>([&](int i) {
        uint32_t total = sum.at[i];
        for (int j = 4 * i; j < 4 * i + 4; ++j) total += static_cast<uint32_t>(x.at[j] * y.at[j]);
        return total;
    });
}

// ---- masks ------------------------------------------------------------------------------------

inline __mmask16 cmp_ps_mask(__m512 a, __m512 b, int predicate) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    return mask([&](int i) {
        const bool unordered = std::isnan(x.at[i]) || std::isnan(y.at[i]);
        switch (predicate) {
            case _CMP_UNORD_Q: return unordered;
            case _CMP_EQ_OQ: return !unordered && x.at[i] == y.at[i];
            case _CMP_NEQ_UQ: return unordered || x.at[i] != y.at[i];
            case _CMP_GE_OQ: return !unordered && x.at[i] >= y.at[i];
            case _CMP_NGE_UQ: return unordered || x.at[i] < y.at[i];
            default: __builtin_trap();
        }
    });
}
inline __mmask16 cmplt_epi32_mask(__m512i a, __m512i b) {
    const auto x = lanes<int32_t>(a), y = lanes<int32_t>(b);
    return mask([&](int i) { return x.at[i] < y.at[i]; });
}
inline __m512 mask_blend_ps(__mmask16 chosen, __m512 a, __m512 b) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    return each<float, __m512>([&](int i) { return has(chosen, i) ? y.at[i] : x.at[i]; });
}
inline __m512i mask_mov_epi32(__m512i a, __mmask16 chosen, __m512i b) {
    return castps_si512(mask_blend_ps(chosen, castsi512_ps(a), castsi512_ps(b)));
}
inline __m512 maskz_mov_ps(__mmask16 kept, __m512 v) {
    return mask_blend_ps(kept, setzero_ps(), v);
}
inline __m512 maskz_compress_ps(__mmask16 kept, __m512 v) {
    const auto x = lanes<float>(v);
    Lanes<float> result{};
    int count = 0;
    for (int i = 0; i < 16; ++i) {
        if (has(kept, i)) result.at[count++] = x.at[i];
    }
    return vector<__m512>(result);
}

// ---- across lanes -----------------------------------------------------------------------------

// Of each 128 bits: neighbours a[first], b[first], a[first + 1], b[first + 1], ...
template <class T>
inline __m512i unpack(__m512i a, __m512i b, int first) {
    constexpr int group = 16 / sizeof(T);
    const auto x = lanes<T>(a), y = lanes<T>(b);
    return each<T, __m512i>([&](int i) {
        const int from = i / group * group + first + i % group / 2;
        return i % 2 == 0 ? x.at[from] : y.at[from];
    });
}
inline __m512i unpacklo_epi32(__m512i a, __m512i b) { return unpack<uint32_t>(a, b, 0); }
inline __m512i unpackhi_epi32(__m512i a, __m512i b) { return unpack<uint32_t>(a, b, 2); }
inline __m512i unpacklo_epi64(__m512i a, __m512i b) { return unpack<uint64_t>(a, b, 0); }
inline __m512i unpackhi_epi64(__m512i a, __m512i b) { return unpack<uint64_t>(a, b, 1); }
inline __m512i shuffle_i32x4(__m512i a, __m512i b, int chosen) {
    const auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b);
    return each<uint32_t, __m512i>([&](int i) {
        const int from = (chosen >> i / 4 * 2 & 3) * 4 + i % 4;
        return i < 8 ? x.at[from] : y.at[from];
    });
}
inline __m256 extractf32x8_ps(__m512 v, int half) {
    const auto x = lanes<float>(v);
    return _mm256_loadu_ps(x.at + 8 * half);
}
inline __m256 castps512_ps256(__m512 v) { return extractf32x8_ps(v, 0); }
inline int32_t reduce_add_epi32(__m512i v) {
    uint32_t total = 0;
    for (const uint32_t x : lanes<uint32_t>(v).at) total += x;
    return static_cast<int32_t>(total);
}
inline int32_t reduce_max_epi32(__m512i v) {
    int32_t most = std::numeric_limits<int32_t>::min();
    for (const int32_t x : lanes<int32_t>(v).at) most = x > most ? x : most;
    return most;
}

// ---- float64 ----------------------------------------------------------------------------------

inline __m512d setzero_pd() { return __m512d{}; }
inline __m512d add_pd(__m512d a, __m512d b) { return a + b; }
inline __m512d cvtps_pd(__m256 v) {
    float x[8];
    _mm256_storeu_ps(x, v);
    return each<double, __m512d>([&](int i) { return x[i]; });
}
// Halves added to each other until one is left, as GCC does.
inline double reduce_add_pd(__m512d v) {
    auto x = lanes<double>(v);
    for (int half = 4; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) x.at[i] += x.at[i + half];
    }
    return x.at[0];
}

}  // namespace emulated

#define _mm512_abs_ps emulated::abs_ps
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_pd emulated::add_pd
#define _mm512_add_ps emulated::add_ps
#define _mm512_and_si512 emulated::and_si512
#define _mm512_castps512_ps256 emulated::castps512_ps256
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#define _mm512_cmplt_epi32_mask emulated::cmplt_epi32_mask
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtps_pd emulated::cvtps_pd
#define _mm512_cvtsepi32_epi8 emulated::cvtsepi32_epi8
#define _mm512_div_ps emulated::div_ps
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_extractf32x8_ps emulated::extractf32x8_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_fnmadd_ps emulated::fnmadd_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_mask_blend_ps emulated::mask_blend_ps
#define _mm512_mask_mov_epi32 emulated::mask_mov_epi32
#define _mm512_maskz_compress_ps emulated::maskz_compress_ps
#define _mm512_maskz_mov_ps emulated::maskz_mov_ps
#define _mm512_max_epi32 emulated::max_epi32
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_or_si512 emulated::or_si512
#define _mm512_rcp14_ps emulated::rcp14_ps
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#define _mm512_reduce_add_pd emulated::reduce_add_pd
#define _mm512_reduce_max_epi32 emulated::reduce_max_epi32
#define _mm512_roundscale_ps emulated::roundscale_ps
#define _mm512_scalef_ps emulated::scalef_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_ps emulated::set1_ps
#undef _mm512_setr_epi32  // a macro of GCC's
#define _mm512_setr_epi32 emulated::setr_epi32
#define _mm512_setzero_pd emulated::setzero_pd
#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_shuffle_i32x4 emulated::shuffle_i32x4
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_srlv_epi32 emulated::srlv_epi32
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_sub_epi32 emulated::sub_epi32
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_unpackhi_epi32 emulated::unpackhi_epi32
#define _mm512_unpackhi_epi64 emulated::unpackhi_epi64
#define _mm512_unpacklo_epi32 emulated::unpacklo_epi32
#define _mm512_unpacklo_epi64 emulated::unpacklo_epi64
#define _mm512_xor_si512 emulated::xor_si512

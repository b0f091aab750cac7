// Vectors of float32 and int32 under one set of names for each instruction set.
//
// A kernel source is compiled once for each instruction set, with HEADRACE_ISA naming it. Kernels
// must not call templates or inline functions of the standard library: the linker keeps one copy
// of those for all instruction sets, which a smaller machine could not run.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifndef HEADRACE_ISA
#error "compile kernel sources with -DHEADRACE_ISA=avx2, avx512 or avx512_bf16"
#endif

namespace headrace::HEADRACE_ISA {

#define HEADRACE_INLINE static inline __attribute__((always_inline))
#define HEADRACE_INLINE_MEMBER inline __attribute__((always_inline))
// Arrays of vectors stay in registers only where their loops are unrolled whole.
#define HEADRACE_UNROLL _Pragma("GCC unroll 16")

HEADRACE_INLINE float bf16_to_float(uint16_t bits) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

HEADRACE_INLINE uint16_t float_to_bf16(float value) {
    uint32_t bits = __builtin_bit_cast(uint32_t, value);
    if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512F__)

using Floats = __m512;
using Ints = __m512i;
constexpr int kWidth = 16;

HEADRACE_INLINE Floats zeros() { return _mm512_setzero_ps(); }
HEADRACE_INLINE Floats broadcast(float x) { return _mm512_set1_ps(x); }
HEADRACE_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
HEADRACE_INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
HEADRACE_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
HEADRACE_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
HEADRACE_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
HEADRACE_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
HEADRACE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// 1 / v for v in [1, 2^126], with a relative error below 2e-7; NaN stays. Half a division's time.
HEADRACE_INLINE Floats reciprocal(Floats v) {
    const Floats near = _mm512_rcp14_ps(v);
    return mul(near, _mm512_fnmadd_ps(near, v, _mm512_set1_ps(2.0f)));
}
// The second operand where either is NaN.
HEADRACE_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
HEADRACE_INLINE Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
HEADRACE_INLINE Floats absolute(Floats v) { return _mm512_abs_ps(v); }
HEADRACE_INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
HEADRACE_INLINE Ints to_ints(Floats v) { return _mm512_cvtps_epi32(v); }
HEADRACE_INLINE Ints broadcast_int(int32_t x) { return _mm512_set1_epi32(x); }
HEADRACE_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
HEADRACE_INLINE Ints bits_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
HEADRACE_INLINE Ints bits_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
template <int N>
HEADRACE_INLINE Ints shift_left(Ints v) { return _mm512_slli_epi32(v, N); }
template <int N>
HEADRACE_INLINE Ints shift_right(Ints v) { return _mm512_srli_epi32(v, N); }
// Lane by lane.
HEADRACE_INLINE Ints shift_right(Ints v, Ints n) { return _mm512_srlv_epi32(v, n); }
HEADRACE_INLINE Floats as_floats(Ints v) { return _mm512_castsi512_ps(v); }
HEADRACE_INLINE Ints as_ints(Floats v) { return _mm512_castps_si512(v); }
HEADRACE_INLINE Floats load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
HEADRACE_INLINE Floats load_bf16(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
#if defined(__AVX512BF16__)
// Subnormal numbers become zero.
HEADRACE_INLINE __m256i round_to_bf16(Floats v) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
HEADRACE_INLINE __m256i round_to_bf16(Floats v) {
    const Ints bits = as_ints(v);
    const Ints odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const Ints bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const Ints rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const Ints quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
}
#endif
// As stored in bfloat16 and read again.
HEADRACE_INLINE Floats through_bf16(Floats v) {
    return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(round_to_bf16(v)), 16));
}
HEADRACE_INLINE void store_bf16(uint16_t* p, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to_bf16(v));
}
// Zero where `a` is zero, else `v`.
HEADRACE_INLINE Floats without_zeros(Floats a, Floats v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, zeros(), _CMP_NEQ_UQ), v);
}
// Keeps lane i where i < count.
HEADRACE_INLINE Floats keep_first(Floats v, int count, float other) {
    const Ints lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 kept = _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(count));
    return _mm512_mask_blend_ps(kept, _mm512_set1_ps(other), v);
}
// Keeps lane i where i >= count.
HEADRACE_INLINE Floats drop_first(Floats v, int count, float other) {
    const Ints lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 dropped = _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(count));
    return _mm512_mask_blend_ps(dropped, v, _mm512_set1_ps(other));
}
HEADRACE_INLINE float reduce_add(Floats v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
HEADRACE_INLINE float reduce_max(Floats v) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
HEADRACE_INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
HEADRACE_INLINE Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
HEADRACE_INLINE int32_t reduce_add_ints(Ints v) { return _mm512_reduce_add_epi32(v); }
HEADRACE_INLINE Ints max_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
HEADRACE_INLINE int32_t reduce_max_ints(Ints v) { return _mm512_reduce_max_epi32(v); }
HEADRACE_INLINE Floats scale_by_power_of_two(Floats v, Floats n) { return _mm512_scalef_ps(v, n); }
HEADRACE_INLINE Floats round_to_integer(Floats v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Packs to signed bytes with saturation: kWidth values.
HEADRACE_INLINE void store_bytes(int8_t* p, Ints v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}
// acc += sum over each group of four bytes of unsigned * signed.
HEADRACE_INLINE Ints dot_unsigned_signed(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
    return _mm512_dpbusd_epi32(acc, unsigned_bytes, signed_bytes);
}
// The same for weights that hold their signed value + 128; the caller takes 128 * sum(signed) off.
HEADRACE_INLINE Ints dot_biased(Ints acc, Ints biased_bytes, Ints signed_bytes) {
    return _mm512_dpbusd_epi32(acc, biased_bytes, signed_bytes);
}
// A sum of 32 products of 4-bit weights with signed bytes above -128: begin, eight dots, end.
HEADRACE_INLINE Ints begin_nibbles(Ints start) { return start; }
HEADRACE_INLINE Ints dot_nibbles(Ints sums, Ints nibbles, Ints signed_bytes) {
    return dot_unsigned_signed(sums, nibbles, signed_bytes);
}
HEADRACE_INLINE Ints end_nibbles(Ints sums, Ints) { return sums; }

#else  // AVX2 and FMA

using Floats = __m256;
using Ints = __m256i;
constexpr int kWidth = 8;

HEADRACE_INLINE Floats zeros() { return _mm256_setzero_ps(); }
HEADRACE_INLINE Floats broadcast(float x) { return _mm256_set1_ps(x); }
HEADRACE_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
HEADRACE_INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
HEADRACE_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
HEADRACE_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
HEADRACE_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
HEADRACE_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
HEADRACE_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
// 1 / v; what approximates it has too few bits to be faster.
HEADRACE_INLINE Floats reciprocal(Floats v) { return div(_mm256_set1_ps(1.0f), v); }
// The second operand where either is NaN.
HEADRACE_INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
HEADRACE_INLINE Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
HEADRACE_INLINE Floats absolute(Floats v) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}
HEADRACE_INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
HEADRACE_INLINE Ints to_ints(Floats v) { return _mm256_cvtps_epi32(v); }
HEADRACE_INLINE Ints broadcast_int(int32_t x) { return _mm256_set1_epi32(x); }
HEADRACE_INLINE Ints load_ints(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
HEADRACE_INLINE Ints bits_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
HEADRACE_INLINE Ints bits_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
template <int N>
HEADRACE_INLINE Ints shift_left(Ints v) { return _mm256_slli_epi32(v, N); }
template <int N>
HEADRACE_INLINE Ints shift_right(Ints v) { return _mm256_srli_epi32(v, N); }
// Lane by lane.
HEADRACE_INLINE Ints shift_right(Ints v, Ints n) { return _mm256_srlv_epi32(v, n); }
HEADRACE_INLINE Floats as_floats(Ints v) { return _mm256_castsi256_ps(v); }
HEADRACE_INLINE Ints as_ints(Floats v) { return _mm256_castps_si256(v); }
HEADRACE_INLINE Floats load_half(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
HEADRACE_INLINE Floats load_bf16(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return as_floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
// In the lower half of each lane.
HEADRACE_INLINE Ints round_to_bf16(Floats v) {
    const Ints bits = as_ints(v);
    const Ints odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const Ints bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const Ints rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    const Ints nan = as_ints(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const Ints quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}
HEADRACE_INLINE void store_bf16(uint16_t* p, Floats v) {
    const Ints rounded = round_to_bf16(v);
    const __m128i low = _mm256_castsi256_si128(rounded);
    const __m128i high = _mm256_extracti128_si256(rounded, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
}
// As stored in bfloat16 and read again.
HEADRACE_INLINE Floats through_bf16(Floats v) { return as_floats(shift_left<16>(round_to_bf16(v))); }
// Zero where `a` is zero, else `v`.
HEADRACE_INLINE Floats without_zeros(Floats a, Floats v) {
    return _mm256_and_ps(_mm256_cmp_ps(a, zeros(), _CMP_NEQ_UQ), v);
}
// Keeps lane i where i < count.
HEADRACE_INLINE Floats keep_first(Floats v, int count, float other) {
    const Ints lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const Ints kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, as_floats(kept));
}
// Keeps lane i where i >= count.
HEADRACE_INLINE Floats drop_first(Floats v, int count, float other) {
    const Ints lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const Ints dropped = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
    return _mm256_blendv_ps(v, _mm256_set1_ps(other), as_floats(dropped));
}
HEADRACE_INLINE float reduce_add(Floats v) {
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
HEADRACE_INLINE float reduce_max(Floats v) {
    const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
HEADRACE_INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
HEADRACE_INLINE Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
HEADRACE_INLINE int32_t reduce_add_ints(Ints v) {
    const __m128i quarter =
        _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
HEADRACE_INLINE Ints max_ints(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
HEADRACE_INLINE int32_t reduce_max_ints(Ints v) {
    const __m128i quarter =
        _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_max_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
// n in [-252, 254]: two factors, since one exponent field does not hold 2^-252.
HEADRACE_INLINE Floats scale_by_power_of_two(Floats v, Floats n) {
    const Ints whole = _mm256_cvtps_epi32(n);
    const Ints first = _mm256_srai_epi32(whole, 1);
    const Ints second = _mm256_sub_epi32(whole, first);
    const Ints bias = _mm256_set1_epi32(127);
    const Floats a = as_floats(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
    const Floats b = as_floats(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(v, a), b);
}
HEADRACE_INLINE Floats round_to_integer(Floats v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Packs to signed bytes with saturation: kWidth values.
HEADRACE_INLINE void store_bytes(int8_t* p, Ints v) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
// acc += sum over each group of four bytes of unsigned * signed; exact for unsigned <= 128.
HEADRACE_INLINE Ints dot_unsigned_signed(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
    const Ints pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// For weights that hold their signed value + 128; nothing is left for the caller to take off.
HEADRACE_INLINE Ints dot_biased(Ints acc, Ints biased_bytes, Ints signed_bytes) {
    const Ints weights = _mm256_xor_si256(biased_bytes, _mm256_set1_epi8(-128));
    return dot_unsigned_signed(acc, _mm256_abs_epi8(weights),
                               _mm256_sign_epi8(signed_bytes, weights));
}
// A sum of 32 products of 4-bit weights with signed bytes above -128: begin, eight dots, end.
// Until its end it is two int16 of 16 products each, which are at most 16 * 15 * 127 < 2^15.
HEADRACE_INLINE Ints begin_nibbles(Ints) { return _mm256_setzero_si256(); }
HEADRACE_INLINE Ints dot_nibbles(Ints sums, Ints nibbles, Ints signed_bytes) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(nibbles, signed_bytes));
    // Here and now: GCC would add up at the end, from products that the registers do not hold.
    asm("" : "+x"(sums));
    return sums;
}
HEADRACE_INLINE Ints end_nibbles(Ints sums, Ints start) {
    return _mm256_add_epi32(start, _mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
}

#endif

// Vectors whose exponentials are computed step by step together: one alone would wait for its own
// results.
constexpr int kJointExponentials = 4;

// e^x of each vector, with a relative error below 2e-7; exactly 1 at 0 and exactly 0 from -140 down;
// NaN stays. `most` bounds x.
template <int N>
HEADRACE_INLINE void exponentials(Floats (&x)[N], float most = 89.0f) {
    Floats n[N], p[N];
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) {
        x[i] = minimum(broadcast(most), maximum(broadcast(-140.0f), x[i]));
        n[i] = round_to_integer(mul(x[i], broadcast(1.44269504088896341f)));
        p[i] = broadcast(1.9875691500e-4f);
    }
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) x[i] = fma(n[i], broadcast(-0.693359375f), x[i]);
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) x[i] = fma(n[i], broadcast(2.12194440e-4f), x[i]);
    constexpr float terms[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                               1.6666665459e-1f, 5.0000001201e-1f};
    HEADRACE_UNROLL for (const float term : terms) {
        HEADRACE_UNROLL for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], broadcast(term));
    }
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) {
        const Floats power = add(fma(p[i], mul(x[i], x[i]), x[i]), broadcast(1.0f));
        x[i] = scale_by_power_of_two(power, n[i]);
    }
}
HEADRACE_INLINE Floats exponential(Floats x) {
    Floats one[1] = {x};
    exponentials(one);
    return one[0];
}

// g * sigmoid(g) * u, as SwiGLU wants it (arXiv:2002.05202), in place of `gate`; the sigmoid as
// e^g / (1 + e^g): exactly 0 where e^g is, however large g may be.
template <int N>
HEADRACE_INLINE void silu_mul(Floats (&gate)[N], const Floats (&up)[N]) {
    Floats power[N];
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) power[i] = gate[i];
    exponentials(power, 87.0f);
    HEADRACE_UNROLL for (int i = 0; i < N; ++i) {
        const Floats sigmoid = mul(power[i], reciprocal(add(broadcast(1.0f), power[i])));
        gate[i] = mul(mul(gate[i], sigmoid), up[i]);
    }
}

// Storage types of activations and caches.
struct Float32 {
    using Storage = float;
    HEADRACE_INLINE Floats load_floats(const float* p) { return load(p); }
    HEADRACE_INLINE void store_floats(float* p, Floats v) { store(p, v); }
    HEADRACE_INLINE Floats rounded(Floats v) { return v; }
    HEADRACE_INLINE float widen(float x) { return x; }
    HEADRACE_INLINE float narrow(float x) { return x; }
};
struct BFloat16 {
    using Storage = uint16_t;
    HEADRACE_INLINE Floats load_floats(const uint16_t* p) { return load_bf16(p); }
    HEADRACE_INLINE void store_floats(uint16_t* p, Floats v) { store_bf16(p, v); }
    HEADRACE_INLINE Floats rounded(Floats v) { return through_bf16(v); }
    HEADRACE_INLINE float widen(uint16_t x) { return bf16_to_float(x); }
    HEADRACE_INLINE uint16_t narrow(float x) { return float_to_bf16(x); }
};

// The first kWidth elements of a row that has `count` left; those past its end are zero.
template <class D>
HEADRACE_INLINE Floats load_first(const typename D::Storage* p, int64_t count) {
    if (count >= kWidth) return D::load_floats(p);
    alignas(64) float values[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = D::widen(p[i]);
    return load(values);
}

// Those of them that the row has room for.
template <class D>
HEADRACE_INLINE void store_first(typename D::Storage* p, Floats v, int64_t count) {
    if (count >= kWidth) return D::store_floats(p, v);
    alignas(64) float values[kWidth];
    store(values, v);
    for (int64_t i = 0; i < count; ++i) p[i] = D::narrow(values[i]);
}

// One 32-bit unit of a dot product: two neighbours of K in bf16, or one in float32.
HEADRACE_INLINE Floats dot_unit(Float32, Floats acc, Ints weights, Ints activations) {
    return fma(as_floats(weights), as_floats(activations), acc);
}
HEADRACE_INLINE Floats dot_unit(BFloat16, Floats acc, Ints weights, Ints activations) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)weights, (__m512bh)activations);
#else
    const Ints high = broadcast_int(static_cast<int32_t>(0xffff0000u));
    acc = fma(as_floats(shift_left<16>(weights)), as_floats(shift_left<16>(activations)), acc);
    return fma(as_floats(bits_and(weights, high)), as_floats(bits_and(activations, high)), acc);
#endif
}

}  // namespace headrace::HEADRACE_ISA

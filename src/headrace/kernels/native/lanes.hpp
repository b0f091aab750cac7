// Some of a vector's lanes, vectors combined lane by lane, and sums of vectors in float64.
#pragma once

#include "vector.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(__AVX512F__)

using Mask = __mmask16;

HEADRACE_INLINE Mask lanes_at_least(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
// True as well where `b` is NaN, which stands for no bound.
HEADRACE_INLINE Mask lanes_below(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_NGE_UQ);
}
HEADRACE_INLINE Mask lanes_equal(Floats a, Floats b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
HEADRACE_INLINE Mask both(Mask a, Mask b) { return a & b; }
HEADRACE_INLINE uint32_t bits_of(Mask mask) { return mask; }
HEADRACE_INLINE Mask mask_of(uint32_t bits) { return static_cast<Mask>(bits); }
HEADRACE_INLINE Floats choose(Mask mask, Floats chosen, Floats other) {
    return _mm512_mask_blend_ps(mask, other, chosen);
}
// Packs the chosen lanes to the front; writes kWidth elements, and returns how many count.
HEADRACE_INLINE int pack_lanes(float* p, Mask mask, Floats v) {
    store(p, _mm512_maskz_compress_ps(mask, v));
    return __builtin_popcount(mask);
}

// The elements of two vectors that `low` puts beside each other, and those that it leaves to `high`.
struct Singles {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
};
struct Doubles {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
};
struct Quads {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }
};

struct WideSum {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    HEADRACE_INLINE_MEMBER void add(Floats v) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }
    HEADRACE_INLINE_MEMBER double total() const {
        return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    }
};

#else

using Mask = __m256;

HEADRACE_INLINE Mask lanes_at_least(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
// True as well where `b` is NaN, which stands for no bound.
HEADRACE_INLINE Mask lanes_below(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_NGE_UQ); }
HEADRACE_INLINE Mask lanes_equal(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
HEADRACE_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
HEADRACE_INLINE uint32_t bits_of(Mask mask) {
    return static_cast<uint32_t>(_mm256_movemask_ps(mask));
}
HEADRACE_INLINE Mask mask_of(uint32_t bits) {
    const Ints lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const Ints set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), lane);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}
HEADRACE_INLINE Floats choose(Mask mask, Floats chosen, Floats other) {
    return _mm256_blendv_ps(other, chosen, mask);
}
// Packs the chosen lanes to the front; writes kWidth elements, and returns how many count.
HEADRACE_INLINE int pack_lanes(float* p, Mask mask, Floats v) {
    alignas(32) float lanes[kWidth], packed[kWidth] = {};
    store(lanes, v);
    int count = 0;
    for (uint32_t bits = bits_of(mask); bits != 0; bits &= bits - 1) {
        packed[count++] = lanes[__builtin_ctz(bits)];
    }
    store(p, load(packed));
    return count;
}

// The elements of two vectors that `low` puts beside each other, and those that it leaves to `high`.
struct Singles {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm256_unpacklo_epi32(a, b); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm256_unpackhi_epi32(a, b); }
};
struct Doubles {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm256_unpacklo_epi64(a, b); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm256_unpackhi_epi64(a, b); }
};
struct Quads {
    HEADRACE_INLINE Ints low(Ints a, Ints b) { return _mm256_permute2x128_si256(a, b, 0x20); }
    HEADRACE_INLINE Ints high(Ints a, Ints b) { return _mm256_permute2x128_si256(a, b, 0x31); }
};

struct WideSum {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    HEADRACE_INLINE_MEMBER void add(Floats v) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
    }
    HEADRACE_INLINE_MEMBER double total() const {
        const __m256d all = _mm256_add_pd(low, high);
        const __m128d pair =
            _mm_add_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd(all, 1));
        return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    }
};

#endif

// Half as many vectors, whose lanes each combine two of one of `v`.
template <class Parts, int N, class Combine>
HEADRACE_INLINE void halve(const Ints (&v)[N], const Combine& combine, Ints (&halves)[N / 2]) {
    HEADRACE_UNROLL for (int i = 0; i < N / 2; ++i) {
        halves[i] = combine(Parts::low(v[2 * i], v[2 * i + 1]), Parts::high(v[2 * i], v[2 * i + 1]));
    }
}

// Lane i: all lanes of v[i] combined, in an order that is the same for every i.
template <class Combine>
HEADRACE_INLINE Ints combine_each(const Ints (&v)[kWidth], const Combine& combine) {
    Ints pairs[kWidth / 2], quads[kWidth / 4], octets[kWidth / 8];
    halve<Singles>(v, combine, pairs);
    halve<Doubles>(pairs, combine, quads);
    halve<Quads>(quads, combine, octets);
    if constexpr (kWidth == 8) {
        return octets[0];
    } else {
        return combine(Quads::low(octets[0], octets[1]), Quads::high(octets[0], octets[1]));
    }
}

HEADRACE_INLINE float reduce_min(Floats v) { return -reduce_max(sub(zeros(), v)); }

}  // namespace headrace::HEADRACE_ISA

// AVX-512 with the bf16 dot product: 16 lanes, 32 registers.
#pragma once

#include <immintrin.h>

namespace simd {

constexpr int kLanes = 16;
constexpr bool kSplitsPairs = false;  // dot2 is one instruction
#if defined(ML_TILES)
constexpr int kGemmRows = 32;      // two tile registers
constexpr int kQueryVectors = 32;
#else
constexpr int kGemmRows = 12;     // rows of a GEMM tile: 12 x 2 accumulators, 2 weights, 1 input
constexpr int kQueryVectors = 12; // query vectors of an attention tile, the same budget
#endif
constexpr int kShrinkRows = 6;    // rows of a shrink tile: 6 x 4 accumulators, 4 weights, 1 input

using Float = __m512;
using Pairs = __m512i;

ML_INLINE Float zero() { return _mm512_setzero_ps(); }
ML_INLINE Float splat(float x) { return _mm512_set1_ps(x); }
ML_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
ML_INLINE void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
ML_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
ML_INLINE Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
ML_INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
ML_INLINE Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
ML_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
ML_INLINE void fma_onto(Float& acc, Float a, Float b) { acc = fma(a, b, acc); }
ML_INLINE Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
ML_INLINE Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
ML_INLINE Float round_even(Float v) { return _mm512_roundscale_ps(v, 0); }
ML_INLINE Float scale_by_power(Float v, Float n) { return _mm512_scalef_ps(v, n); }  // v * 2^n
ML_INLINE float sum(Float v) { return _mm512_reduce_add_ps(v); }
ML_INLINE float max_lane(Float v) { return _mm512_reduce_max_ps(v); }

ML_INLINE Float zero_where_less(Float v, Float x, float bound) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(bound), _CMP_NLT_UQ), v);
}

// Lane i holds item first + i; items outside [low, high) become -inf.
ML_INLINE Float keep_range(Float v, int first, int low, int high) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i item = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
  const __mmask16 inside = _mm512_cmpge_epi32_mask(item, _mm512_set1_epi32(low)) &
                           _mm512_cmplt_epi32_mask(item, _mm512_set1_epi32(high));
  return _mm512_mask_mov_ps(splat(-INFINITY), inside, v);
}

// Lanes whose bit of the 16 is 0 become -inf.
ML_INLINE Float keep_bits(Float v, uint32_t bits) {
  return _mm512_mask_mov_ps(splat(-INFINITY), static_cast<__mmask16>(bits), v);
}

// Writes the lanes of v whose keys lie in [low, high] to out, which has room for all; returns how many.
ML_INLINE int keep_between(Float v, Float key, float low, float high, float* out) {
  const __mmask16 inside = _mm512_cmp_ps_mask(key, splat(low), _CMP_GE_OQ) & _mm512_cmp_ps_mask(key, splat(high), _CMP_LE_OQ);
  store(out, _mm512_maskz_compress_ps(inside, v));
  return __builtin_popcount(inside);
}

ML_INLINE Float load_bf16(const bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

ML_INLINE void store_bf16(bf16* p, Float v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

ML_INLINE Float round_bf16(Float v) {
  const __m256i raw = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

ML_INLINE Pairs load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
ML_INLINE void store_pairs(bf16* p, Pairs v) { _mm512_storeu_si512(p, v); }

ML_INLINE Float low_half(Pairs w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
ML_INLINE Float high_half(Pairs w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-65536))); }

// Items 0 .. 31 in a and b, to the even and the odd ones, and back.
ML_INLINE void split_even_odd(Float a, Float b, Float* even, Float* odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *even = _mm512_permutex2var_ps(a, evens, b);
  *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b);
}

ML_INLINE void join_even_odd(Float even, Float odd, Float* a, Float* b) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *a = _mm512_permutex2var_ps(even, first, odd);
  *b = _mm512_permutex2var_ps(even, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd);
}

ML_INLINE Pairs splat_pair(const bf16* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return _mm512_set1_epi32(pair);
}

// Lane i holds item i of both: as the weights of two inputs that dot2 takes.
ML_INLINE Pairs join_pairs(const bf16* first, const bf16* second) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// The same for items 2 i, and 2 i + 1, of two vectors that hold two adjacent ones in a lane.
ML_INLINE Pairs join_even(Pairs first, Pairs second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16));
}
ML_INLINE Pairs join_odd(Pairs first, Pairs second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
}

// Pairs k, k + 2, ... k + 30 of 16 rows: out[i][r] is pair i of row r.
ML_INLINE void transpose_pairs(const bf16* const (&rows)[16], int64_t k, bf16* out) {
  Pairs a[16];
  Pairs b[16];
  ML_UNROLL
  for (int r = 0; r < 16; r++) a[r] = load_pairs(rows[r] + k);
  ML_UNROLL
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  ML_UNROLL
  for (int r = 0; r < 16; r += 4) {  // a[r + i]: of rows r to r + 3, pairs i, i + 4, i + 8, i + 12
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  ML_UNROLL
  for (int i = 0; i < 4; i++) {
    const Pairs low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);  // pairs i and i + 8
    const Pairs high = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    const Pairs odd_low = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);  // pairs i + 4 and i + 12
    const Pairs odd_high = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    store_pairs(out + 32 * i, _mm512_shuffle_i32x4(low, high, 0x88));
    store_pairs(out + 32 * (i + 8), _mm512_shuffle_i32x4(low, high, 0xdd));
    store_pairs(out + 32 * (i + 4), _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    store_pairs(out + 32 * (i + 12), _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

// acc + w[0] x[0] + w[1] x[1] in every lane
ML_INLINE Float dot2(Float acc, Pairs w, Pairs x) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

// The four vectors' sums, each by the same tree whatever the other three hold, times a factor.
ML_INLINE void sum4(Float a, Float b, Float c, Float d, float factor, bf16* out) {
  const Float ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const Float cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const Float quad = add(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quad), _mm512_extractf32x8_ps(quad, 1));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128bh rounded = _mm_cvtneps_pbh(_mm_mul_ps(sums, _mm_set1_ps(factor)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), reinterpret_cast<__m128i>(rounded));
}

}  // namespace simd

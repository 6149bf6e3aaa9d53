// Vector operations of unpacking alone, in the vocabulary of simd.h.
#pragma once

#include "simd.h"

namespace simd {

#if defined(__AVX512BF16__) && defined(__AVX512VL__)

using Table = __m512;

ML_INLINE Table load_table(const float* values) { return _mm512_loadu_ps(values); }

// What the low, and the high, four bits of kLanes bytes stand for.
ML_INLINE void lookup(Table table, const uint8_t* codes, Float* low, Float* high) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  *low = _mm512_permutexvar_ps(wide, table);  // looks at four bits
  *high = _mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), table);
}

ML_INLINE Float from_bytes(const int8_t* codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

// Items 0, 0, 1, 1, ..: as many as a vector has lanes.
ML_INLINE Float load_twice(const float* values) {
  const __m512i lane = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(lane, _mm512_castps256_ps512(_mm256_loadu_ps(values)));
}

// first to p[0 ..], second to p[16 ..], kLanes of each.
ML_INLINE void store_halves(bf16* p, Float first, Float second) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

#else

#if defined(__AVX2__)

struct Table {
  __m256 low;   // of codes 0 .. 7
  __m256 high;  // of codes 8 .. 15
};

ML_INLINE Table load_table(const float* values) { return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)}; }

ML_INLINE Float lookup(const Table& table, __m256i codes) {  // in four bits of a lane
  const __m256 low = _mm256_permutevar8x32_ps(table.low, codes);  // looks at three bits
  const __m256 high = _mm256_permutevar8x32_ps(table.high, codes);
  return reinterpret_cast<Float>(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28))));
}

ML_INLINE void lookup(const Table& table, const uint8_t* codes, Float* low, Float* high) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  *low = lookup(table, wide);
  *high = lookup(table, _mm256_srli_epi32(wide, 4));
}

// The upper halves of two vectors, rounded to nearest and even. Weights are numbers: NaN may change its sign.
ML_INLINE void store_halves(bf16* p, Float first, Float second) {
  const auto rounded = [](Float v) {
    const __m256i bits = reinterpret_cast<__m256i>(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
  };
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(first), rounded(second)), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(both));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm256_extracti128_si256(both, 1));
}

ML_INLINE Float from_bytes(const int8_t* codes) {
  const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return reinterpret_cast<Float>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)));
}

#else

using Table = const float*;

ML_INLINE Table load_table(const float* values) { return values; }

ML_INLINE void lookup(Table table, const uint8_t* codes, Float* low, Float* high) {
  for (int i = 0; i < kLanes; i++) {
    (*low)[i] = table[codes[i] & 15];
    (*high)[i] = table[codes[i] >> 4];
  }
}

ML_INLINE Float from_bytes(const int8_t* codes) {
  Float v{};
  for (int i = 0; i < kLanes; i++) v[i] = static_cast<float>(codes[i]);
  return v;
}

ML_INLINE void store_halves(bf16* p, Float first, Float second) {
  store_bf16(p, first);
  store_bf16(p + 16, second);
}

#endif

ML_INLINE Float load_twice(const float* values) {
  return Float{values[0], values[0], values[1], values[1], values[2], values[2], values[3], values[3]};
}

#endif

}  // namespace simd

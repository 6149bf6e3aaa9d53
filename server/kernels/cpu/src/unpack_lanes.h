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

// Byte p of each of the table's sixteen values, twice.
struct Table {
  __m256i plane[4];
};

ML_INLINE Table load_table(const float* values) {
  const __m128i by_plane = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m128i four[4];  // values, as 4 bytes of each plane
  ML_UNROLL
  for (int i = 0; i < 4; i++) {
    four[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + 4 * i)), by_plane);
  }
  const __m128i low01 = _mm_unpacklo_epi32(four[0], four[1]), low23 = _mm_unpacklo_epi32(four[2], four[3]);
  const __m128i high01 = _mm_unpackhi_epi32(four[0], four[1]), high23 = _mm_unpackhi_epi32(four[2], four[3]);
  return {{_mm256_broadcastsi128_si256(_mm_unpacklo_epi64(low01, low23)),
           _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(low01, low23)),
           _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(high01, high23)),
           _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(high01, high23))}};
}

// What the codes of one input of a step stand for, 32 outputs in order.
ML_INLINE void lookup(const Table& table, const uint8_t* step, int input, Float (&value)[4]) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step));
  const __m256i codes = _mm256_and_si256(input == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
  __m256i byte[4];
  ML_UNROLL
  for (int p = 0; p < 4; p++) byte[p] = _mm256_shuffle_epi8(table.plane[p], codes);
  const __m256i low_half = _mm256_unpacklo_epi8(byte[0], byte[1]), low_half_high = _mm256_unpacklo_epi8(byte[2], byte[3]);
  const __m256i high_half = _mm256_unpackhi_epi8(byte[0], byte[1]), high_half_high = _mm256_unpackhi_epi8(byte[2], byte[3]);
  value[0] = reinterpret_cast<Float>(_mm256_unpacklo_epi16(low_half, low_half_high));
  value[1] = reinterpret_cast<Float>(_mm256_unpackhi_epi16(low_half, low_half_high));
  value[2] = reinterpret_cast<Float>(_mm256_unpacklo_epi16(high_half, high_half_high));
  value[3] = reinterpret_cast<Float>(_mm256_unpackhi_epi16(high_half, high_half_high));
}

ML_INLINE Float from_bytes(const int8_t* codes) {
  const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return reinterpret_cast<Float>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)));
}

#else

using Table = const float*;

ML_INLINE Table load_table(const float* values) { return values; }

ML_INLINE void lookup(Table table, const uint8_t* step, int input, Float (&value)[4]) {
  for (int v = 0; v < 4; v++) {
    for (int i = 0; i < kLanes; i++) {
      const int both = step[i / 4 * 16 + 4 * v + i % 4];
      value[v][i] = table[input == 0 ? both & 15 : both >> 4];
    }
  }
}

ML_INLINE Float from_bytes(const int8_t* codes) {
  Float v{};
  for (int i = 0; i < kLanes; i++) v[i] = static_cast<float>(codes[i]);
  return v;
}

#endif

// The weights of two inputs, rounded to nearest and even, as the pairs that dot2 takes. Not for NaN.
ML_INLINE Pairs round_pairs(Float first, Float second) {
  const auto rounded = [](Float v) {
    const Pairs bits = reinterpret_cast<Pairs>(v);
    return bits + ((bits >> 16) & 1) + 0x7fff;
  };
  return (rounded(first) >> 16) | (rounded(second) & kHighHalves);
}

// v rounded to bf16's eight bits, where it is 0 or far from the smallest and the largest numbers: Veltkamp's way to
// split a number, which finds the nearest one, and of two the even one. In this order -0 keeps its sign.
ML_INLINE Float round_moderate(Float v) {
  const Float much = mul(v, splat(65537.0f));
  return sub(much, sub(much, v));
}

ML_INLINE Pairs round_moderate_pairs(Float first, Float second) {
  return (reinterpret_cast<Pairs>(round_moderate(first)) >> 16) | reinterpret_cast<Pairs>(round_moderate(second));
}

ML_INLINE Float load_twice(const float* values) {
  return Float{values[0], values[0], values[1], values[1], values[2], values[2], values[3], values[3]};
}

#endif

}  // namespace simd

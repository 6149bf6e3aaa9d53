// Eight lanes in the compiler's own vector types: AVX2 + FMA where the build allows it, and whatever the
// compiler makes of it elsewhere. bf16 is widened to fp32 by shifting.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace simd {

constexpr int kLanes = 8;
constexpr bool kSplitsPairs = true;  // dot2 is two fma
#if defined(ML_TILES)
constexpr int kGemmRows = 32;      // two tile registers
constexpr int kQueryVectors = 32;
#else
#if defined(__AVX2__)
constexpr int kGemmRows = 6;       // 6 x 2 accumulators, half of 2 weights, half of an input, a mask
#else
constexpr int kGemmRows = 4;
#endif
constexpr int kQueryVectors = 4;
#endif
constexpr int kShrinkRows = 2;   // 2 x 4 accumulators, 2 widened weights, 2 x 2 widened inputs

typedef float Float __attribute__((vector_size(32)));
typedef uint32_t Pairs __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));

ML_INLINE Float zero() { return Float{}; }
ML_INLINE Float splat(float x) { return Float{x, x, x, x, x, x, x, x}; }

ML_INLINE Float load(const float* p) {
  Float v;
  memcpy(&v, p, sizeof v);
  return v;
}

ML_INLINE void store(float* p, Float v) { memcpy(p, &v, sizeof v); }
ML_INLINE Float add(Float a, Float b) { return a + b; }
ML_INLINE Float sub(Float a, Float b) { return a - b; }
ML_INLINE Float mul(Float a, Float b) { return a * b; }
ML_INLINE Float div(Float a, Float b) { return a / b; }
ML_INLINE Float select(Ints mask, Float yes, Float no) {
  return reinterpret_cast<Float>((mask & reinterpret_cast<Ints>(yes)) | (~mask & reinterpret_cast<Ints>(no)));
}
ML_INLINE Float max(Float a, Float b) { return select(a > b, a, b); }
ML_INLINE Float min(Float a, Float b) { return select(a < b, a, b); }

ML_INLINE Float fma(Float a, Float b, Float c) {
#if defined(__FMA__)
  return reinterpret_cast<Float>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;  // the build turns contraction off, so this is the same everywhere in one library
#endif
}

// acc = fma(a, b, acc), where registers are short: left to itself GCC moves sums about, and keeps some in memory.
ML_INLINE void fma_onto(Float& acc, Float a, Float b) {
#if defined(__AVX2__) && defined(__FMA__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
  acc = fma(a, b, acc);
#endif
}

// Valid for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
ML_INLINE Float round_even(Float v) {
  const Float magic = splat(12582912.0f);
  return (v + magic) - magic;
}

ML_INLINE Float scale_by_power(Float v, Float n) {  // n an integer in [-126, 127]
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return v * reinterpret_cast<Float>(exponent);
}

ML_INLINE float sum(Float v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

ML_INLINE float max_lane(Float v) {
  float best = v[0];
  for (int i = 1; i < kLanes; i++) best = v[i] > best ? v[i] : best;
  return best;
}

ML_INLINE Float zero_where_less(Float v, Float x, float bound) {
  return select(x < splat(bound), zero(), v);
}

ML_INLINE Float keep_range(Float v, int first, int low, int high) {
  const Ints item = Ints{0, 1, 2, 3, 4, 5, 6, 7} + first;
  return select((item >= low) & (item < high), v, splat(-INFINITY));
}

ML_INLINE Float keep_bits(Float v, uint32_t bits) {
  const Ints lane = Ints{1, 2, 4, 8, 16, 32, 64, 128};
  const int32_t all = static_cast<int32_t>(bits & 0xffu);
  return select((lane & all) == lane, v, splat(-INFINITY));
}

ML_INLINE int keep_between(Float v, Float key, float low, float high, float* out) {
  int kept = 0;
  for (int i = 0; i < kLanes; i++) {
    out[kept] = v[i];
    kept += key[i] >= low && key[i] <= high;
  }
  return kept;
}

ML_INLINE Float low_half(Pairs w) { return reinterpret_cast<Float>(w << 16); }
constexpr Pairs kHighHalves = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                               0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};

ML_INLINE Float high_half(Pairs w) {
#if defined(__AVX2__)
  asm("vpand %1, %0, %0" : "+x"(w) : "m"(kHighHalves));  // from memory: there is no register to spare
  return reinterpret_cast<Float>(w);
#else
  return reinterpret_cast<Float>(w & kHighHalves);
#endif
}

ML_INLINE Float load_bf16(const bf16* p) {
#if defined(__AVX2__)
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<Float>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#else
  typedef uint16_t Halves __attribute__((vector_size(16)));
  Halves raw;
  memcpy(&raw, p, sizeof raw);
  return reinterpret_cast<Float>(__builtin_convertvector(raw, Pairs) << 16);
#endif
}

ML_INLINE void store_bf16(bf16* p, Float v) {
  const Pairs bits = reinterpret_cast<Pairs>(v);
  const Pairs rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Pairs quiet = (bits >> 16) | 0x40;
  const Pairs is_nan = reinterpret_cast<Pairs>(v != v);
  const Pairs result = (is_nan & quiet) | (~is_nan & rounded);
#if defined(__AVX2__)
  const __m256i wide = reinterpret_cast<__m256i>(result);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#else
  for (int i = 0; i < kLanes; i++) p[i] = static_cast<bf16>(result[i]);
#endif
}

ML_INLINE Float round_bf16(Float v) {
  const Pairs bits = reinterpret_cast<Pairs>(v);
  const Pairs rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return select(v != v, v, reinterpret_cast<Float>(rounded));
}

ML_INLINE Pairs load_pairs(const bf16* p) {
  Pairs v;
  memcpy(&v, p, sizeof v);
  return v;
}

ML_INLINE void store_pairs(bf16* p, Pairs v) { memcpy(p, &v, sizeof v); }

ML_INLINE Pairs splat_pair(const bf16* p) {
  uint32_t pair;
  memcpy(&pair, p, sizeof pair);
#if defined(__AVX2__)
  __m256i all = _mm256_set1_epi32(static_cast<int>(pair));
  asm("" : "+x"(all));  // GCC would take the pair apart before it is in a vector
  return reinterpret_cast<Pairs>(all);
#else
  return Pairs{pair, pair, pair, pair, pair, pair, pair, pair};
#endif
}

// Lane i holds item i of both: as the weights of two inputs that dot2 takes.
ML_INLINE Pairs join_pairs(const bf16* first, const bf16* second) {
  return (reinterpret_cast<Pairs>(load_bf16(first)) >> 16) | reinterpret_cast<Pairs>(load_bf16(second));
}

// The same for items 2 i, and 2 i + 1, of two vectors that hold two adjacent ones in a lane.
ML_INLINE Pairs join_even(Pairs first, Pairs second) { return (first & 0xffffu) | (second << 16); }
ML_INLINE Pairs join_odd(Pairs first, Pairs second) { return (first >> 16) | (second & 0xffff0000u); }

ML_INLINE void split_even_odd(Float a, Float b, Float* even, Float* odd) {
  *even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  *odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}

ML_INLINE void join_even_odd(Float even, Float odd, Float* a, Float* b) {
  *a = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
  *b = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
}

ML_INLINE void transpose_pairs(const bf16* const (&rows)[16], int64_t k, bf16* out) {
  for (int i = 0; i < 16; i++) {
    for (int r = 0; r < 16; r++) memcpy(out + 32 * i + 2 * r, rows[r] + k + 2 * i, 2 * sizeof(bf16));
  }
}

ML_INLINE Float dot2(Float acc, Pairs w, Pairs x) {
  return fma(high_half(w), high_half(x), fma(low_half(w), low_half(x), acc));
}

// The four vectors' sums times a factor.
ML_INLINE void sum4(Float a, Float b, Float c, Float d, float factor, bf16* out) {
  out[0] = to_bf16(sum(a) * factor);
  out[1] = to_bf16(sum(b) * factor);
  out[2] = to_bf16(sum(c) * factor);
  out[3] = to_bf16(sum(d) * factor);
}

}  // namespace simd

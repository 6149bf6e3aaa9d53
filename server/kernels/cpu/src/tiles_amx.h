// The tile instructions. Written as assembly: the compiler's own functions (GCC 12) do not say that they read
// memory, and stores to what they read may then be moved or left out.
#pragma once

#include <immintrin.h>

namespace tiles {

inline void load_config(const Config& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }

inline void release() { asm volatile("tilerelease"); }

template <int T>
ML_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

template <int T>
ML_INLINE void load(const void* data, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(data), "r"(stride) : "memory");
}

template <int T>
ML_INLINE void store(void* data, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(data), "r"(stride) : "memory");
}

template <int C, int A, int B>
ML_INLINE void dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// Vectors read and write denormal numbers as zeros, as tiles do, while this lives.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { set(before_ | 0x8040); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
  ~FlushDenormals() { set(before_); }

 private:
  static void set(unsigned value) {
    asm volatile("" : : : "memory");  // nothing may be moved across
    _mm_setcsr(value);
    asm volatile("" : : : "memory");
  }

  unsigned before_;
};

// Steps of the chains that a tile product sums, in vectors: only under FlushDenormals.
ML_INLINE simd::Float fma(simd::Float a, simd::Float b, simd::Float c) { return simd::fma(a, b, c); }
ML_INLINE simd::Float add(simd::Float a, simd::Float b) { return simd::add(a, b); }

}  // namespace tiles

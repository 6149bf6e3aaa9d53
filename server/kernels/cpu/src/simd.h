// One vocabulary of vector operations for all kernels, chosen at compile time.
//
// Every instruction set defines the same names: Float (kLanes fp32 lanes), Pairs (kLanes lanes of two
// adjacent bf16) and the operations on them. Multiply and add are fused only where the code says fma:
// the build turns automatic contraction off, so that a kernel's instances for different tile heights
// compute bit-identical rows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define ML_INLINE inline __attribute__((always_inline))
#define ML_UNROLL _Pragma("GCC unroll 16")

#if defined(ML_AMX) || defined(ML_AMX_EMULATED)
#define ML_TILES  // products of many rows are computed in tile registers (tiles.h)
#endif

using bf16 = uint16_t;

ML_INLINE float to_float(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

ML_INLINE bf16 to_bf16(float value) {  // nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#include "simd_avx512.h"
#else
#define ML_INPUTS_APART  // weights in few bits lie, and are multiplied, one input after the other (codes_apart.h)
#include "simd_generic.h"
#endif

namespace simd {

constexpr float kLowest = -1e30f;  // below every score, yet finite: differences of it stay defined

// exp(x) to 2 ulp; exactly 0 below -87, so that a masked score (-inf) weighs nothing.
ML_INLINE Float exp(Float x) {
  const Float bounded = max(splat(-87.0f), min(splat(88.0f), x));  // this order lets NaN through
  const Float power = round_even(mul(bounded, splat(1.44269504f)));
  Float rest = fma(power, splat(-0.693359375f), bounded);          // ln 2 in two parts: the first product is exact
  rest = fma(power, splat(2.12194440e-4f), rest);
  Float value = splat(8.290314723e-03f);  // minimax fit of e^rest for |rest| <= ln 2 / 2, exact at 0
  value = fma(value, rest, splat(4.189793005e-02f));
  value = fma(value, rest, splat(1.666763620e-01f));
  value = fma(value, rest, splat(4.999914952e-01f));
  value = fma(value, rest, splat(9.999997072e-01f));
  value = fma(value, rest, splat(1.0f));
  return zero_where_less(scale_by_power(value, power), x, -87.0f);
}

ML_INLINE Float silu_mul(Float gate, Float up) {
  const Float denominator = add(splat(1.0f), exp(sub(zero(), gate)));
  return mul(div(gate, denominator), up);
}

// gate / (1 + exp(-2 u)), u = sqrt(2 / pi) (gate + 0.044715 gate^3): GELU in its form with tanh, without cancellation.
ML_INLINE Float gelu_mul(Float gate, Float up) {
  const Float square = mul(gate, gate);
  const Float twice_u = mul(gate, fma(square, splat(0.0713548163f), splat(1.59576912f)));
  const Float denominator = add(splat(1.0f), exp(sub(zero(), twice_u)));
  return mul(div(gate, denominator), up);
}

// cap * tanh(x / cap)
ML_INLINE Float bound_softly(Float x, float cap) {
  const Float power = exp(mul(x, splat(2.0f / cap)));
  const Float rest = div(splat(2.0f), add(power, splat(1.0f)));  // 1 - tanh
  return mul(sub(splat(1.0f), rest), splat(cap));
}

ML_INLINE float min_lane(Float v) { return -max_lane(sub(zero(), v)); }

ML_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace simd

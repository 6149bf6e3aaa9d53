// The order in which a tile product sums, of which plain C++ can compute every bit.
//
// For every 32 inputs a tile product adds c + (even chain + odd chain) to an output c: each chain is sixteen fused
// multiply-adds in ascending order that start from 0, of the inputs with even and with odd numbers. All of it in
// fp32, rounded to nearest even, with denormal numbers read and written as zeros of their sign. (Intel 64 and IA-32
// Architectures Software Developer's Manual, TDPBF16PS.) Zeros behind the last input change nothing, so a
// shorter chain is the same as a padded one.
#pragma once

#include <cmath>

#include "simd.h"

namespace tile_order {

constexpr int64_t kPairs = 16;       // of inputs that one tile product sums
constexpr int64_t kInputs = 2 * kPairs;

ML_INLINE float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// x rounded to fp32; what lies below the normal numbers after rounding becomes zero.
ML_INLINE float round_flushed(double x) {
  return std::fabs(x) < 0x1p-126 - 0x1p-151 ? static_cast<float>(std::copysign(0.0, x)) : static_cast<float>(x);
}

// a b + c, rounded once: the product of two bf16 is exact in a double, and a double is wide enough for the sum to
// be rounded twice with the same result.
ML_INLINE float fma(float a, float b, float c) {
  return round_flushed(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}

ML_INLINE float add(float a, float b) { return round_flushed(static_cast<double>(a) + static_cast<double>(b)); }

}  // namespace tile_order

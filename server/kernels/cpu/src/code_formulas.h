// What codes stand for, in fp32 and operation by operation (abi.h): of vectors of them, with the scales of their outputs.
#pragma once

#include "abi.h"
#include "simd.h"

// 4 bits: of what the table has for the code.
namespace nibbles {

using simd::Float;

struct Scaled {
  ML_INLINE static Float of(Float value, Float scale, Float) { return simd::mul(value, scale); }
};

struct Shifted {
  ML_INLINE static Float of(Float value, Float scale, Float offset) { return simd::mul(simd::sub(value, offset), scale); }
};

struct Added {
  ML_INLINE static Float of(Float value, Float scale, Float offset) { return simd::add(simd::mul(value, scale), offset); }
};

}  // namespace nibbles

// 8 bits with a sign; `last` is the factor of all of them, or the output's offset.
namespace bytes {

using simd::Float;

struct Scaled {
  ML_INLINE static Float of(Float code, Float scale, Float last) { return simd::mul(simd::mul(code, scale), last); }
};

struct Added {
  ML_INLINE static Float of(Float code, Float scale, Float last) { return simd::add(simd::mul(code, scale), last); }
};

}  // namespace bytes

// Calls use with the formula of a kind in 4 bits, or in 8.
template <class Use>
ML_INLINE void with_nibble_formula(int32_t kind, Use use) {
  switch (kind) {
    case kShifted: return use(nibbles::Shifted{});
    case kAdded: return use(nibbles::Added{});
    default: return use(nibbles::Scaled{});
  }
}

template <class Use>
ML_INLINE void with_byte_formula(int32_t kind, Use use) {
  if (kind == kAddedBytes) return use(bytes::Added{});
  return use(bytes::Scaled{});
}

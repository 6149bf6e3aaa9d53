// What becomes of a matrix product's outputs.
#pragma once

#include <cstdint>

#include "simd.h"

enum class Sink {
  kBf16,      // data: bf16[rows][stride], output n in column n
  kFloat,     // data: float[rows][stride]
  kAddFloat,  // the same, added to what is there (the residual stream) times `scale`
  kSiluMul,   // data: bf16[rows][stride], SiLU(gate) * up of blocks of 16 gate and 16 up outputs
  kGeluMul,   // the same with GELU, by its approximation with tanh
  kLogits,    // as kFloat, times `scale` and bounded by `cap`
};

struct Output {
  Sink sink;
  void* data;
  int64_t stride;
  float scale = 1;
  float cap = 0;  // 0: not bounded

  bool is_product() const { return sink == Sink::kSiluMul || sink == Sink::kGeluMul; }

  // Outputs column .. column + 15 of a row. Not for products.
  ML_INLINE void write(int64_t row, int64_t column, const float* values) const {
    for (int i = 0; i < 16; i += simd::kLanes) {
      const simd::Float v = simd::load(values + i);
      float* y = static_cast<float*>(data) + row * stride + column + i;
      if (sink == Sink::kBf16) {
        simd::store_bf16(static_cast<bf16*>(data) + row * stride + column + i, v);
      } else {
        simd::store(y, final(v, y));
      }
    }
  }

  // The product's columns 16 block .. 16 block + 15.
  ML_INLINE void write_product(int64_t row, int64_t block, const float* gate, const float* up) const {
    bf16* y = static_cast<bf16*>(data) + row * stride + block * 16;
    for (int i = 0; i < 16; i += simd::kLanes) {
      const simd::Float a = simd::load(gate + i);
      const simd::Float b = simd::load(up + i);
      simd::store_bf16(y + i, sink == Sink::kSiluMul ? simd::silu_mul(a, b) : simd::gelu_mul(a, b));
    }
  }

 private:
  ML_INLINE simd::Float final(simd::Float v, const float* there) const {
    if (sink == Sink::kFloat) return v;
    v = simd::mul(v, simd::splat(scale));
    if (sink == Sink::kAddFloat) return simd::add(simd::load(there), v);
    return cap > 0 ? simd::bound_softly(v, cap) : v;
  }
};

// What becomes of a matrix product's outputs.
#pragma once

#include <cstdint>

#include "simd.h"

enum class Sink {
  kBf16,      // data: bf16[rows][stride], output n in column n
  kFloat,     // data: float[rows][stride]
  kAddFloat,  // the same, added to what is there (the residual stream)
  kSiluMul,   // data: bf16[rows][stride], SiLU(gate) * up of blocks of 16 gate and 16 up outputs
};

struct Output {
  Sink sink;
  void* data;
  int64_t stride;

  // Outputs column .. column + 15 of a row. Not for kSiluMul.
  ML_INLINE void write(int64_t row, int64_t column, const float* values) const {
    for (int i = 0; i < 16; i += simd::kLanes) {
      const simd::Float v = simd::load(values + i);
      float* y = static_cast<float*>(data) + row * stride + column + i;
      if (sink == Sink::kBf16) {
        simd::store_bf16(static_cast<bf16*>(data) + row * stride + column + i, v);
      } else {
        simd::store(y, sink == Sink::kAddFloat ? simd::add(simd::load(y), v) : v);
      }
    }
  }

  // The product's columns 16 block .. 16 block + 15.
  ML_INLINE void write_product(int64_t row, int64_t block, const float* gate, const float* up) const {
    bf16* y = static_cast<bf16*>(data) + row * stride + block * 16;
    for (int i = 0; i < 16; i += simd::kLanes) simd::store_bf16(y + i, simd::silu_mul(simd::load(gate + i), simd::load(up + i)));
  }
};

// B t of a tile's rows in vector registers, with the bf16 dot product.
#pragma once

#include "lora_delta.h"

namespace lora_delta_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kVectors = 16 / kLanes;      // of 16 outputs
constexpr int64_t kPairElements = 2 * 16;  // of 16 outputs of two ranks

// B t of `Rows` rows for 16 outputs, added to those of the tile `out` or in place of them.
template <int Rows>
void multiply(const bf16* b, int64_t pairs, const bf16* t, int64_t stride, bool onto, float* out) {
  Float acc[Rows][kVectors];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < kVectors; j++) acc[m][j] = simd::zero();
  }
  for (const bf16* const end = b + pairs * kPairElements; b != end; b += kPairElements, t += stride) {
    Pairs column[kVectors];
    ML_UNROLL
    for (int j = 0; j < kVectors; j++) column[j] = simd::load_pairs(b + j * 2 * kLanes);
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      const Pairs factor = simd::splat_pair(t + 2 * m);
      ML_UNROLL
      for (int j = 0; j < kVectors; j++) acc[m][j] = simd::dot2(acc[m][j], column[j], factor);
    }
  }
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < kVectors; j++) {
      float* y = out + m * kBlockOutputs + j * kLanes;
      simd::store(y, onto ? simd::add(simd::load(y), acc[m][j]) : acc[m][j]);
    }
  }
}

// The instance for `rows`, 1 to Most.
template <int Most = simd::kGemmRows>
inline void multiply(int rows, const bf16* b, int64_t pairs, const bf16* t, int64_t stride, bool onto, float* out) {
  if (rows == Most) return multiply<Most>(b, pairs, t, stride, onto, out);
  if constexpr (Most > 1) multiply<Most - 1>(rows, b, pairs, t, stride, onto, out);
}

// For rows row + first .. of the step, as many as the tile at row `row` has in the run.
inline void add_half(const LoraStep& step, int64_t row, int, const DeltaRun& run, const DeltaHalf& half, bool onto, float* out) {
  multiply(run.rows, half.b, half.pairs, step.t_at(row + run.first, half.t_pair), step.t_stride, onto, out);
}

}  // namespace lora_delta_vectors

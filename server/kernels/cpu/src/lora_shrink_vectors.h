// A x in vector registers. Several rows of A are read together: that hides the latency of the chains of additions, and
// four sums are reduced across lanes at once.
#pragma once

#include <algorithm>

#include "lora.h"

namespace lora_shrink_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kMaxRanks = 8;
constexpr int64_t kPieceSteps = 8;  // steps served by one prefetched piece

using Sums = bf16[simd::kShrinkRows][kMaxRanks];

template <int Rows, int kRanks>
void dot_tile(const bf16* const (&a)[kMaxRanks], const bf16* x, int64_t stride, int64_t count, float weight, ByteStream* ahead,
              Sums& out) {
  Float acc[Rows][kRanks];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int r = 0; r < kRanks; r++) acc[m][r] = simd::zero();
  }
  constexpr int64_t kStep = 2 * kLanes;
  for (int64_t piece = 0; piece < count; piece += kPieceSteps * kStep) {
    const char* next = ahead != nullptr ? ahead->take(kPieceSteps * kRanks * kStep * 2) : nullptr;
    const int64_t advance = next != nullptr ? 64 : 0;
    if (next == nullptr) next = reinterpret_cast<const char*>(x);
    const int64_t end = std::min(piece + kPieceSteps * kStep, count);
    for (int64_t k = piece; k < end; k += kStep) {
      Pairs rows[kRanks];
      ML_UNROLL
      for (int r = 0; r < kRanks; r++) {
        rows[r] = simd::load_pairs(a[r] + k);
        if (r * 64 < kRanks * kStep * 2) simd::prefetch(next + r * advance);
      }
      next += advance * (kRanks * kStep * 2 / 64);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Pairs input = simd::load_pairs(x + m * stride + k);
        ML_UNROLL
        for (int r = 0; r < kRanks; r++) acc[m][r] = simd::dot2(acc[m][r], rows[r], input);
      }
    }
  }
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int r = 0; r < kRanks; r += 4) simd::sum4(acc[m][r], acc[m][r + 1], acc[m][r + 2], acc[m][r + 3], weight, out[m] + r);
  }
}

// The instance for `rows`, 1 to Most.
template <int Most = simd::kShrinkRows>
inline void dot_tile(int rows, int64_t together, const bf16* const (&a)[kMaxRanks], const bf16* x, int64_t stride, int64_t count,
              float weight, ByteStream* ahead, Sums& out) {
  if (together == 8) return dot_tile<1, 8>(a, x, stride, count, weight, ahead, out);
  if (rows == Most) return dot_tile<Most, 4>(a, x, stride, count, weight, ahead, out);
  if constexpr (Most > 1) dot_tile<Most - 1>(rows, together, a, x, stride, count, weight, ahead, out);
}

// The first `count` sums of a row to their places in t.
inline void copy_sums(bf16 (&sums)[kMaxRanks], int64_t count, bf16* t, int64_t stride) {
  if (count % 2 == 1) sums[count] = 0;
  for (int64_t r = 0; r < count; r += 2, t += stride) memcpy(t, sums + r, 2 * sizeof(bf16));
}

inline void shrink_rows(const bf16* a, int64_t ranks, const LoraSite& site, int64_t row, int64_t rows, float weight, bf16* t,
                        int64_t stride, const LoraScratch&, ByteStream* ahead) {
  const int64_t length = round_up(site.in, kPageAlign);
  const int64_t together = rows == 1 ? 8 : 4;
  Sums out;
  for (int64_t r = 0; r < ranks; r += together) {
    const int64_t count = std::min(together, ranks - r);
    const bf16* group[kMaxRanks];
    for (int64_t i = 0; i < together; i++) group[i] = a + (r + std::min(i, count - 1)) * length;
    for (int64_t m = 0; m < rows; m += simd::kShrinkRows) {
      const int tile = static_cast<int>(std::min<int64_t>(simd::kShrinkRows, rows - m));
      dot_tile(tile, together, group, site.x + (row + m) * site.x_stride, site.x_stride, length, weight,
               m == 0 ? ahead : nullptr, out);
      for (int j = 0; j < tile; j++) copy_sums(out[j], count, t + r / 2 * stride + 2 * (m + j), stride);
    }
  }
}

}  // namespace lora_shrink_vectors

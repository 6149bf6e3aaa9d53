// A x for rows of A that lie one after the other in the pool. Four of them are read together: their sums are
// reduced across lanes at once.
#include <algorithm>

#include "lora.h"

namespace {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kRanks = 4;
constexpr int64_t kPieceSteps = 16;  // steps of 4 x 64 bytes served by one prefetched piece

template <int Rows>
void dot_tile(const bf16* const (&a)[kRanks], const bf16* x, int64_t stride, int64_t count, ByteStream* ahead,
              float (&out)[simd::kShrinkRows][kRanks]) {
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
  for (int m = 0; m < Rows; m++) simd::sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3], out[m]);
}

void dot_tile(int rows, const bf16* const (&a)[kRanks], const bf16* x, int64_t stride, int64_t count, ByteStream* ahead,
              float (&out)[simd::kShrinkRows][kRanks]) {
  switch (rows) {
    case 1: return dot_tile<1>(a, x, stride, count, ahead, out);
    case 2: return dot_tile<2>(a, x, stride, count, ahead, out);
#if !defined(ML_SHORT_TILES)
    case 3: return dot_tile<3>(a, x, stride, count, ahead, out);
    case 4: return dot_tile<4>(a, x, stride, count, ahead, out);
    case 5: return dot_tile<5>(a, x, stride, count, ahead, out);
    case 6: return dot_tile<6>(a, x, stride, count, ahead, out);
#endif
    default: __builtin_unreachable();
  }
}

}  // namespace

void shrink_rows(const bf16* a, int64_t ranks, const LoraSite& site, int64_t row, int64_t rows, float weight, float* t,
                 int64_t t_stride, ByteStream& ahead) {
  const int64_t length = round_up(site.in, kPageAlign);
  float out[simd::kShrinkRows][kRanks];
  for (int64_t r = 0; r < ranks; r += kRanks) {
    const int64_t count = std::min<int64_t>(kRanks, ranks - r);
    const bf16* quad[kRanks];
    for (int64_t i = 0; i < kRanks; i++) quad[i] = a + (r + std::min(i, count - 1)) * length;
    for (int64_t m = 0; m < rows; m += simd::kShrinkRows) {
      const int tile = static_cast<int>(std::min<int64_t>(simd::kShrinkRows, rows - m));
      dot_tile(tile, quad, site.x + (row + m) * site.x_stride, site.x_stride, length, m == 0 ? &ahead : nullptr, out);
      for (int j = 0; j < tile; j++) {
        for (int64_t i = 0; i < count; i++) t[(m + j) * t_stride + r + i] = out[j][i] * weight;
      }
    }
  }
}

void lora_prepare(const LoraStep& step, const LoraSite& site, LoraShare& share) {
  for (const ShrinkItem& item : share.shrink) {
    float* t = step.t.data() + item.segment->row * step.t_stride + item.t_column;
    shrink_rows(item.a, item.ranks, site, item.segment->row, item.segment->rows, item.weight, t, step.t_stride, share.stream);
  }
  for (const DirectItem& item : share.direct) direct_delta(step, site, item, share);
}

// B t of a tile's rows in tile registers.
#pragma once

#include "lora_delta.h"
#include "tiles.h"

namespace lora_delta_tiles {

using simd::kLanes;
using tile_order::kInputs;

// B t of a tile of `rows` rows, up to 16 or more, for 16 outputs.
template <bool Both>
ML_INLINE void multiply(const bf16* b, int64_t ranks, const bf16* t, int64_t stride, float (&sums)[32][16]) {
  const int64_t row = stride * static_cast<int64_t>(sizeof(bf16));
  tiles::zero<0>();
  if (Both) tiles::zero<2>();
  for (int64_t r = 0; r < ranks; r += kInputs) {
    tiles::load<6>(b + 16 * r, 64);
    tiles::load<4>(t + r, row);
    if (Both) tiles::load<5>(t + 16 * stride + r, row);
    tiles::dot<0, 4, 6>();
    if (Both) tiles::dot<2, 5, 6>();
  }
  tiles::store<0>(sums[0], sizeof sums[0]);
  if (Both) tiles::store<2>(sums[16], sizeof sums[0]);
}

// For the rows of the run, in the tile of `rows` rows that begins at row `row` of the step. All of them are multiplied:
// that takes less time than to shape the registers for the run, and nobody looks at the others.
inline void add_half(const LoraStep& step, int64_t row, int rows, const DeltaRun& run, const DeltaHalf& half, bool onto, float* out) {
  alignas(64) float sums[32][16];
  const bf16* t = step.t_at(row, half.t_pair);
  tiles::configure(tiles::Use::kTwoByTwo, rows, tiles::two_by_two);
  if (rows > 16) {
    multiply<true>(half.b, 2 * half.pairs, t, step.t_stride, sums);
  } else {
    multiply<false>(half.b, 2 * half.pairs, t, step.t_stride, sums);
  }
  for (int m = 0; m < run.rows; m++) {
    for (int i = 0; i < 16; i += kLanes) {
      float* y = out + m * kBlockOutputs + i;
      const simd::Float sum = simd::load(sums[run.first + m] + i);
      simd::store(y, onto ? simd::add(simd::load(y), sum) : sum);
    }
  }
}

}  // namespace lora_delta_tiles

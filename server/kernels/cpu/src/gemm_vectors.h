// Products of a tile in vector registers, with the bf16 dot product.
#pragma once

#include "gemm_schedule.h"

namespace gemm_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kFewRows = 4;                                       // up to here sums wait for each other
constexpr int kPassVectors = 2;                                   // output vectors of one pass
constexpr int64_t kFetchingTiles = 2;                             // of cached weights: they prefetch the next ones
constexpr int kPasses = kBlockOutputs / (kPassVectors * kLanes);  // passes that make a block

// Accumulates steps [begin, end) of one pass. The array is kept in registers by full unrolling. Rows are
// addressed in threes from a pointer the compiler can't see through: left alone it keeps twelve row
// pointers and spills half of them.
template <int Rows>
ML_INLINE void accumulate(Float (&acc)[Rows][kPassVectors], const bf16* x, int64_t stride, const bf16* w,
                          int64_t begin, int64_t end, Ahead ahead) {
  constexpr int kGroups = (Rows + 2) / 3;
  const bf16* group[kGroups];
  for (int g = 0; g < kGroups; g++) group[g] = x + 3 * g * stride + 2 * begin;
  const bf16* step = w + begin * kStepElements;
  const bf16* const stop = w + end * kStepElements;
  for (; step != stop; step += kStepElements) {
    Pairs weight[kPassVectors];
    ML_UNROLL
    for (int v = 0; v < kPassVectors; v++) weight[v] = simd::load_pairs(step + v * 2 * kLanes);
    ahead.step();
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      if (m % 3 == 0) asm("" : "+r"(group[m / 3]));
      const Pairs input = simd::splat_pair(group[m / 3] + m % 3 * stride);
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) acc[m][v] = simd::dot2(acc[m][v], weight[v], input);
    }
    ML_UNROLL
    for (int g = 0; g < kGroups; g++) group[g] += 2;
  }
}

template <int Rows>
void multiply(const Schedule& s, Tile& out) {
  for (int pass = 0; pass < kPasses; pass++) {
    Float acc[Rows][kPassVectors];
    const int column = pass * kPassVectors * kLanes;
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) acc[m][v] = s.resume ? simd::load(out[m] + column + v * kLanes) : simd::zero();
    }
    for (int64_t k = 0; k < s.steps; k += kPieceSteps) {
      const int64_t end = k + kPieceSteps < s.steps ? k + kPieceSteps : s.steps;
      if (s.delta != nullptr && pass == 0) s.delta->prefetch(end, s.steps);
      accumulate<Rows>(acc, s.x, s.stride, s.w + 2 * column, k, end, next_piece(s, k));
    }
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) simd::store(out[m] + column + v * kLanes, acc[m][v]);
    }
  }
}

inline void multiply(int rows, const Schedule& s, Tile& out) {
  switch (rows) {
    case 1: return multiply<1>(s, out);
    case 2: return multiply<2>(s, out);
    case 3: return multiply<3>(s, out);
    case 4: return multiply<4>(s, out);
#if !defined(ML_SHORT_TILES)
    case 5: return multiply<5>(s, out);
    case 6: return multiply<6>(s, out);
    case 7: return multiply<7>(s, out);
    case 8: return multiply<8>(s, out);
    case 9: return multiply<9>(s, out);
    case 10: return multiply<10>(s, out);
    case 11: return multiply<11>(s, out);
    case 12: return multiply<12>(s, out);
#endif
    default: __builtin_unreachable();
  }
}

// The first row of a tile: all are about as high.
inline int64_t tile_begin(int64_t rows, int64_t tile, int64_t tiles) { return rows * tile / tiles; }

}  // namespace gemm_vectors

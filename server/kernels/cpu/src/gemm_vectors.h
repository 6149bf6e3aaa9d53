// Products of a tile in vector registers, with the bf16 dot product.
#pragma once

#include "gemm_schedule.h"

namespace gemm_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kFewRows = 4;            // up to here sums wait for each other
constexpr int64_t kFetchingTiles = 2;  // of cached weights: they prefetch the next ones

// Output vectors of one pass: where registers are short, a few rows take all of a block and more take half of it.
constexpr int pass_vectors(int rows) {
  return simd::kSplitsPairs && rows > simd::kGemmRows / 3 ? 2 : kBlockOutputs / kLanes;
}

// Pointers to every third row, advanced together. Rows are addressed in threes from a pointer the compiler can't see
// through: left alone it keeps a pointer for each row and spills half of them.
template <int Rows>
struct Inputs {
  static constexpr int kGroups = (Rows + 2) / 3;
  const bf16* group[kGroups];
  int64_t stride;

  ML_INLINE Inputs(const bf16* x, int64_t stride) : stride(stride) {
    for (int g = 0; g < kGroups; g++) group[g] = x + 3 * g * stride;
  }

  ML_INLINE Pairs row(int m) {  // m in order
    if (m % 3 == 0) asm("" : "+r"(group[m / 3]));
    return simd::splat_pair(group[m / 3] + m % 3 * stride);
  }

  ML_INLINE void advance() {
    ML_UNROLL
    for (int g = 0; g < kGroups; g++) group[g] += 2;
  }
};

// Accumulates steps [begin, end) of one pass. The array is kept in registers by full unrolling.
template <int Rows, int Vectors>
ML_INLINE void accumulate(Float (&acc)[Rows][Vectors], const bf16* x, int64_t stride, const bf16* w, int64_t begin,
                          int64_t end, Ahead ahead) {
  Inputs<Rows> inputs(x + 2 * begin, stride);
  const bf16* step = w + begin * kStepElements;
  const bf16* const stop = w + end * kStepElements;
  for (; step != stop; step += kStepElements) {
    ahead.step();
    if constexpr (simd::kSplitsPairs) {
      // dot2 in its two halves, first those of all rows: so no more than one half of the weights is in registers.
      Float weight[Vectors];
      ML_UNROLL
      for (int v = 0; v < Vectors; v++) weight[v] = simd::low_half(simd::load_pairs(step + v * 2 * kLanes));
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Float input = simd::low_half(inputs.row(m));
        ML_UNROLL
        for (int v = 0; v < Vectors; v++) simd::fma_onto(acc[m][v], weight[v], input);
      }
      asm("" : "+r"(step));  // loaded again, not kept
      ML_UNROLL
      for (int v = 0; v < Vectors; v++) weight[v] = simd::high_half(simd::load_pairs(step + v * 2 * kLanes));
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Float input = simd::high_half(inputs.row(m));
        ML_UNROLL
        for (int v = 0; v < Vectors; v++) simd::fma_onto(acc[m][v], weight[v], input);
      }
    } else {
      Pairs weight[Vectors];
      ML_UNROLL
      for (int v = 0; v < Vectors; v++) weight[v] = simd::load_pairs(step + v * 2 * kLanes);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Pairs input = inputs.row(m);
        ML_UNROLL
        for (int v = 0; v < Vectors; v++) acc[m][v] = simd::dot2(acc[m][v], weight[v], input);
      }
    }
    inputs.advance();
  }
}

template <int Rows>
void multiply(const Schedule& s, Tile& out) {
  constexpr int kVectors = pass_vectors(Rows);
  for (int column = 0; column < kBlockOutputs; column += kVectors * kLanes) {
    Float acc[Rows][kVectors];
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kVectors; v++) acc[m][v] = s.resume ? simd::load(out[m] + column + v * kLanes) : simd::zero();
    }
    for (int64_t k = 0; k < s.steps; k += kPieceSteps) {
      const int64_t end = k + kPieceSteps < s.steps ? k + kPieceSteps : s.steps;
      if (s.delta != nullptr && column == 0) s.delta->prefetch(end, s.steps);
      accumulate<Rows>(acc, s.x, s.stride, s.w + 2 * column, k, end, next_piece(s, k));
    }
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kVectors; v++) simd::store(out[m] + column + v * kLanes, acc[m][v]);
    }
  }
}

// The instance for `rows`, 1 to Most.
template <int Most = simd::kGemmRows>
inline void multiply(int rows, const Schedule& s, Tile& out) {
  if (rows == Most) return multiply<Most>(s, out);
  if constexpr (Most > 1) multiply<Most - 1>(rows, s, out);
}

// The first row of a tile: all are about as high.
inline int64_t tile_begin(int64_t rows, int64_t tile, int64_t tiles) { return rows * tile / tiles; }

}  // namespace gemm_vectors

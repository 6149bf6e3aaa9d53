// Products of a tile in tile registers, or for few rows, which wait for the weights anyway, in vector registers in
// the same order (tile_order.h): a row's bits do not depend on which of them computed it.
#pragma once

#include "gemm_schedule.h"
#include "tiles.h"

namespace gemm_tiles {

using simd::Float;
using simd::kLanes;
using simd::Pairs;
using tile_order::kPairs;

constexpr int kFewRows = 2;  // up to here the weights keep nobody waiting: 2 x (2 + 2 x 2) accumulators, 4 weights, 2 inputs
constexpr int64_t kFetchingTiles = 8;  // of cached weights: they prefetch the next ones
constexpr int kPassVectors = 2;
constexpr int kPasses = kBlockOutputs / (kPassVectors * kLanes);

// Adds steps [begin, end), at most kPairs, of one pass.
template <int Rows>
ML_INLINE void add_chains(Float (&acc)[Rows][kPassVectors], const bf16* x, int64_t stride, const bf16* w, int64_t begin,
                          int64_t end, Ahead& ahead) {
  Float even[Rows][kPassVectors];
  Float odd[Rows][kPassVectors];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int v = 0; v < kPassVectors; v++) even[m][v] = odd[m][v] = simd::zero();
  }
  for (int64_t k = begin; k < end; k++) {
    Float low[kPassVectors];
    Float high[kPassVectors];
    ML_UNROLL
    for (int v = 0; v < kPassVectors; v++) {
      const Pairs weight = simd::load_pairs(w + k * kStepElements + v * 2 * kLanes);
      low[v] = simd::low_half(weight);
      high[v] = simd::high_half(weight);
    }
    ahead.step();
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      const Pairs input = simd::splat_pair(x + m * stride + 2 * k);
      const Float first = simd::low_half(input);
      const Float second = simd::high_half(input);
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) {
        even[m][v] = tiles::fma(low[v], first, even[m][v]);
        odd[m][v] = tiles::fma(high[v], second, odd[m][v]);
      }
    }
  }
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int v = 0; v < kPassVectors; v++) acc[m][v] = tiles::add(acc[m][v], tiles::add(even[m][v], odd[m][v]));
  }
}

template <int Rows>
void multiply_few(const Schedule& s, Tile& out) {
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
      Ahead ahead = next_piece(s, k);
      for (int64_t q = k; q < end; q += kPairs) {
        add_chains<Rows>(acc, s.x, s.stride, s.w + 2 * column, q, q + kPairs < end ? q + kPairs : end, ahead);
      }
    }
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) simd::store(out[m] + column + v * kLanes, acc[m][v]);
    }
  }
}

// Lines to prefetch beside every product of 32 inputs. Each costs a load slot that tiles are loaded by.
struct Lines {
  const char* weights;
  int64_t weight_lines;
  const char* later;
  int64_t later_lines;

  ML_INLINE void fetch() {
    for (int64_t i = 0; i < weight_lines; i++) simd::prefetch(weights + i * 64);
    for (int64_t i = 0; i < later_lines; i++) simd::prefetch(later + i * 64);
    weights += weight_lines * 64;
    later += later_lines * 64;
  }
};

ML_INLINE Lines next_lines(const Schedule& s, int64_t k) {
  const char* later = s.later != nullptr ? s.later->take(kLaterLines * 64) : nullptr;
  return {s.weights + k / kPairs * s.lines * 64, s.lines, later, later != nullptr ? kLaterLines * kPairs / kPieceSteps : 0};
}

template <bool Both>
ML_INLINE void dot(const bf16* x, int64_t stride, const bf16* w) {
  const int64_t row = stride * static_cast<int64_t>(sizeof(bf16));
  tiles::load<6>(w, kStepBytes);
  tiles::load<4>(x, row);
  tiles::load<7>(w + kStepElements / 2, kStepBytes);
  if (Both) tiles::load<5>(x + 16 * stride, row);
  tiles::dot<0, 4, 6>();
  tiles::dot<1, 4, 7>();
  if (!Both) return;
  tiles::dot<2, 5, 6>();
  tiles::dot<3, 5, 7>();
}

// The last inputs, fewer than 32, with zeros behind them.
template <bool Both>
void dot_rest(int rows, const bf16* x, int64_t stride, const bf16* w, int64_t steps) {
  alignas(64) bf16 inputs[simd::kGemmRows][tile_order::kInputs] = {};
  alignas(64) bf16 weights[kPairs][kStepElements] = {};
  for (int m = 0; m < rows; m++) memcpy(inputs[m], x + m * stride, static_cast<size_t>(2 * steps) * sizeof(bf16));
  memcpy(weights, w, static_cast<size_t>(steps) * sizeof weights[0]);
  dot<Both>(inputs[0], tile_order::kInputs, weights[0]);
}

template <bool Both>
ML_INLINE void start_sums(const Schedule& s, const Tile& out) {
  if (s.resume) {
    tiles::load<0>(out[0], sizeof out[0]);
    tiles::load<1>(out[0] + 16, sizeof out[0]);
    if (Both) tiles::load<2>(out[16], sizeof out[0]);
    if (Both) tiles::load<3>(out[16] + 16, sizeof out[0]);
  } else {
    tiles::zero<0>();
    tiles::zero<1>();
    if (Both) tiles::zero<2>();
    if (Both) tiles::zero<3>();
  }
}

template <bool Both>
void multiply_many(int rows, const Schedule& s, Tile& out) {
  start_sums<Both>(s, out);
  const int64_t whole = s.steps - s.steps % kPairs;
  for (int64_t k = 0; k < whole; k += kPieceSteps) {
    const int64_t end = k + kPieceSteps < whole ? k + kPieceSteps : whole;
    if (s.delta != nullptr) s.delta->prefetch(end, whole);
    Lines lines = next_lines(s, k);
    for (int64_t q = k; q < end; q += kPairs) {
      dot<Both>(s.x + 2 * q, s.stride, s.w + q * kStepElements);
      lines.fetch();
    }
  }
  if (whole < s.steps) dot_rest<Both>(rows, s.x + 2 * whole, s.stride, s.w + whole * kStepElements, s.steps - whole);
  tiles::store<0>(out[0], sizeof out[0]);
  tiles::store<1>(out[0] + 16, sizeof out[0]);
  if (Both) tiles::store<2>(out[16], sizeof out[0]);
  if (Both) tiles::store<3>(out[16] + 16, sizeof out[0]);
}

// The first row of a tile: all but the last are as high as can be, for other heights the registers are shaped anew.
inline int64_t tile_begin(int64_t rows, int64_t tile, int64_t tiles) {
  return tile < tiles ? tile * simd::kGemmRows : rows;
}

inline void multiply(int rows, const Schedule& s, Tile& out) {
  switch (rows) {
    case 1: return multiply_few<1>(s, out);
    case 2: return multiply_few<2>(s, out);
    default: break;
  }
  tiles::configure(tiles::Use::kTwoByTwo, rows, tiles::two_by_two);
  if (rows > 16) return multiply_many<true>(rows, s, out);
  multiply_many<false>(rows, s, out);
}

}  // namespace gemm_tiles

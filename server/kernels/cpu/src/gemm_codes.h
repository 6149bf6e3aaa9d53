// Products of a row or two by weights in few bits that are never stored: codes become weights in the registers that are
// multiplied. For more rows it takes longer than to make a piece of them bf16 once.
#pragma once

#include "gemm_schedule.h"
#include "unpack.h"
#if defined(ML_INPUTS_APART) && !defined(ML_TILES)
#include "codes_apart.h"
#include "gemm_vectors.h"

namespace gemm_codes {

using codes_apart::kVectors;
using simd::Float;
using simd::kLanes;

constexpr int kMostRows = 2;

inline bool takes(const PackedMatrix& matrix, int64_t rows) {
  return rows <= kMostRows && matrix.moderate != 0 && matrix.kind != kPlain;
}

template <int Rows, class Reader>
ML_INLINE void multiply_with(Reader reader, const PackedMatrix& matrix, int64_t inputs, const Codes& codes, const bf16* x,
                             int64_t stride, bool resume, Tile& out) {
  Float acc[Rows][kVectors];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) acc[m][v] = resume ? simd::load(out[m] + v * kLanes) : simd::zero();
  }
  gemm_vectors::Inputs<Rows> rows(x, stride);
  codes_apart::each_step(reader, matrix, inputs, codes, [&](const char* step) {
    ML_UNROLL
    for (int input = 0; input < 2; input++) {
      Float weight[kVectors];
      reader.read(step, input, weight);
      ML_UNROLL
      for (int v = 0; v < kVectors; v++) weight[v] = simd::round_moderate(weight[v]);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Float value = input == 0 ? simd::low_half(rows.row(m)) : simd::high_half(rows.row(m));
        ML_UNROLL
        for (int v = 0; v < kVectors; v++) simd::fma_onto(acc[m][v], weight[v], value);
      }
    }
    rows.advance();
  });
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) simd::store(out[m] + v * kLanes, acc[m][v]);
  }
}

// The sums of a piece's steps, the first of which meets x[0]: bit for bit those of its weights as bf16.
template <int Rows = kMostRows>
inline void multiply(int rows, const PackedMatrix& matrix, int64_t inputs, const Codes& codes, const bf16* x, int64_t stride,
                     bool resume, Tile& out) {
  if (rows == Rows) {
    codes_apart::with_reader(matrix, [&](auto reader) {
      multiply_with<Rows>(reader, matrix, inputs, codes, x, stride, resume, out);
    });
  } else if constexpr (Rows > 1) {
    multiply<Rows - 1>(rows, matrix, inputs, codes, x, stride, resume, out);
  }
}

}  // namespace gemm_codes
#else
namespace gemm_codes {

inline bool takes(const PackedMatrix&, int64_t) { return false; }
inline void multiply(int, const PackedMatrix&, int64_t, const Codes&, const bf16*, int64_t, bool, Tile&) {}

}  // namespace gemm_codes
#endif

// Codes where a step, a pair of inputs, has the weights of its first input and then those of its second: read into
// registers as the 32 outputs of one input.
//
// Of 4 bits a step is 32 bytes with codes of the first input in their low bits, of the second in the high ones. Byte
// 16 a + 4 b + c is that of output 8 b + 4 a + c: the bytes of the table's values are looked up one by one, and
// interleaving them within halves of a register leaves the outputs in order. Of 8 bits a step is 2 x 32 bytes.
#pragma once

#include "code_formulas.h"
#include "unpack.h"
#include "unpack_lanes.h"

namespace codes_apart {

using simd::Float;
using simd::kLanes;

constexpr int kVectors = kBlockOutputs / kLanes;

// The scales, or the offsets, of the 32 outputs.
struct Outputs {
  Float value[kVectors];

  ML_INLINE void load(const float* values) {
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) value[v] = simd::load(values + v * kLanes);
  }
};

template <class Formula>
class Nibbles {
 public:
  static constexpr int64_t kStepBytes = kBlockOutputs;

  ML_INLINE explicit Nibbles(const PackedMatrix& matrix) : table_(simd::load_table(matrix.table)) {}

  ML_INLINE void begin_group(const float* scales, const float* offsets) {
    scale_.load(scales);
    offset_.load(offsets == nullptr ? scales : offsets);
  }

  // The weights of input 0 or 1 of a step, in fp32.
  ML_INLINE void read(const char* step, int input, Float (&weight)[kVectors]) const {
    simd::lookup(table_, reinterpret_cast<const uint8_t*>(step), input, weight);
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) weight[v] = Formula::of(weight[v], scale_.value[v], offset_.value[v]);
  }

 private:
  simd::Table table_;
  Outputs scale_;
  Outputs offset_;
};

template <class Formula>
class Bytes {
 public:
  static constexpr int64_t kStepBytes = 2 * kBlockOutputs;

  ML_INLINE explicit Bytes(const PackedMatrix& matrix) : factor_(simd::splat(matrix.factor)) {}

  ML_INLINE void begin_group(const float* scales, const float* offsets) {
    scale_.load(scales);
    if (offsets != nullptr) {
      last_.load(offsets);
    } else {
      for (Float& each : last_.value) each = factor_;
    }
  }

  ML_INLINE void read(const char* step, int input, Float (&weight)[kVectors]) const {
    const auto* codes = reinterpret_cast<const int8_t*>(step) + input * kBlockOutputs;
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) {
      weight[v] = Formula::of(simd::from_bytes(codes + v * kLanes), scale_.value[v], last_.value[v]);
    }
  }

 private:
  Float factor_;
  Outputs scale_;
  Outputs last_;
};

// Calls use with a reader of a matrix that is neither plain nor several.
template <class Use>
ML_INLINE void with_reader(const PackedMatrix& matrix, Use use) {
  if (matrix.kind == kBytes || matrix.kind == kAddedBytes) {
    with_byte_formula(matrix.kind, [&](auto formula) { use(Bytes<decltype(formula)>(matrix)); });
  } else {
    with_nibble_formula(matrix.kind, [&](auto formula) { use(Nibbles<decltype(formula)>(matrix)); });
  }
}

// Calls each(step) with the codes of every step of a piece in turn, the reader being ready for its group.
template <class Reader, class Each>
ML_INLINE void each_step(Reader& reader, const PackedMatrix& matrix, int64_t inputs, const Codes& codes, Each each) {
  const char* start = block_codes(matrix, inputs, codes.block);
  each_group(matrix, codes, [&](int64_t group, int64_t begin, int64_t end) {
    const float* offsets = matrix.offsets == nullptr ? nullptr : of_group(matrix.offsets, matrix, inputs, codes.block, group);
    reader.begin_group(of_group(matrix.scales, matrix, inputs, codes.block, group), offsets);
    for (int64_t k = begin; k < end; k++) {
      if (Reader::kStepBytes >= 64 || k % 2 == 0) simd::prefetch(codes.ahead + k * Reader::kStepBytes);
      each(start + k * Reader::kStepBytes);
    }
  });
}

}  // namespace codes_apart

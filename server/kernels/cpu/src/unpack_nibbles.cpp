// 4-bit codes in the order of packed bf16. A step of a block is 32 bytes, for the 64 weights of its bf16 form in order:
// byte j of either half of 16 holds weight j of a half of 32 in its low bits, weight j + 16 in its high ones.
#include "unpack.h"
#if !defined(ML_INPUTS_APART)
#include "code_formulas.h"
#include "unpack_lanes.h"

namespace {

using simd::Float;
using simd::kLanes;

constexpr int kStepBytes = kBlockOutputs;  // codes of two inputs

// Lanes of two vectors whose weights are 16 places apart, each output twice.
struct Lanes {
  Float first;
  Float second;
};

// Of half a step, 16 outputs, as they take part in lanes j ..
ML_INLINE Lanes outputs_of(const float* values, int half, int j) {
  const float* at = values + half * 16 + j / 2;
  return {simd::load_twice(at), simd::load_twice(at + 8)};
}

template <class Formula>
ML_INLINE void unpack_with(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  constexpr int kParts = 32 / 2 / kLanes;  // vectors of bytes in half a step
  const simd::Table table = simd::load_table(matrix.table);
  const auto* start = reinterpret_cast<const uint8_t*>(block_codes(matrix, inputs, codes.block));
  each_group(matrix, codes, [&](int64_t group, int64_t begin, int64_t end) {
    const float* scales = of_group(matrix.scales, matrix, inputs, codes.block, group);
    const float* offsets = matrix.offsets == nullptr ? scales : of_group(matrix.offsets, matrix, inputs, codes.block, group);
    Lanes scale[2][kParts];
    Lanes offset[2][kParts];
    ML_UNROLL
    for (int i = 0; i < 2 * kParts; i++) {
      scale[i / kParts][i % kParts] = outputs_of(scales, i / kParts, i % kParts * kLanes);
      offset[i / kParts][i % kParts] = outputs_of(offsets, i / kParts, i % kParts * kLanes);
    }
    for (int64_t k = begin; k < end; k++, out += 2 * kBlockOutputs) {
      if (k % 2 == 0) simd::prefetch(codes.ahead + k * kStepBytes);
      const uint8_t* step = start + k * kStepBytes;
      ML_UNROLL
      for (int i = 0; i < 2 * kParts; i++) {
        const int half = i / kParts, part = i % kParts;
        Float low, high;
        simd::lookup(table, step + half * 16 + part * kLanes, &low, &high);
        simd::store_halves(out + half * 32 + part * kLanes, Formula::of(low, scale[half][part].first, offset[half][part].first),
                           Formula::of(high, scale[half][part].second, offset[half][part].second));
      }
    }
  });
}

}  // namespace

void unpack_nibbles(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  with_nibble_formula(matrix.kind, [&](auto formula) { unpack_with<decltype(formula)>(matrix, inputs, codes, out); });
}
#endif

// Signed 8-bit codes in the order of packed bf16: a step of a block is 64 bytes.
#include "unpack.h"
#if !defined(ML_INPUTS_APART)
#include "code_formulas.h"
#include "unpack_lanes.h"

namespace {

using simd::Float;
using simd::kLanes;

constexpr int kStepBytes = 2 * kBlockOutputs;
constexpr int kVectors = kStepBytes / kLanes;

template <class Formula>
ML_INLINE void unpack_with(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  const auto* start = reinterpret_cast<const int8_t*>(block_codes(matrix, inputs, codes.block));
  each_group(matrix, codes, [&](int64_t group, int64_t begin, int64_t end) {
    const float* scales = of_group(matrix.scales, matrix, inputs, codes.block, group);
    const float* offsets = matrix.offsets == nullptr ? nullptr : of_group(matrix.offsets, matrix, inputs, codes.block, group);
    Float scale[kVectors];
    Float last[kVectors];
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) {
      scale[v] = simd::load_twice(scales + v * kLanes / 2);
      last[v] = offsets == nullptr ? simd::splat(matrix.factor) : simd::load_twice(offsets + v * kLanes / 2);
    }
    for (int64_t k = begin; k < end; k++, out += 2 * kBlockOutputs) {
      simd::prefetch(codes.ahead + k * kStepBytes);
      const int8_t* step = start + k * kStepBytes;
      ML_UNROLL
      for (int v = 0; v < kVectors; v++) {
        if (v * kLanes % 32 >= 16) continue;  // stored with the vector 16 places before
        const int other = v + 16 / kLanes;
        const auto weight = [&](int i) { return Formula::of(simd::from_bytes(step + i * kLanes), scale[i], last[i]); };
        simd::store_halves(out + v * kLanes, weight(v), weight(other));
      }
    }
  });
}

}  // namespace

void unpack_bytes(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  with_byte_formula(matrix.kind, [&](auto formula) { unpack_with<decltype(formula)>(matrix, inputs, codes, out); });
}
#endif

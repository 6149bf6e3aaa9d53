// Signed 8-bit codes. A step of a block is 64 bytes, in the order of its bf16 form.
#include "unpack.h"
#include "unpack_lanes.h"

void unpack_bytes(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  using simd::Float;
  using simd::kLanes;
  constexpr int kStepBytes = 2 * kBlockOutputs;
  constexpr int kVectors = kStepBytes / kLanes;
  const auto* start = reinterpret_cast<const int8_t*>(block_codes(matrix, inputs, codes.block));
  const Float factor = simd::splat(matrix.factor);
  each_group(matrix, codes, [&](int64_t group, int64_t begin, int64_t end) {
    const float* scales = of_group(matrix.scales, matrix, inputs, codes.block, group);
    Float scale[kVectors];
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) scale[v] = simd::load_twice(scales + v * kLanes / 2);
    for (int64_t k = begin; k < end; k++, out += 2 * kBlockOutputs) {
      simd::prefetch(codes.ahead + k * kStepBytes);
      const int8_t* step = start + k * kStepBytes;
      ML_UNROLL
      for (int v = 0; v < kVectors; v++) {
        if (v * kLanes % 32 >= 16) continue;  // stored with the vector 16 places before
        const int other = v + 16 / kLanes;
        const auto weight = [&](int i) {
          return simd::mul(simd::mul(simd::from_bytes(step + i * kLanes), scale[i]), factor);
        };
        simd::store_halves(out + v * kLanes, weight(v), weight(other));
      }
    }
  });
}

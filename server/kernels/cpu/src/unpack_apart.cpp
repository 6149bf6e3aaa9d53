// Codes whose inputs lie apart, made bf16: 4-bit and 8-bit ones alike.
#include "unpack.h"
#if defined(ML_INPUTS_APART)
#include "codes_apart.h"

namespace {

template <bool Moderate, class Reader>
ML_INLINE void unpack_with(Reader reader, const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  codes_apart::each_step(reader, matrix, inputs, codes, [&](const char* step) {
    simd::Float first[codes_apart::kVectors];
    simd::Float second[codes_apart::kVectors];
    reader.read(step, 0, first);
    reader.read(step, 1, second);
    ML_UNROLL
    for (int v = 0; v < codes_apart::kVectors; v++, out += 2 * simd::kLanes) {
      const auto pairs = Moderate ? simd::round_moderate_pairs(first[v], second[v]) : simd::round_pairs(first[v], second[v]);
      simd::store_pairs(out, pairs);
    }
  });
}

}  // namespace

void unpack_nibbles(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  with_nibble_formula(matrix.kind, [&](auto formula) {
    const codes_apart::Nibbles<decltype(formula)> reader(matrix);
    if (matrix.moderate != 0) return unpack_with<true>(reader, matrix, inputs, codes, out);
    unpack_with<false>(reader, matrix, inputs, codes, out);
  });
}

void unpack_bytes(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  with_byte_formula(matrix.kind, [&](auto formula) {
    const codes_apart::Bytes<decltype(formula)> reader(matrix);
    if (matrix.moderate != 0) return unpack_with<true>(reader, matrix, inputs, codes, out);
    unpack_with<false>(reader, matrix, inputs, codes, out);
  });
}
#endif

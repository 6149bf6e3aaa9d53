#include "unpack.h"

#include <cstring>

void unpack(const PackedMatrix& whole, int64_t inputs, const Codes& piece, bf16* out) {
  Codes codes = piece;
  const PackedMatrix& matrix = part_of(whole, &codes.block);
  switch (matrix.kind) {
    case kNibbles:
    case kShifted:
    case kAdded: return unpack_nibbles(matrix, inputs, codes, out);
    case kBytes:
    case kAddedBytes: return unpack_bytes(matrix, inputs, codes, out);
    default: {
      const bf16* plain = static_cast<const bf16*>(matrix.codes) + (codes.block * inputs + 2 * codes.begin) * kBlockOutputs;
      memcpy(out, plain, static_cast<size_t>((codes.end - codes.begin) * 2 * kBlockOutputs) * sizeof(bf16));
    }
  }
}

#include "unpack.h"

#include <cstring>

void unpack(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out) {
  switch (matrix.kind) {
    case kNibbles: return unpack_nibbles(matrix, inputs, codes, out);
    case kBytes: return unpack_bytes(matrix, inputs, codes, out);
    default: {
      const bf16* plain = static_cast<const bf16*>(matrix.codes) + (codes.block * inputs + 2 * codes.begin) * kBlockOutputs;
      memcpy(out, plain, static_cast<size_t>((codes.end - codes.begin) * 2 * kBlockOutputs) * sizeof(bf16));
    }
  }
}

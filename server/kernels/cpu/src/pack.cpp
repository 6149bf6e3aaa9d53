#include "pack.h"

#include <cstring>

#include "memory.h"

namespace {

// One block from its rows of the matrix, zeros for those that are null. The block is written front to back: row by
// row every write would touch a line of its own.
void place(const bf16* const (&rows)[kBlockOutputs], bf16* block, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k += 2) {
    for (int64_t lane = 0; lane < kBlockOutputs; lane++, block += 2) {
      if (rows[lane] != nullptr) {
        memcpy(block, rows[lane] + k, 2 * sizeof(bf16));
      } else {
        memset(block, 0, 2 * sizeof(bf16));
      }
    }
  }
}

}  // namespace

void pack(const bf16* matrix, bf16* packed, int64_t outputs, int64_t inputs) {
  const int64_t blocks = round_up(outputs, kBlockOutputs) / kBlockOutputs;
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; b++) {
    const bf16* rows[kBlockOutputs];
    for (int64_t lane = 0; lane < kBlockOutputs; lane++) {
      const int64_t n = b * kBlockOutputs + lane;
      rows[lane] = n < outputs ? matrix + n * inputs : nullptr;
    }
    place(rows, packed + b * kBlockOutputs * inputs, inputs);
  }
}

void pack_gate_up(const bf16* matrix, bf16* packed, int64_t intermediate, int64_t inputs) {
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < intermediate / 16; b++) {
    const bf16* rows[kBlockOutputs];
    for (int64_t lane = 0; lane < kBlockOutputs; lane++) {
      rows[lane] = matrix + (b * 16 + lane % 16 + (lane < 16 ? 0 : intermediate)) * inputs;
    }
    place(rows, packed + b * kBlockOutputs * inputs, inputs);
  }
}

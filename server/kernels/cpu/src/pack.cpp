#include "pack.h"

#include "memory.h"

namespace {

// Places matrix row `row` (or zeros) at output `lane` of the block.
void place(const bf16* row, bf16* block, int64_t lane, int64_t inputs) {
  for (int64_t k = 0; k < inputs; k += 2) {
    block[k * kBlockOutputs + lane * 2] = row != nullptr ? row[k] : bf16{0};
    block[k * kBlockOutputs + lane * 2 + 1] = row != nullptr ? row[k + 1] : bf16{0};
  }
}

}  // namespace

void pack(const bf16* matrix, bf16* packed, int64_t outputs, int64_t inputs) {
  const int64_t blocks = round_up(outputs, kBlockOutputs) / kBlockOutputs;
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; b++) {
    for (int64_t lane = 0; lane < kBlockOutputs; lane++) {
      const int64_t n = b * kBlockOutputs + lane;
      place(n < outputs ? matrix + n * inputs : nullptr, packed + b * kBlockOutputs * inputs, lane, inputs);
    }
  }
}

void pack_gate_up(const bf16* matrix, bf16* packed, int64_t intermediate, int64_t inputs) {
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < intermediate / 16; b++) {
    for (int64_t lane = 0; lane < kBlockOutputs; lane++) {
      const int64_t n = b * 16 + lane % 16 + (lane < 16 ? 0 : intermediate);
      place(matrix + n * inputs, packed + b * kBlockOutputs * inputs, lane, inputs);
    }
  }
}

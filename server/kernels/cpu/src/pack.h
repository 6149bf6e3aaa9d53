// The packed form of a weight matrix [N, K]: blocks of 32 outputs, each [K / 2][32][2]. A GEMM tile reads
// one block front to back, two adjacent inputs of 32 outputs at a time: what the bf16 dot product takes.
// N is rounded up to 32 with zero rows.
#pragma once

#include <cstdint>

#include "simd.h"

constexpr int64_t kBlockOutputs = 32;

void pack(const bf16* matrix, bf16* packed, int64_t outputs, int64_t inputs);

// Gate and up matrices stacked along outputs; a block holds gate outputs 16 j .. 16 j + 15 and the up
// outputs of the same numbers, so that one tile has both factors of SiLU(gate) * up.
void pack_gate_up(const bf16* matrix, bf16* packed, int64_t intermediate, int64_t inputs);

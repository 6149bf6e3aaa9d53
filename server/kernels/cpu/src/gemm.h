// y = x W^T over packed weights (pack.h), bf16 in, fp32 accumulation.
#pragma once

#include <cstdint>

#include "abi.h"
#include "lora_delta.h"
#include "output.h"
#include "pack.h"
#include "queue.h"
#include "stream.h"
#include "worker.h"

struct Gemm {
  const bf16* x;         // [rows][x_stride]
  int64_t x_stride;
  int64_t rows;
  PackedMatrix weight;
  int64_t outputs;       // rounded up to 32 by the kernel
  int64_t inputs;        // even
  const float* bias;     // [outputs rounded up], in the packed order, or null
  Output output;
  const void* next;      // what this thread reads after the GEMM: prefetched with the last weights; or null
  Upcoming* later;       // prefetched meanwhile; or null
  StealQueue* queue;     // reset
  LoraDelta* delta;      // this thread's, added to every tile; or null
  bf16* unpacked;        // this thread's room for a block of weights; null is enough for plain ones
};

// Called by every thread. Each output is accumulated over ascending inputs in one register lane: its bits
// depend on nothing but its own row and weights.
void gemm(const Gemm& job, const Worker& worker);

// The first block of 32 outputs of the thread's share, and its codes.
int64_t own_first_block(int64_t outputs, const Worker& worker);
const char* own_codes(const PackedMatrix& matrix, int64_t outputs, int64_t inputs, const Worker& worker);

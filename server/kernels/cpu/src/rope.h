#pragma once

#include <cstdint>

#include "kv_cache.h"
#include "lora.h"
#include "worker.h"

struct Rope {
  bf16* qkv;                // [rows][stride]: heads of q, then of k, then of v
  int64_t stride;
  int64_t rows;
  int64_t heads;
  KvCache cache;
  const float* cos;         // [positions][turned / 2]; null: nothing is rotated
  const float* sin;
  int64_t turned;           // the first dimensions of a head, which are rotated
  const int64_t* positions; // [rows]
  const int64_t* slots;     // [rows] block * 16 + offset
  const float* q_norm;      // [head_dim] or null
  const float* k_norm;
  float eps;
  const LoraStep* lora;     // whose adapters change the norms in some rows; null: nobody does
  int64_t q_module;         // number of q_norm among the norms; k_norm's is the next
};

// Normalizes (if the model does) and rotates q in place, and writes rotated k and v to the cache, for
// this thread's share of the heads.
void rope(const Rope& job, const Worker& worker);

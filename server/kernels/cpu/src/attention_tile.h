// The inner kernel of attention: a few query vectors against one chunk of keys.
//
// A chunk is 128 consecutive positions, counted from position 0. Each chunk is softmaxed on its own and
// the results are folded together in ascending order, so a row's bits are the same whether it was
// computed alone, in a prefill chunk, or split over threads by context: the order depends on positions only.
#pragma once

#include <cstdint>

#include "kv_cache.h"

constexpr int64_t kChunkBlocks = 8;
constexpr int64_t kChunkTokens = kChunkBlocks * kBlockTokens;

// Up to kQueryVectors (row, head) pairs that read the same K and V.
struct QueryTile {
  int count;
  int64_t head_dim;
  const bf16* query;                    // [head_dim / 2][count][2]
  int low[simd::kQueryVectors];         // vector v attends to positions low[v] <= p < high[v]
  int high[simd::kQueryVectors];
  float scale;
  float cap;                            // bounds the scores by cap tanh(s / cap); 0: nothing does
};

// One chunk, or the part of it that any vector of the tile can see.
struct KeyChunk {
  int64_t first_position;               // of the first block
  int64_t blocks;
  const bf16* unit[kChunkBlocks];       // K then V of each block
  const bf16* ahead[kChunkBlocks];      // units to prefetch meanwhile; any readable address will do
};

// Unnormalized softmax over the positions seen so far: out = sum of exp(score - max) v, sum of the weights.
struct SoftmaxState {
  float* max;                           // [vectors]
  float* sum;                           // [vectors]
  float* out;                           // [vectors][head_dim]
};

void clear(const SoftmaxState& state, int64_t vectors, int64_t head_dim);

// The state of the chunk alone.
void attend(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result);

// Adds the positions of `part` to `state`.
void fold(const SoftmaxState& state, const SoftmaxState& part, int vectors, int64_t head_dim);

// out[v] = state.out[v] / state.sum[v]
void finish(const SoftmaxState& state, int64_t vector, int64_t head_dim, bf16* out);

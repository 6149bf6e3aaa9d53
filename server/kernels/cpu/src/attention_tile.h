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
  const bf16* query;                    // as pack_queries leaves them
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
  const bf16* ahead[kChunkBlocks];      // units to prefetch meanwhile; or the units themselves
  const bf16* values;                   // V of the chunk, as gather_values leaves it
};

// Unnormalized softmax over the positions seen so far: out = sum of exp(score - max) v, sum of the weights.
struct SoftmaxState {
  float* max;                           // [vectors]
  float* sum;                           // [vectors]
  float* out;                           // [vectors][head_dim]
};

// Elements of a packed query vector.
constexpr int64_t query_width(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Lays the vectors of one tile next to each other, in the order that `attend` reads them.
void pack_queries(const bf16* const* query, int64_t count, int64_t head_dim, bf16* packed);

// For tile registers, V of a chunk below position `high` in one piece [kChunkTokens / 2][head_dim][2], by position in the chunk; zeros in
// place of what nobody sees, as far as the 32 tokens that a product takes: another sequence may have left NaN there.
// Vectors read it where it lies: nothing is done for them.
void gather_values(KeyChunk& chunk, int64_t high, int64_t head_dim, bf16* values);

void clear(const SoftmaxState& state, int64_t vectors, int64_t head_dim);

// The state of the chunk alone.
void attend(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result);

// Adds the positions of `part` to `state`.
void fold(const SoftmaxState& state, const SoftmaxState& part, int vectors, int64_t head_dim);

// out[v] = state.out[v] / state.sum[v]
void finish(const SoftmaxState& state, int64_t vector, int64_t head_dim, bf16* out);

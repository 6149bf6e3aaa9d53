// Paged causal attention of one layer, decode rows and prefill chunks together.
#pragma once

#include <atomic>
#include <cstdint>

#include "attention_plan.h"
#include "attention_tile.h"
#include "memory.h"
#include "worker.h"

// Working memory of one thread.
struct AttentionScratch {
  Buffer<float> state;    // softmax states of a prefill task, or of all heads of a decode row
  Buffer<float> part;     // of one tile and chunk
  Buffer<bf16> query;     // packed queries of a prefill task or decode row
  Buffer<bf16> units;     // of one chunk, made from their codes
  Buffer<bf16> values;    // V of a chunk, for tile registers

  void reserve(const AttentionPlan& plan, int64_t heads, const KvCache& cache);
};

// Shared by the threads.
struct AttentionShared {
  std::atomic<int64_t> next_task{0};
  Buffer<float> parts;    // chunk states of split heads

  void reserve(const AttentionPlan& plan, int64_t groups, int64_t head_dim);
};

struct Attention {
  const Step* step;
  const AttentionPlan* plan;
  const bf16* qkv;        // [rows][qkv_stride], q heads first, rotated
  int64_t qkv_stride;
  bf16* out;              // [rows][out_stride]
  int64_t out_stride;
  int64_t groups;         // query heads that share a kv head
  KvCache cache;
  float scale;
  float cap;              // as in QueryTile
  AttentionShared* shared;

  int64_t head_dim() const { return cache.head_dim; }
};

// Called by every thread; shared->next_task must be 0. Ends without a barrier, unless heads were split.
void attention(const Attention& job, AttentionScratch& scratch, const Worker& worker);

// Its parts, in attention_decode.cpp and attention_prefill.cpp.
void decode_attention(const Attention& job, AttentionScratch& scratch, const Worker& worker);
void join_split_heads(const Attention& job, AttentionScratch& scratch, const Worker& worker);
void prefill_attention(const Attention& job, AttentionScratch& scratch);

// A softmax state of `vectors` query vectors in a piece of memory.
int64_t state_floats(int64_t vectors, int64_t head_dim);
SoftmaxState state_at(float* memory, int64_t vectors, int64_t head_dim);
SoftmaxState from_vector(const SoftmaxState& state, int64_t vector, int64_t head_dim);

#include "attention.h"

#include <algorithm>

#include "kernel_scope.h"

int64_t state_floats(int64_t vectors, int64_t head_dim) { return round_up(vectors * (head_dim + 2), 16); }

SoftmaxState state_at(float* memory, int64_t vectors, int64_t head_dim) {
  return {memory + vectors * head_dim, memory + vectors * (head_dim + 1), memory};
}

SoftmaxState from_vector(const SoftmaxState& state, int64_t vector, int64_t head_dim) {
  return {state.max + vector, state.sum + vector, state.out + vector * head_dim};
}

void AttentionScratch::reserve(const AttentionPlan& plan, int64_t heads, const KvCache& cache) {
  const int64_t kv_heads = cache.kv_heads;
  const int64_t head_dim = cache.head_dim;
  const int64_t groups = heads / kv_heads;
  int64_t vectors = heads;
  for (const PrefillTask& task : plan.prefill()) vectors = std::max(vectors, task.rows * groups);
  state.reserve(std::max(state_floats(vectors, head_dim), kv_heads * state_floats(groups, head_dim)));
  part.reserve(state_floats(simd::kQueryVectors, head_dim));
  query.reserve(vectors * query_width(head_dim));
  values.reserve(kChunkTokens * head_dim);
  if (cache.coded) units.reserve(kChunkBlocks * cache.unit_elements());
}

void AttentionShared::reserve(const AttentionPlan& plan, int64_t groups, int64_t head_dim) {
  parts.reserve(static_cast<int64_t>(plan.splits().size()) * plan.max_chunks() * state_floats(groups, head_dim));
}

void attention(const Attention& job, AttentionScratch& scratch, const Worker& worker) {
  [[maybe_unused]] const KernelScope scope;
  decode_attention(job, scratch, worker);
  prefill_attention(job, scratch);
  if (job.plan->splits().empty()) return;
  worker.sync();
  join_split_heads(job, scratch, worker);
}

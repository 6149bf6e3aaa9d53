#include "rope.h"

#include "norm.h"

namespace {

constexpr int64_t kMaxHeadDim = 256;

void load_head(const bf16* source, float* head, int64_t count) {
  for (int64_t i = 0; i < count; i += simd::kLanes) simd::store(head + i, simd::load_bf16(source + i));
}

// Rotates the pairs (i, i + half), the convention of Hugging Face's checkpoints.
void rotate(float* __restrict__ head, const float* __restrict__ cos, const float* __restrict__ sin, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

void rope(const Rope& job, const Worker& worker) {
  const int64_t head_dim = job.cache.head_dim;
  const int64_t kv_heads = job.cache.kv_heads;
  const int64_t heads = job.heads + 2 * kv_heads;
  const Range mine = worker.share(job.rows * heads);
  alignas(64) float head[kMaxHeadDim];
  alignas(64) bf16 rounded[kMaxHeadDim];
  alignas(64) float changed[kMaxHeadDim];
  for (int64_t item = mine.begin; item < mine.end; item++) {
    const int64_t row = item / heads;
    const int64_t h = item % heads;
    bf16* source = job.qkv + row * job.stride + h * head_dim;
    const int64_t block = job.slots[row] / kBlockTokens;
    const int64_t token = job.slots[row] % kBlockTokens;
    if (h >= job.heads + kv_heads) {
      const bool partner_follows = row + 1 < job.rows && job.slots[row + 1] == job.slots[row] + 1;
      job.cache.write_value(source, job.cache.unit(block, h - job.heads - kv_heads), token, token % 2 == 0 && !partner_follows);
      continue;
    }
    const bool is_query = h < job.heads;
    const float* weight = is_query ? job.q_norm : job.k_norm;
    const int64_t half = job.turned / 2;
    load_head(source, head, head_dim);
    const int64_t module = job.q_module + (is_query ? 0 : 1);
    if (weight != nullptr && job.lora != nullptr && changes_norm(*job.lora, module, row)) {
      for (int64_t i = 0; i < head_dim; i += simd::kLanes) {
        simd::store(changed + i, norm_weight(*job.lora, module, row, simd::load(weight + i), i));
      }
      weight = changed;
    }
    if (weight != nullptr) rms_norm_vector(head, weight, job.eps, head_dim);
    if (job.cos != nullptr) rotate(head, job.cos + job.positions[row] * half, job.sin + job.positions[row] * half, half);
    bf16* target = is_query ? source : rounded;
    for (int64_t i = 0; i < head_dim; i += simd::kLanes) simd::store_bf16(target + i, simd::load(head + i));
    if (!is_query) job.cache.write_key(rounded, job.cache.unit(block, h - job.heads), token);
  }
}

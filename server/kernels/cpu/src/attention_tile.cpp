#include "attention_tile.h"

#if defined(ML_TILES)
#include "attention_tiles.h"
namespace level = attention_tiles;
#else
#include "attention_vectors.h"
namespace level = attention_vectors;
#endif

using simd::Float;
using simd::kLanes;

void pack_queries(const bf16* const* query, int64_t count, int64_t head_dim, bf16* packed) {
  level::pack_queries(query, count, head_dim, packed);
}

void gather_values(KeyChunk& chunk, int64_t high, int64_t head_dim, bf16* values) {
  level::gather_values(chunk, high, head_dim, values);
}

void attend(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result) { level::attend(tile, chunk, result); }

void clear(const SoftmaxState& state, int64_t vectors, int64_t head_dim) {
  for (int64_t v = 0; v < vectors; v++) {
    state.max[v] = simd::kLowest;
    state.sum[v] = 0;
  }
  memset(state.out, 0, static_cast<size_t>(vectors * head_dim) * sizeof(float));
}

void fold(const SoftmaxState& state, const SoftmaxState& part, int vectors, int64_t head_dim) {
  constexpr int kRoom = simd::kQueryVectors > 16 ? simd::kQueryVectors : 16;  // for a tile, whole vectors
  alignas(64) float keep[kRoom] = {};
  alignas(64) float take[kRoom] = {};
  for (int v = 0; v < vectors; v++) {
    const float max = state.max[v] > part.max[v] ? state.max[v] : part.max[v];
    keep[v] = state.max[v] - max;
    take[v] = part.max[v] - max;
    state.max[v] = max;
  }
  for (int v = 0; v < vectors; v += kLanes) {
    simd::store(keep + v, simd::exp(simd::load(keep + v)));
    simd::store(take + v, simd::exp(simd::load(take + v)));
  }
  for (int v = 0; v < vectors; v++) {
    const Float a = simd::splat(keep[v]);
    const Float b = simd::splat(take[v]);
    state.sum[v] = state.sum[v] * keep[v] + part.sum[v] * take[v];
    float* out = state.out + v * head_dim;
    const float* more = part.out + v * head_dim;
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      simd::store(out + i, simd::fma(simd::load(more + i), b, simd::mul(simd::load(out + i), a)));
    }
  }
}

void finish(const SoftmaxState& state, int64_t vector, int64_t head_dim, bf16* out) {
  const Float inverse = simd::splat(1.0f / state.sum[vector]);
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    simd::store_bf16(out + i, simd::mul(simd::load(state.out + vector * head_dim + i), inverse));
  }
}

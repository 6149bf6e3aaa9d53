// Attention of a tile of query vectors to a chunk in vector registers, with the bf16 dot product.
#pragma once

#include "attention_tile.h"

namespace attention_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kBlockVectors = kBlockTokens / kLanes;
constexpr int kMaxVectors = simd::kQueryVectors;

struct Scratch {
  alignas(64) float score[kMaxVectors][kChunkTokens];
  alignas(64) bf16 weight[kMaxVectors][kChunkTokens];
};

inline const bf16* line_of(const bf16* unit, int64_t line) { return unit + line * 32; }

// Scores of `Width` vectors of tokens, starting with the chunk's vector `at`.
template <int Count, int Width>
ML_INLINE void score_tokens(const QueryTile& tile, const KeyChunk& chunk, int64_t at, Scratch& scratch) {
  Float acc[Count][Width];
  const bf16* key[Width];
  const bf16* ahead[Width];
  ML_UNROLL
  for (int j = 0; j < Width; j++) {
    key[j] = chunk.unit[(at + j) / kBlockVectors] + (at + j) % kBlockVectors * 2 * kLanes;
    ahead[j] = chunk.ahead[(at + j) / kBlockVectors];
    ML_UNROLL
    for (int v = 0; v < Count; v++) acc[v][j] = simd::zero();
  }
  const bf16* query = tile.query;
  for (int64_t i = 0; i < tile.head_dim / 2; i++) {
    Pairs keys[Width];
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      keys[j] = simd::load_pairs(key[j] + i * 2 * kBlockTokens);
      simd::prefetch(line_of(ahead[j], i));
    }
    ML_UNROLL
    for (int v = 0; v < Count; v++) {
      const Pairs q = simd::splat_pair(query + 2 * v);
      ML_UNROLL
      for (int j = 0; j < Width; j++) acc[v][j] = simd::dot2(acc[v][j], keys[j], q);
    }
    query += 2 * Count;
  }
  const Float scale = simd::splat(tile.scale);
  ML_UNROLL
  for (int v = 0; v < Count; v++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      const int first = static_cast<int>(chunk.first_position + (at + j) * kLanes);
      Float score = simd::mul(acc[v][j], scale);
      if (tile.cap > 0) score = simd::bound_softly(score, tile.cap);
      simd::store(&scratch.score[v][(at + j) * kLanes], simd::keep_range(score, first, tile.low[v], tile.high[v]));
    }
  }
}

// exp(score - max) as bf16, and the chunk's max and sum. A vector that sees nothing gets sum 0.
template <int Count>
ML_INLINE void weigh(int64_t vectors, Scratch& scratch, const SoftmaxState& result) {
  for (int v = 0; v < Count; v++) {
    Float best = simd::splat(simd::kLowest);
    for (int64_t i = 0; i < vectors; i++) best = simd::max(best, simd::load(&scratch.score[v][i * kLanes]));
    result.max[v] = simd::max_lane(best);
    const Float max = simd::splat(result.max[v]);
    Float sum = simd::zero();
    for (int64_t i = 0; i < vectors; i++) {
      const Float weight = simd::exp(simd::sub(simd::load(&scratch.score[v][i * kLanes]), max));
      simd::store_bf16(&scratch.weight[v][i * kLanes], weight);
      sum = simd::add(sum, weight);
    }
    result.sum[v] = simd::sum(sum);
  }
}

// Dimensions [at, at + Width vectors) of the weighted sum of V.
template <int Count, int Width>
ML_INLINE void mix_values(const QueryTile& tile, const KeyChunk& chunk, int64_t pairs, int64_t at, const Scratch& scratch,
                          const SoftmaxState& result) {
  Float acc[Count][Width];
  ML_UNROLL
  for (int v = 0; v < Count; v++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) acc[v][j] = simd::zero();
  }
  const int64_t row = tile.head_dim * 2;
  const int64_t start = kBlockTokens * tile.head_dim + at * 2;
  for (int64_t b = 0; b * 8 < pairs; b++) {
    const bf16* values = chunk.unit[b] + start;
    const bf16* ahead = chunk.ahead[b] + start;
    const bf16* weight = scratch.weight[0] + b * kBlockTokens;
    const int64_t count = pairs - b * 8 < 8 ? pairs - b * 8 : 8;
    for (int64_t t = 0; t < count; t++) {
      Pairs value[Width];
      ML_UNROLL
      for (int j = 0; j < Width; j++) {
        value[j] = simd::load_pairs(values + t * row + j * 2 * kLanes);
        simd::prefetch(ahead + t * row + j * 2 * kLanes);
      }
      ML_UNROLL
      for (int v = 0; v < Count; v++) {
        const Pairs p = simd::splat_pair(weight + v * kChunkTokens + 2 * t);
        ML_UNROLL
        for (int j = 0; j < Width; j++) acc[v][j] = simd::dot2(acc[v][j], value[j], p);
      }
    }
  }
  ML_UNROLL
  for (int v = 0; v < Count; v++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) simd::store(result.out + v * tile.head_dim + at + j * kLanes, acc[v][j]);
  }
}

template <int Count>
void attend_tile(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result) {
  constexpr int kWide = Count <= simd::kQueryVectors / 2 ? 4 : 2;  // accumulators stay within the registers
  Scratch scratch;
  const int64_t vectors = chunk.blocks * kBlockVectors;
  int64_t at = 0;
  for (; at + 2 <= vectors; at += 2) score_tokens<Count, 2>(tile, chunk, at, scratch);
  if (at < vectors) score_tokens<Count, 1>(tile, chunk, at, scratch);
  weigh<Count>(vectors, scratch, result);

  // V is read only as far as somebody looks: what lies behind may be another sequence's leftovers.
  int high = 0;
  for (int v = 0; v < Count; v++) high = tile.high[v] > high ? tile.high[v] : high;
  const int64_t end = chunk.first_position + chunk.blocks * kBlockTokens;
  const int64_t tokens = (high < end ? high : end) - chunk.first_position;
  const int64_t pairs = (tokens + 1) / 2;
  int64_t d = 0;
  for (; d + kWide * kLanes <= tile.head_dim; d += kWide * kLanes) mix_values<Count, kWide>(tile, chunk, pairs, d, scratch, result);
  for (; d + 2 * kLanes <= tile.head_dim; d += 2 * kLanes) mix_values<Count, 2>(tile, chunk, pairs, d, scratch, result);
  for (; d < tile.head_dim; d += kLanes) mix_values<Count, 1>(tile, chunk, pairs, d, scratch, result);
}

// The instance for as many queries as the tile has, 1 to Most.
template <int Most = simd::kQueryVectors>
inline void attend(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result) {
  if (tile.count == Most) return attend_tile<Most>(tile, chunk, result);
  if constexpr (Most > 1) attend<Most - 1>(tile, chunk, result);
}

// [head_dim / 2][count][2]
inline void pack_queries(const bf16* const* query, int64_t count, int64_t head_dim, bf16* packed) {
  for (int64_t i = 0; i < head_dim; i += 2) {
    for (int64_t j = 0; j < count; j++, packed += 2) memcpy(packed, query[j] + i, 4);
  }
}

inline void gather_values(KeyChunk&, int64_t, int64_t, bf16*) {}

}  // namespace attention_vectors

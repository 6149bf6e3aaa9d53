// Attention of a tile of query vectors to a chunk in tile registers. Scores sum over 32 dimensions at a time, outputs
// over the tokens of two blocks, the first of them at an even place in the chunk: so a vector's bits depend on
// positions alone.
#pragma once

#include "attention_tile.h"
#include "tiles.h"

namespace attention_tiles {

using simd::Float;
using simd::kLanes;
using tile_order::kInputs;
using tile_order::kPairs;

constexpr int kMaxVectors = simd::kQueryVectors;
constexpr int64_t kKeyRow = 2 * kBlockTokens * sizeof(bf16);  // bytes of two dimensions of a block's keys

struct Scratch {
  alignas(64) float score[kMaxVectors][kChunkTokens];
  alignas(64) bf16 weight[kMaxVectors][kChunkTokens];
};

// [count][head_dim rounded up to 32]
inline void pack_queries(const bf16* const* query, int64_t count, int64_t head_dim, bf16* packed) {
  const int64_t width = query_width(head_dim);
  for (int64_t j = 0; j < count; j++, packed += width) {
    memcpy(packed, query[j], static_cast<size_t>(head_dim) * sizeof(bf16));
    memset(packed + head_dim, 0, static_cast<size_t>(width - head_dim) * sizeof(bf16));
  }
}

// Adds 32 dimensions to the scores of one or two blocks for up to 16 vectors, or for more.
template <bool Both, bool Two>
ML_INLINE void add_scores(const bf16* query, int64_t width, const bf16* key, const bf16* next_key) {
  const int64_t row = width * static_cast<int64_t>(sizeof(bf16));
  tiles::load<4>(query, row);
  tiles::load<6>(key, kKeyRow);
  if (Both) tiles::load<5>(query + 16 * width, row);
  if (Two) tiles::load<7>(next_key, kKeyRow);
  tiles::dot<0, 4, 6>();
  if (Two) tiles::dot<1, 4, 7>();
  if (Both) tiles::dot<2, 5, 6>();
  if (Both && Two) tiles::dot<3, 5, 7>();
}

template <bool Both, bool Two>
ML_INLINE void clear_sums() {
  tiles::zero<0>();
  if (Two) tiles::zero<1>();
  if (Both) tiles::zero<2>();
  if (Both && Two) tiles::zero<3>();
}

template <bool Both, bool Two>
ML_INLINE void store_sums(float* out, int64_t row) {
  const int64_t bytes = row * static_cast<int64_t>(sizeof(float));
  tiles::store<0>(out, bytes);
  if (Two) tiles::store<1>(out + 16, bytes);
  if (Both) tiles::store<2>(out + 16 * row, bytes);
  if (Both && Two) tiles::store<3>(out + 16 * row + 16, bytes);
}

// The last dimensions of a block's keys, fewer than 32, with zeros behind them: what lies there are values.
struct LastKeys {
  alignas(64) bf16 keys[kInputs * kBlockTokens];

  const bf16* of(const bf16* key, int64_t dimensions) {
    const int64_t used = dimensions * kBlockTokens;
    memcpy(keys, key, static_cast<size_t>(used) * sizeof(bf16));
    memset(keys + used, 0, sizeof keys - static_cast<size_t>(used) * sizeof(bf16));
    return keys;
  }
};

// Scores of one or two blocks, unscaled.
template <bool Both, bool Two>
ML_INLINE void score_blocks(const QueryTile& tile, const KeyChunk& chunk, int64_t block, Scratch& scratch) {
  const int64_t width = query_width(tile.head_dim);
  const bf16* key = chunk.unit[block];
  const bf16* next_key = Two ? chunk.unit[block + 1] : key;
  clear_sums<Both, Two>();
  int64_t d = 0;
  for (; d + kInputs <= tile.head_dim; d += kInputs) {
    add_scores<Both, Two>(tile.query + d, width, key + d * kBlockTokens, next_key + d * kBlockTokens);
  }
  if (d < tile.head_dim) {
    LastKeys last[2];
    const int64_t rest = tile.head_dim - d;
    add_scores<Both, Two>(tile.query + d, width, last[0].of(key + d * kBlockTokens, rest),
                          last[1].of(next_key + d * kBlockTokens, rest));
  }
  store_sums<Both, Two>(&scratch.score[0][block * kBlockTokens], kChunkTokens);
}

// Scales the scores of vector v, -inf where it does not look, and returns the greatest of them.
ML_INLINE float scale_scores(const QueryTile& tile, const KeyChunk& chunk, int v, float* score) {
  const Float scale = simd::splat(tile.scale);
  const int64_t tokens = chunk.blocks * kBlockTokens;
  const bool whole = tile.low[v] <= chunk.first_position && tile.high[v] >= chunk.first_position + tokens;
  Float best = simd::splat(simd::kLowest);
  for (int64_t i = 0; i < tokens; i += kLanes) {
    Float scaled = simd::mul(simd::load(score + i), scale);
    if (tile.cap > 0) scaled = simd::bound_softly(scaled, tile.cap);
    if (!whole) scaled = simd::keep_range(scaled, static_cast<int>(chunk.first_position + i), tile.low[v], tile.high[v]);
    simd::store(score + i, scaled);
    best = simd::max(best, scaled);
  }
  return simd::max_lane(best);
}

// exp(score - max) as bf16, and the chunk's max and sum. A vector that sees nothing gets sum 0. `place` is that of the
// first block's first token in the chunk; zeros stand where the products take tokens of no block.
ML_INLINE void weigh(const QueryTile& tile, const KeyChunk& chunk, int64_t place, Scratch& scratch, const SoftmaxState& result) {
  const int64_t tokens = chunk.blocks * kBlockTokens;
  const bool before = place % kInputs != 0;
  const bool behind = (place + tokens) % kInputs != 0;
  for (int v = 0; v < tile.count; v++) {
    float* score = scratch.score[v];
    bf16* weights = scratch.weight[v] + place;
    result.max[v] = scale_scores(tile, chunk, v, score);
    const Float max = simd::splat(result.max[v]);
    Float sum = simd::zero();
    for (int64_t i = 0; i < tokens; i += kLanes) {
      const Float weight = simd::exp(simd::sub(simd::load(score + i), max));
      simd::store_bf16(weights + i, weight);
      sum = simd::add(sum, weight);
    }
    result.sum[v] = simd::sum(sum);
    if (before) memset(weights - kBlockTokens, 0, kBlockTokens * sizeof(bf16));
    if (behind) memset(weights + tokens, 0, kBlockTokens * sizeof(bf16));
  }
}

// 16 or 32 dimensions from d on of the weighted sum of the values at places [begin, end) of the chunk.
template <bool Both, bool Two>
ML_INLINE void mix_values(const QueryTile& tile, const bf16* values, int64_t begin, int64_t end, int64_t d,
                          const Scratch& scratch, float* out) {
  constexpr int64_t kWeightRow = kChunkTokens * sizeof(bf16);
  const int64_t row = tile.head_dim * 2 * static_cast<int64_t>(sizeof(bf16));
  clear_sums<Both, Two>();
  for (int64_t t = begin; t < end; t += kInputs) {
    const bf16* value = values + t * tile.head_dim + 2 * d;
    tiles::load<4>(&scratch.weight[0][t], kWeightRow);
    tiles::load<6>(value, row);
    if (Both) tiles::load<5>(&scratch.weight[16][t], kWeightRow);
    if (Two) tiles::load<7>(value + 2 * 16, row);
    tiles::dot<0, 4, 6>();
    if (Two) tiles::dot<1, 4, 7>();
    if (Both) tiles::dot<2, 5, 6>();
    if (Both && Two) tiles::dot<3, 5, 7>();
  }
  store_sums<Both, Two>(out + d, tile.head_dim);
}

ML_INLINE void prefetch_keys(const KeyChunk& chunk, int64_t block, int64_t head_dim) {
  const bf16* ahead = chunk.ahead[block];
  if (ahead == chunk.unit[block]) return;
  for (int64_t i = 0; i < kBlockTokens * head_dim; i += 32) simd::prefetch(ahead + i);
}

template <bool Both>
void attend_tile(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result) {
  Scratch scratch;
  int64_t block = 0;
  for (; block + 2 <= chunk.blocks; block += 2) {
    score_blocks<Both, true>(tile, chunk, block, scratch);
    prefetch_keys(chunk, block, tile.head_dim);
    prefetch_keys(chunk, block + 1, tile.head_dim);
  }
  if (block < chunk.blocks) {
    score_blocks<Both, false>(tile, chunk, block, scratch);
    prefetch_keys(chunk, block, tile.head_dim);
  }
  const int64_t place = chunk.first_position % kChunkTokens;
  weigh(tile, chunk, place, scratch, result);
  const int64_t begin = place - place % kInputs;
  const int64_t end = place + chunk.blocks * kBlockTokens;
  int64_t d = 0;
  for (; d + 32 <= tile.head_dim; d += 32) mix_values<Both, true>(tile, chunk.values, begin, end, d, scratch, result.out);
  if (d < tile.head_dim) mix_values<Both, false>(tile, chunk.values, begin, end, d, scratch, result.out);
}

inline void attend(const QueryTile& tile, const KeyChunk& chunk, const SoftmaxState& result) {
  tiles::configure(tiles::Use::kTwoByTwo, tile.count, tiles::two_by_two);
  if (tile.count > 16) return attend_tile<true>(tile, chunk, result);
  attend_tile<false>(tile, chunk, result);
}

inline void gather_values(KeyChunk& chunk, int64_t high, int64_t head_dim, bf16* values) {
  chunk.values = values;
  const int64_t unit = kBlockTokens * head_dim;
  const int64_t place = chunk.first_position % kChunkTokens;
  const int64_t end = chunk.first_position + chunk.blocks * kBlockTokens;
  const int64_t pairs = ((high < end ? high : end) - chunk.first_position + 1) / 2;
  bf16* const first = values + place * head_dim;
  if (place % kInputs != 0) memset(first - unit, 0, static_cast<size_t>(unit) * sizeof(bf16));
  for (int64_t b = 0; b < chunk.blocks; b++) {
    const int64_t count = pairs - b * 8 < 8 ? pairs - b * 8 : 8;
    const bf16* from = chunk.unit[b] + unit;
    const bf16* ahead = chunk.ahead[b] + unit;
    const bool far = chunk.ahead[b] != chunk.unit[b];
    bf16* to = first + b * unit;
    for (int64_t i = 0; i < count * head_dim * 2; i += 2 * kLanes) {
      simd::store_pairs(to + i, simd::load_pairs(from + i));
      if (far) simd::prefetch(ahead + i);
    }
    if (count < 8) memset(to + count * head_dim * 2, 0, static_cast<size_t>((8 - count) * head_dim * 2) * sizeof(bf16));
  }
  if ((place + chunk.blocks * kBlockTokens) % kInputs != 0) {
    memset(first + chunk.blocks * unit, 0, static_cast<size_t>(unit) * sizeof(bf16));
  }
}

}  // namespace attention_tiles

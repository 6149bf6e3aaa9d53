// Layout of the paged KV cache of one layer: [block][kv head] units, each K as [head_dim / 2][16 tokens][2]
// followed by V as [8 token pairs][head_dim][2]. Both halves are what the bf16 dot product reads: scores
// reduce over pairs of dimensions with tokens in the lanes, outputs over pairs of tokens with dimensions
// in the lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

constexpr int64_t kBlockTokens = 16;

struct KvCache {
  bf16* data;         // of one layer
  int64_t kv_heads;
  int64_t head_dim;

  int64_t unit_elements() const { return 2 * kBlockTokens * head_dim; }
  bf16* unit(int64_t block, int64_t head) const { return data + (block * kv_heads + head) * unit_elements(); }
  int64_t values_at() const { return kBlockTokens * head_dim; }  // of V inside a unit
};

inline void write_key(const bf16* head, bf16* unit, int64_t token, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim; i += 2) memcpy(unit + i * kBlockTokens + token * 2, head + i, 4);
}

// A token in the even place of a pair also clears the odd place when nobody else writes it in this step:
// a stale NaN there would survive multiplication with weight 0.
inline void write_value(const bf16* head, bf16* values, int64_t token, int64_t head_dim, bool clear_partner) {
  bf16* pair = values + token / 2 * head_dim * 2;
  if (clear_partner) {
    for (int64_t i = 0; i < head_dim; i++) {
      const bf16 both[2] = {head[i], 0};
      memcpy(pair + 2 * i, both, sizeof both);
    }
    return;
  }
  for (int64_t i = 0; i < head_dim; i++) pair[2 * i + token % 2] = head[i];
}

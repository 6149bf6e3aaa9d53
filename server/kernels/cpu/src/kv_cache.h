// Layout of the paged KV cache of one layer: [block][kv head] units, each K as [head_dim / 2][16 tokens][2]
// followed by V as [8 token pairs][head_dim][2]. Both halves are what the bf16 dot product reads: scores
// reduce over pairs of dimensions with tokens in the lanes, outputs over pairs of tokens with dimensions
// in the lanes.
//
// A unit holds bf16, or 8-bit codes in the same places with the bf16 scales of the 16 keys and of the 16 values
// behind them. A scale depends on nothing but the vector it is of, so it is written once, with the vector.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

constexpr int64_t kBlockTokens = 16;

struct KvCache {
  char* data;         // of one layer
  int64_t kv_heads;
  int64_t head_dim;
  bool coded;         // whether units hold codes

  int64_t unit_elements() const { return 2 * kBlockTokens * head_dim; }
  int64_t unit_bytes() const { return coded ? unit_elements() + 2 * kBlockTokens * 2 : unit_elements() * 2; }
  char* unit(int64_t block, int64_t head) const { return data + (block * kv_heads + head) * unit_bytes(); }
  int64_t values_at() const { return kBlockTokens * head_dim; }  // of V inside a unit, in elements

  // The unit as bf16: where it lies, or made from its codes in `room` for unit_elements().
  const bf16* open(const char* unit, bf16* room) const;

  void write_key(const bf16* head, char* unit, int64_t token) const;

  // A token in the even place of a pair also clears the odd place when nobody else writes it in this step:
  // a stale NaN there would survive multiplication with weight 0.
  void write_value(const bf16* head, char* unit, int64_t token, bool clear_partner) const;

 private:
  bf16* scales(char* unit) const { return reinterpret_cast<bf16*>(unit + unit_elements()); }
};

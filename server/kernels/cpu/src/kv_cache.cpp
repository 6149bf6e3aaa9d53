#include "kv_cache.h"

#include "unpack_lanes.h"

namespace {

constexpr int64_t kLine = 2 * kBlockTokens;  // elements that share a pattern of scales
constexpr int kVectors = kLine / simd::kLanes;
constexpr float kLargest = 127.0f;
constexpr int64_t kMaxHeadDim = 256;

// The scale of a vector, and its codes one after the other.
bf16 encode(const bf16* head, int64_t head_dim, int8_t* codes) {
  simd::Float largest = simd::zero();
  for (int64_t i = 0; i < head_dim; i += simd::kLanes) {
    const simd::Float v = simd::load_bf16(head + i);
    largest = simd::max(simd::max(v, simd::sub(simd::zero(), v)), largest);  // this order lets no NaN through
  }
  const bf16 scale = to_bf16(simd::max_lane(largest) / kLargest);
  const float step = to_float(scale);
  const simd::Float inverse = simd::splat(step > 0.0f ? 1.0f / step : 0.0f);
  alignas(64) float rounded[kMaxHeadDim];
  for (int64_t i = 0; i < head_dim; i += simd::kLanes) {
    const simd::Float code = simd::round_even(simd::mul(simd::load_bf16(head + i), inverse));
    simd::store(rounded + i, simd::max(simd::min(code, simd::splat(kLargest)), simd::splat(-kLargest)));
  }
  for (int64_t i = 0; i < head_dim; i++) codes[i] = static_cast<int8_t>(rounded[i]);
  return scale;
}

// Lines of codes, of which every one has the same scales. A product of a code and a scale is exact in fp32: all
// instruction sets round it alike.
ML_INLINE void decode(const int8_t* codes, int64_t count, const simd::Float (&scale)[kVectors], bf16* out) {
  for (int64_t i = 0; i < count; i += kLine) {
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) {
      const int64_t at = i + v * simd::kLanes;
      simd::store_bf16(out + at, simd::mul(simd::from_bytes(codes + at), scale[v]));
    }
  }
}

}  // namespace

const bf16* KvCache::open(const char* unit, bf16* room) const {
  if (!coded) return reinterpret_cast<const bf16*>(unit);
  const int8_t* codes = reinterpret_cast<const int8_t*>(unit);
  bf16 stored[2 * kBlockTokens];
  memcpy(stored, unit + unit_elements(), sizeof stored);
  alignas(64) float factors[2 * kBlockTokens];  // of the 16 keys, then of the 16 values
  for (int64_t i = 0; i < 2 * kBlockTokens; i += simd::kLanes) simd::store(factors + i, simd::load_bf16(stored + i));
  alignas(64) float of_pair[kBlockTokens / 2][simd::kLanes];  // the two of a pair of values, in turns
  for (int64_t pair = 0; pair < kBlockTokens / 2; pair++) {
    for (int64_t i = 0; i < simd::kLanes; i += 2) {
      memcpy(of_pair[pair] + i, factors + kBlockTokens + 2 * pair, 2 * sizeof(float));
    }
  }
  simd::Float scale[kVectors];
  ML_UNROLL
  for (int v = 0; v < kVectors; v++) scale[v] = simd::load_twice(factors + v * simd::kLanes / 2);
  decode(codes, values_at(), scale, room);
  for (int64_t pair = 0; pair < kBlockTokens / 2; pair++) {
    ML_UNROLL
    for (int v = 0; v < kVectors; v++) scale[v] = simd::load(of_pair[pair]);
    const int64_t at = values_at() + pair * 2 * head_dim;
    decode(codes + at, 2 * head_dim, scale, room + at);
  }
  return room;
}

void KvCache::write_key(const bf16* head, char* unit, int64_t token) const {
  if (coded) {
    int8_t codes[kMaxHeadDim];
    scales(unit)[token] = encode(head, head_dim, codes);
    for (int64_t i = 0; i < head_dim; i += 2) memcpy(unit + i * kBlockTokens + token * 2, codes + i, 2);
    return;
  }
  bf16* keys = reinterpret_cast<bf16*>(unit);
  for (int64_t i = 0; i < head_dim; i += 2) memcpy(keys + i * kBlockTokens + token * 2, head + i, 4);
}

void KvCache::write_value(const bf16* head, char* unit, int64_t token, bool clear_partner) const {
  const int64_t at = values_at() + token / 2 * head_dim * 2;
  if (coded) {
    int8_t codes[kMaxHeadDim];
    bf16* scale = scales(unit) + kBlockTokens + token;
    scale[0] = encode(head, head_dim, codes);
    if (clear_partner) scale[1] = 0;
    for (int64_t i = 0; i < head_dim; i++) unit[at + 2 * i + token % 2] = static_cast<char>(codes[i]);
    return;
  }
  bf16* pair = reinterpret_cast<bf16*>(unit) + at;
  if (clear_partner) {
    for (int64_t i = 0; i < head_dim; i++) {
      const bf16 both[2] = {head[i], 0};
      memcpy(pair + 2 * i, both, sizeof both);
    }
    return;
  }
  for (int64_t i = 0; i < head_dim; i++) pair[2 * i + token % 2] = head[i];
}

#include "engine.h"

// What adapters put into the cache in place of computed keys and values: few positions, once a sequence.
StepFault Engine::fill_cache(const int64_t* slots, int64_t count, int64_t start) {
  const Decoder& d = decoder_;
  const int64_t size = d.head_dim;
  const int64_t half = d.kv_heads * size;  // of a position in one layer: the keys, then the values
  for (int64_t i = 0; i < count; i++) {
    if (slots[i] < 0 || slots[i] >= d.num_blocks * kBlockTokens) return kBadSlot;
  }
  if (start < 0 || start + count * d.layers * 2 * half > d.pool_elements) return kBadEntry;
  const bf16* entry = d.pool + start;
  for (int64_t i = 0; i < count; i++) {
    const int64_t block = slots[i] / kBlockTokens;
    const int64_t token = slots[i] % kBlockTokens;
    const bool partner_follows = i + 1 < count && slots[i + 1] == slots[i] + 1;
    for (int64_t layer = 0; layer < d.layers; layer++, entry += 2 * half) {
      const KvCache cache = cache_of(layer);
      for (int64_t head = 0; head < d.kv_heads; head++) {
        char* unit = cache.unit(block, head);
        cache.write_key(entry + head * size, unit, token);
        cache.write_value(entry + half + head * size, unit, token, token % 2 == 0 && !partner_follows);
      }
    }
  }
  return kStepDone;
}

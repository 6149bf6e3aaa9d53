// A x for rows of A that lie one after the other in the pool.
#include "kernel_scope.h"
#include "lora.h"

#if defined(ML_TILES)
#include "lora_shrink_tiles.h"
namespace level = lora_shrink_tiles;
#else
#include "lora_shrink_vectors.h"
namespace level = lora_shrink_vectors;
#endif

void shrink_direct(const LoraPages& pages, const LoraSite& site, const LoraSegment& segment, float weight, LoraShare& share,
                   const LoraScratch& scratch) {
  level::shrink_rows(pages.a, pages.rank, site, segment.row, segment.rows, weight, scratch.t.data(), scratch.t_stride, scratch,
                     &share.stream);
}

void lora_shrink(const LoraStep& step, const LoraSite& site, const LoraShare& share, const LoraScratch& scratch) {
  [[maybe_unused]] const KernelScope scope;
  for (const ShrinkItem& item : share.shrink) {
    level::shrink_rows(item.a, item.ranks, site, item.row, item.rows, item.weight, step.t_at(item.row, item.t_pair),
                       step.t_stride, scratch, nullptr);
  }
}

// Changes of whole weights: of one or two rows read front to back, of more computed before the GEMM like A x.
#include <algorithm>

#include "lora_delta.h"

using simd::kLanes;

int64_t count_changes(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module) {
  int64_t count = 0;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) count += vectors_of(step, site, e, module).change != nullptr;
  return count;
}

namespace {

// acc += a row's first `count` products, of which acc has the even and the odd ones apart.
void add_apart(const LoraScratch& scratch, int64_t row, int64_t count, float* acc) {
  for (int64_t c = 0; c < count; c++) {
    const int64_t place = c / (2 * kLanes) * (2 * kLanes) + c % 2 * kLanes + c % (2 * kLanes) / 2;
    acc[place] += to_float(scratch.t_at(row, c / 2)[c % 2]);
  }
}

}  // namespace

void add_changes(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t module, LoraShare& share,
                 const LoraScratch& scratch, float* acc) {
  const int64_t length = round_up(site.out[module], kPageAlign);
  const int64_t count = item.end - item.begin;
  for (int64_t e = item.segment->entry; e < item.segment->entry_end; e++) {
    const LoraVectors vectors = vectors_of(step, site, e, module);
    if (vectors.change == nullptr) continue;
    for (int64_t from = item.begin; from < site.out[module]; from += site.part_of(module)) {
      const bf16* rows = vectors.change + from * round_up(site.in, kPageAlign);
      shrink_direct({rows, nullptr, count}, site, *item.segment, vectors.weight, share, scratch);
      for (int64_t m = 0; m < item.segment->rows; m++) add_apart(scratch, m, count, acc + m * length + from);
    }
  }
}

// 16 outputs of tiled rows, from `column` of the module on.
void LoraDelta::add_changes_of(const DeltaRun& run, int64_t module, int half, int64_t column,
                               float (*sum)[kBlockOutputs]) const {
  const LoraSegment& segment = *run.segment;
  int64_t pair = step_.change_pair + column / 2;
  for (int64_t m = 0; m < module; m++) pair += count_changes(step_, site_, segment, m) * pairs_of(site_.out[m]);
  const int64_t count = std::min<int64_t>(16, site_.out[module] - column);
  for (int64_t i = count_changes(step_, site_, segment, module); i > 0; i--, pair += pairs_of(site_.out[module])) {
    for (int64_t c = 0; c < count; c++) {
      for (int m = 0; m < run.rows; m++) {
        sum[m][half * 16 + c] += to_float(step_.t_at(row_ + run.first + m, pair + c / 2)[c % 2]);
      }
    }
  }
}

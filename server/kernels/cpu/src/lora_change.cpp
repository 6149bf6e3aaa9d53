// Changes of whole weights: of one or two rows read front to back, of more computed before the GEMM like A x.
#include <algorithm>

#include "lora_delta.h"

using simd::kLanes;

int64_t count_changes(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module) {
  int64_t count = 0;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) count += vectors_of(step, site, e, module).change != nullptr;
  return count;
}

void add_changes(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t module, bf16* t,
                 ByteStream* ahead, float* acc) {
  const int64_t length = round_up(site.out[module], kPageAlign);
  for (int64_t e = item.segment->entry; e < item.segment->entry_end; e++) {
    const LoraVectors vectors = vectors_of(step, site, e, module);
    if (vectors.change == nullptr) continue;
    const bf16* first = vectors.change + item.begin * round_up(site.in, kPageAlign);
    shrink_rows(first, item.end - item.begin, site, item.segment->row, item.segment->rows, vectors.weight, t,
                2 * kDirectRows, ahead);
    for (int64_t m = 0; m < item.segment->rows; m++) {
      float* row = acc + m * length + item.begin;
      const bf16* product = t + 2 * m;
      for (int64_t c = 0; c < item.end - item.begin; c++) {
        const int64_t place = c / (2 * kLanes) * (2 * kLanes) + c % 2 * kLanes + c % (2 * kLanes) / 2;
        row[place] += to_float(product[c / 2 * 2 * kDirectRows + c % 2]);
      }
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
    const bf16* product = step_.t.data() + pair * step_.t_stride + 2 * (row_ + run.first);
    for (int64_t c = 0; c < count; c++) {
      const bf16* output = product + c / 2 * step_.t_stride + c % 2;
      for (int m = 0; m < run.rows; m++) sum[m][half * 16 + c] += to_float(output[2 * m]);
    }
  }
}

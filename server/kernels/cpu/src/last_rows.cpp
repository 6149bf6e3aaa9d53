#include "last_rows.h"

bool LastRows::find(const Step& step) {
  if (step.logits_count >= step.rows) return false;
  start_.assign(1, 0);
  int64_t taken = 0;
  for (int64_t s = 0; s < step.sequences; s++) {
    const int64_t begin = step.query_start[s];
    const int64_t end = step.query_start[s + 1];
    const int64_t first = taken;
    while (taken < step.logits_count && step.logits_rows[taken] < end) taken++;
    const int64_t count = taken - first;
    if (count > end - begin) return false;
    for (int64_t i = 0; i < count; i++) {
      if (step.logits_rows[first + i] != end - count + i) return false;
    }
    start_.push_back(static_cast<int32_t>(taken));
  }
  step_ = step;
  step_.rows = step.logits_count;
  step_.query_start = start_.data();
  step_.logits_rows = nullptr;
  source_ = step.logits_rows;
  return taken == step.logits_count;
}

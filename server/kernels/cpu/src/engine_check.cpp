#include "engine.h"

// Arguments that would make a kernel read or write outside its memory are faults of the caller's
// bookkeeping. Finding them costs microseconds.
StepFault Engine::check(const Step& step) const {
  const Decoder& d = decoder_;
  for (int64_t r = 0; r < step.rows; r++) {
    if (step.token_ids[r] < 0 || step.token_ids[r] >= d.vocab) return kBadToken;
    if (step.positions[r] < 0 || step.positions[r] >= d.positions) return kBadPosition;
    if (step.slots[r] < 0 || step.slots[r] >= d.num_blocks * kBlockTokens) return kBadSlot;
  }
  if (step.query_start[0] != 0 || step.query_start[step.sequences] != step.rows) return kBadSequence;
  for (int64_t s = 0; s < step.sequences; s++) {
    const int64_t rows = step.query_start[s + 1] - step.query_start[s];
    const int64_t blocks = (step.context[s] + kBlockTokens - 1) / kBlockTokens;
    if (rows < 0 || step.context[s] < rows || blocks > step.table_width) return kBadSequence;
    for (int64_t b = 0; b < blocks; b++) {
      const int32_t block = step.block_tables[s * step.table_width + b];
      if (block < 0 || block >= d.num_blocks) return kBadBlock;
    }
  }
  for (int64_t i = 0; i < step.logits_count; i++) {
    if (step.logits_rows[i] < 0 || step.logits_rows[i] >= step.rows) return kBadLogitsRow;
  }
  for (int64_t i = 0; i < step.given_count; i++) {
    if (step.given_rows[i] < 0 || step.given_rows[i] >= step.rows) return kBadGivenRow;
  }
  if (step.lora == nullptr) return kStepDone;
  for (int64_t s = 0; s < step.sequences; s++) {
    for (int64_t e = step.lora->start[s]; e < step.lora->start[s + 1]; e++) {
      if (step.lora->adapter[e] < 0 || step.lora->adapter[e] >= step.lora->adapters) return kBadAdapter;
    }
  }
  return kStepDone;
}

#include "lora_delta.h"

#include <algorithm>

#if defined(ML_TILES)
#include "lora_delta_tiles.h"
namespace level = lora_delta_tiles;
#else
#include "lora_delta_vectors.h"
namespace level = lora_delta_vectors;
#endif

namespace {

using simd::kLanes;

constexpr int64_t kPairElements = 2 * 16;  // of 16 outputs of two ranks
alignas(64) const bf16 kNoRank[16] = {};

// 16 outputs of all ranks to pairs of ranks, as many as t has. Returns the end of what it wrote.
bf16* pack_pairs(const bf16* b, int64_t length, int64_t rank, bf16* out) {
  for (int64_t r = 0; r < rank; r += 2, b += 2 * length) {
    const bf16* second = r + 1 < rank ? b + length : kNoRank;
    for (int j = 0; j < 16; j += kLanes, out += 2 * kLanes) {
      simd::store_pairs(out, simd::join_pairs(b + j, second + j));
    }
  }
  const int64_t behind = pairs_of(rank) - (rank + 1) / 2;
  memset(out, 0, static_cast<size_t>(behind * kPairElements) * sizeof(bf16));
  return out + behind * kPairElements;
}

}  // namespace

void LoraDelta::begin_tile(int64_t row, int rows, int64_t block) {
  if (block != block_) packed_entry_ = -1;
  row_ = row;
  rows_ = rows;
  block_ = block;
  find_runs();
  term_count_ = lines_ = fetched_ = next_term_ = next_rank_ = 0;
  for (int i = 0; i < run_count_; i++) {
    if (runs_[i].segment->entry != packed_entry_) list_lines(*runs_[i].segment);
  }
}

void LoraDelta::find_runs() {
  run_count_ = 0;
  for (int64_t row = row_; row < row_ + rows_;) {
    const LoraSegment& segment = step_.segments[static_cast<size_t>(step_.segment_of[static_cast<size_t>(row)])];
    const int64_t end = std::min(segment.end(), row_ + rows_);
    if (segment.tiled()) runs_[run_count_++] = {&segment, static_cast<int>(row - row_), static_cast<int>(end - row)};
    row = end;
  }
}

// Lines are fetched in pairs, as far as the memory's rows are concerned: at every 64th output.
void LoraDelta::list_lines(const LoraSegment& segment) {
  int64_t module_begin = 0;
  for (int64_t m = 0; m < site_.modules; m++) {
    const int64_t length = round_up(site_.out[m], kPageAlign);
    for (int half = 0; half < 2; half++) {
      const int64_t column = column_of(m, module_begin, half);
      if (column < 0 || column >= site_.out[m]) continue;
      if (column % 64 != 0 && (block_ != first_block_ || half != 0)) continue;
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraPages pages = pages_of(step_, site_, e, m);
        const int lines = column % 64 < 32 ? 2 : 1;
        terms_[term_count_++] = {pages.b + column, length, pages.rank, lines};
        lines_ += lines * pages.rank;
      }
    }
    module_begin += site_.out[m];
  }
}

void LoraDelta::fetch_due(int64_t done, int64_t steps) {
  const int64_t due = lines_ * done / steps;
  while (fetched_ < due) {
    const DeltaLines& term = terms_[next_term_];
    if (next_rank_ == term.rank) {
      next_term_++;
      next_rank_ = 0;
      continue;
    }
    const bf16* line = term.b + next_rank_++ * term.length;
    simd::prefetch(line);
    if (term.lines == 2) simd::prefetch(line + 32);
    fetched_ += term.lines;
  }
}

// Puts the mix's columns of the block into the panel, unless they are there.
void LoraDelta::pack(const LoraSegment& segment) {
  if (segment.entry == packed_entry_) return;
  packed_entry_ = segment.entry;
  half_[0] = half_[1] = {panel_, 0, 0};
  bf16* out = panel_;
  int64_t module_begin = 0;
  int64_t t_pair = 0;
  for (int64_t m = 0; m < site_.modules; m++) {
    const int64_t length = round_up(site_.out[m], kPageAlign);
    for (int half = 0; half < 2; half++) {
      const int64_t column = column_of(m, module_begin, half);
      if (column < 0 || column >= site_.out[m]) continue;
      const bf16* begin = out;
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraPages pages = pages_of(step_, site_, e, m);
        out = pack_pairs(pages.b + column, length, pages.rank, out);
      }
      half_[half] = {begin, (out - begin) / kPairElements, t_pair};
    }
    for (int64_t e = segment.entry; e < segment.entry_end; e++) t_pair += pairs_of(pages_of(step_, site_, e, m).rank);
    module_begin += site_.out[m];
  }
}

void LoraDelta::add(float (*tile)[kBlockOutputs]) {
  for (int i = 0; i < run_count_; i++) {
    const DeltaRun& run = runs_[i];
    pack(*run.segment);
    if (step_.any_vectors) {
      add_with_vectors(run, tile + run.first);
    } else {
      add_product(run, true, tile + run.first);
    }
  }
}

void LoraDelta::add_product(const DeltaRun& run, bool onto, float (*out)[kBlockOutputs]) const {
  for (int half = 0; half < 2; half++) {
    if (half_[half].pairs > 0) level::add_half(step_, row_, rows_, run, half_[half], onto, out[0] + half * 16);
  }
}

void LoraDelta::add_with_vectors(const DeltaRun& run, float (*tile)[kBlockOutputs]) const {
  alignas(64) float sum[simd::kGemmRows][kBlockOutputs];  // the delta alone, as it is for direct rows
  memset(sum, 0, static_cast<size_t>(run.rows) * sizeof sum[0]);
  add_product(run, false, sum);
  int64_t module_begin = 0;
  for (int64_t m = 0; m < site_.modules; m++) {
    for (int half = 0; half < 2; half++) {
      const int64_t column = column_of(m, module_begin, half);
      if (column < 0 || column >= site_.out[m]) continue;
      if (step_.max_changes > 0) add_changes_of(run, m, half, column, sum);
      add_vectors_of(run, m, half, column, tile, sum);
    }
    module_begin += site_.out[m];
  }
  for (int m = 0; m < run.rows; m++) {
    for (int c = 0; c < kBlockOutputs; c += kLanes) {
      simd::store(tile[m] + c, simd::add(simd::load(tile[m] + c), simd::load(sum[m] + c)));
    }
  }
}

// Adds what the vectors of a module give for one half of the block, from `column` of the module on, to the deltas `sum`.
void LoraDelta::add_vectors_of(const DeltaRun& run, int64_t module, int half, int64_t column, const float (*tile)[kBlockOutputs],
                               float (*sum)[kBlockOutputs]) const {
  const LoraSegment& segment = *run.segment;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const LoraVectors vectors = vectors_of(step_, site_, e, module);
    if (!vectors.at_output()) continue;
    for (int m = 0; m < run.rows; m++) {
      for (int c = 0; c < 16; c += kLanes) {
        float* delta = sum[m] + half * 16 + c;
        simd::store(delta, add_vectors(vectors, column + c, simd::load(tile[m] + half * 16 + c), simd::load(delta)));
      }
    }
  }
  if (!scales_input(step_, site_, segment, module)) return;
  const float* image = image_of(step_, row_ + run.first, module) + block_ * kBlockOutputs + half * 16;
  for (int m = 0; m < run.rows; m++, image += step_.output_stride) {
    for (int c = 0; c < 16; c += kLanes) {
      float* delta = sum[m] + half * 16 + c;
      simd::store(delta, simd::add(simd::load(delta), simd::load(image + c)));
    }
  }
}

bool LoraDelta::keep_direct(int row, const float* outputs) const {
  const int64_t direct = step_.direct_row[static_cast<size_t>(row_ + row)];
  if (direct < 0) return false;
  float* y = step_.outputs.data() + direct * step_.output_stride + block_ * kBlockOutputs;
  for (int c = 0; c < kBlockOutputs; c += kLanes) simd::store(y + c, simd::load(outputs + c));
  return true;
}

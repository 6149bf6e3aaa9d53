#include "lora_delta.h"

#include <algorithm>

namespace {

using simd::Float;
using simd::kLanes;

// B t of the term's rows on top of `sum`, which the last adapter of a mix adds to `tile` (if not null). All
// rows of the tile are multiplied by a column of B while it is in registers: factors are one pointer away.
template <int Rows, int Vectors>
ML_INLINE void add_columns(const DeltaTerm& term, int column, int64_t t_rows, float (*sum)[kBlockOutputs],
                           float (*tile)[kBlockOutputs]) {
  Float acc[Rows][Vectors];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < Vectors; j++) {
      acc[m][j] = term.first ? simd::zero() : simd::load(sum[term.row + m] + column + j * kLanes);
    }
  }
  const bf16* b = term.b + (column - term.column);
  const float* t = term.t;
  for (int64_t r = 0; r < term.rank; r++, b += term.length, t += t_rows) {
    Float weight[Vectors];
    ML_UNROLL
    for (int j = 0; j < Vectors; j++) weight[j] = simd::load_bf16(b + j * kLanes);
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      const Float factor = simd::splat(t[m]);
      ML_UNROLL
      for (int j = 0; j < Vectors; j++) acc[m][j] = simd::fma(weight[j], factor, acc[m][j]);
    }
  }
  const bool ends = term.last && tile != nullptr;
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < Vectors; j++) {
      float* y = (ends ? tile : sum)[term.row + m] + column + j * kLanes;
      simd::store(y, ends ? simd::add(simd::load(y), acc[m][j]) : acc[m][j]);
    }
  }
}

constexpr int kHalf = 16 / kLanes;             // vectors of 16 outputs
constexpr bool kWholeBlocks = kLanes == 16;    // registers suffice for all 32 outputs of a tile

template <int Rows>
void add_term(const DeltaTerm& term, int64_t t_rows, float (*sum)[kBlockOutputs], float (*tile)[kBlockOutputs]) {
  if (kWholeBlocks && term.columns == kBlockOutputs) return add_columns<Rows, 2 * kHalf>(term, 0, t_rows, sum, tile);
  for (int c = 0; c < term.columns; c += 16) add_columns<Rows, kHalf>(term, term.column + c, t_rows, sum, tile);
}

void add_term(const DeltaTerm& term, int64_t t_rows, float (*sum)[kBlockOutputs], float (*tile)[kBlockOutputs]) {
  switch (term.rows) {
    case 1: return add_term<1>(term, t_rows, sum, tile);
    case 2: return add_term<2>(term, t_rows, sum, tile);
    case 3: return add_term<3>(term, t_rows, sum, tile);
    case 4: return add_term<4>(term, t_rows, sum, tile);
#if !defined(ML_SHORT_TILES)
    case 5: return add_term<5>(term, t_rows, sum, tile);
    case 6: return add_term<6>(term, t_rows, sum, tile);
    case 7: return add_term<7>(term, t_rows, sum, tile);
    case 8: return add_term<8>(term, t_rows, sum, tile);
    case 9: return add_term<9>(term, t_rows, sum, tile);
    case 10: return add_term<10>(term, t_rows, sum, tile);
    case 11: return add_term<11>(term, t_rows, sum, tile);
    case 12: return add_term<12>(term, t_rows, sum, tile);
#endif
    default: __builtin_unreachable();
  }
}

// Adds to the deltas `sum` of the outputs `tile`.
void add_term(const VectorTerm& term, int64_t image_stride, const float (*tile)[kBlockOutputs], float (*sum)[kBlockOutputs]) {
  for (int m = 0; m < term.rows; m++) {
    const float* y = tile[term.row + m] + term.column;
    float* delta = sum[term.row + m] + term.column;
    for (int c = 0; c < 16; c += kLanes) {
      Float piece = simd::load(delta + c);
      if (term.image != nullptr) {
        piece = simd::add(piece, simd::load(term.image + m * image_stride + c));
      } else {
        piece = add_vectors(term.vectors, term.at + c, simd::load(y + c), piece);
      }
      simd::store(delta + c, piece);
    }
  }
}

}  // namespace

void LoraDelta::begin_tile(int64_t row, int rows, int64_t block) {
  if (block != block_) fetched_entry_ = -1;
  row_ = row;
  rows_ = rows;
  block_ = block;
  count_ = vector_count_ = lines_ = fetched_ = next_term_ = next_rank_ = 0;
  for (int m = 0; m < rows;) {
    if (step_.direct_row[static_cast<size_t>(row + m)] != kTiledRow) {
      m++;
      continue;
    }
    const LoraSegment& segment = step_.segments[static_cast<size_t>(step_.segment_of[static_cast<size_t>(row + m)])];
    const int count = static_cast<int>(std::min<int64_t>(rows - m, segment.row + segment.rows - row - m));
    add_terms(segment, row + m, m, count, block);
    if (step_.any_vectors) add_vector_terms(segment, row + m, m, count, block);
    m += count;
  }
}

void LoraDelta::add_terms(const LoraSegment& segment, int64_t row, int first, int rows, int64_t block) {
  const float* t = step_.t.data() + row;
  const bool fetched = segment.entry == fetched_entry_;
  fetched_entry_ = segment.entry;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    int64_t module_begin = 0;
    for (int64_t m = 0; m < site_.modules; m++) {
      const LoraPages pages = pages_of(step_, site_, e, m);
      for (int half = 0; half < 2; half++) {
        const int64_t column = column_of(m, module_begin, block, half);
        if (column < 0 || column >= site_.out[m]) continue;
        const bool whole = half == 0 && !site_.interleaved() && column + 16 < site_.out[m];
        // Lines are fetched in pairs, as far as the memory's rows are concerned: at every 64th output.
        const bool opens = column % 64 == 0 || (block == first_block_ && half == 0) || (column == 0);
        const int lines = opens && !fetched ? (column % 64 < 32 ? 2 : 1) : 0;
        terms_[count_++] = {first, rows, half * 16, whole ? 32 : 16, pages.b + column, round_up(site_.out[m], kPageAlign),
                            pages.rank, t, lines, e == segment.entry, e + 1 == segment.entry_end};
        lines_ += lines * pages.rank;
        if (whole) break;
      }
      t += pages.rank * step_.t_rows;
      module_begin += site_.out[m];
    }
  }
}

void LoraDelta::add_vector_terms(const LoraSegment& segment, int64_t row, int first, int rows, int64_t block) {
  int64_t module_begin = 0;
  for (int64_t m = 0; m < site_.modules; m++) {
    for (int half = 0; half < 2; half++) {
      const int64_t column = column_of(m, module_begin, block, half);
      if (column < 0 || column >= site_.out[m]) continue;
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraVectors vectors = vectors_of(step_, site_, e, m);
        if (vectors.at_output()) vectors_[vector_count_++] = {first, rows, half * 16, column, vectors, nullptr};
      }
      if (scales_input(step_, site_, segment, m)) {
        const float* image = image_of(step_, row, m) + block * kBlockOutputs + half * 16;
        vectors_[vector_count_++] = {first, rows, half * 16, column, {}, image};
      }
    }
    module_begin += site_.out[m];
  }
}

void LoraDelta::prefetch(int64_t done, int64_t steps) {
  const int64_t due = lines_ * done / steps;
  while (fetched_ < due) {
    const DeltaTerm& term = terms_[next_term_];
    if (next_rank_ == term.rank || term.lines == 0) {
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

void LoraDelta::add(float (*tile)[kBlockOutputs]) const {
  if (count_ == 0 && vector_count_ == 0) return;
  alignas(64) float sum[simd::kGemmRows][kBlockOutputs];  // the delta alone, as it is for direct rows
  if (vector_count_ == 0) {
    for (int64_t i = 0; i < count_; i++) add_term(terms_[i], step_.t_rows, sum, tile);
    return;
  }
  memset(sum, 0, sizeof sum);
  for (int64_t i = 0; i < count_; i++) add_term(terms_[i], step_.t_rows, sum, nullptr);
  for (int64_t i = 0; i < vector_count_; i++) add_term(vectors_[i], step_.output_stride, tile, sum);
  for (int m = 0; m < rows_; m++) {
    if (step_.direct_row[static_cast<size_t>(row_ + m)] != kTiledRow) continue;
    for (int c = 0; c < kBlockOutputs; c += kLanes) {
      simd::store(tile[m] + c, simd::add(simd::load(tile[m] + c), simd::load(sum[m] + c)));
    }
  }
}

bool LoraDelta::keep(int row, const float* outputs) const {
  const int64_t direct = step_.direct_row[static_cast<size_t>(row_ + row)];
  if (direct < 0) return false;
  float* y = step_.outputs.data() + direct * step_.output_stride + block_ * kBlockOutputs;
  for (int c = 0; c < kBlockOutputs; c += kLanes) simd::store(y + c, simd::load(outputs + c));
  return true;
}

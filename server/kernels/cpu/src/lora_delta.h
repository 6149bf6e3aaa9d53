// Adds B t of tiled rows to a GEMM's tiles while they are in fp32, prefetching the columns of B that a tile
// needs while the tile is being computed. Keeps direct rows' outputs for later.
#pragma once

#include <cstdint>

#include "lora.h"
#include "pack.h"

// Rows of a tile with the same mix.
struct DeltaRun {
  const LoraSegment* segment;
  int first;                   // within the tile
  int rows;
};

// Cache lines of B that a tile is the first to need.
struct DeltaLines {
  const bf16* b;
  int64_t length;       // elements from one rank to the next
  int64_t rank;
  int lines;            // of every rank
};

// 16 outputs of the panel: the columns of B of all adapters of a mix, as [pairs of ranks][16][2].
struct DeltaHalf {
  const bf16* b;
  int64_t pairs;
  int64_t t_pair;       // the first one's place in t
};

class LoraDelta {
 public:
  // `terms` has room for kGemmRows * 2 * max_entries, `panel` for 64 * max_pairs; `first_block` is where the
  // thread's own blocks begin.
  LoraDelta(const LoraStep& step, const LoraSite& site, DeltaLines* terms, bf16* panel, int64_t first_block)
      : step_(step), site_(site), terms_(terms), panel_(panel), first_block_(first_block) {}

  // Prepares for rows row .. row + rows - 1 and one block of 32 outputs.
  void begin_tile(int64_t row, int rows, int64_t block);
  // Prefetches the part of the tile's lines that is due when `done` of `steps` steps are done.
  void prefetch(int64_t done, int64_t steps) {
    if (fetched_ < lines_) fetch_due(done, steps);
  }
  // Adds the delta to tiled rows.
  void add(float (*tile)[kBlockOutputs]);
  // If the row is direct, stores its outputs away; the GEMM must not write them.
  bool keep(int row, const float* outputs) const { return step_.any_direct && keep_direct(row, outputs); }

 private:
  void find_runs();
  void fetch_due(int64_t done, int64_t steps);
  void list_lines(const LoraSegment& segment);
  void pack(const LoraSegment& segment);
  bool keep_direct(int row, const float* outputs) const;
  void add_product(const DeltaRun& run, bool onto, float (*out)[kBlockOutputs]) const;
  void add_with_vectors(const DeltaRun& run, float (*tile)[kBlockOutputs]) const;
  void add_changes_of(const DeltaRun& run, int64_t module, int half, int64_t column, float (*sum)[kBlockOutputs]) const;
  void add_vectors_of(const DeltaRun& run, int64_t module, int half, int64_t column, const float (*tile)[kBlockOutputs],
                      float (*sum)[kBlockOutputs]) const;
  // The place of a half of a block within a module; outside it if the half belongs to another one.
  int64_t column_of(int64_t module, int64_t module_begin, int half) const {
    if (site_.one_for_both()) return half * site_.out[0] / 2 + block_ * 16;
    if (site_.interleaved()) return half == module ? block_ * 16 : -1;
    return block_ * kBlockOutputs + half * 16 - module_begin;
  }

  const LoraStep& step_;
  const LoraSite& site_;
  DeltaLines* terms_;
  bf16* panel_;
  int64_t first_block_;
  int64_t row_ = 0;           // the tile
  int rows_ = 0;
  int64_t block_ = -1;
  DeltaRun runs_[simd::kGemmRows];
  int run_count_ = 0;
  int64_t term_count_ = 0;
  int64_t lines_ = 0;         // to prefetch for the tile
  int64_t fetched_ = 0;
  int64_t next_term_ = 0;
  int64_t next_rank_ = 0;
  int64_t packed_entry_ = -1; // first entry of the mix whose columns of the block are in the panel
  DeltaHalf half_[2] = {};
};

// Adds B t of tiled rows to a GEMM's tiles while they are in fp32, prefetching the columns of B that a tile
// needs while the tile is being computed. Keeps direct rows' outputs for later.
#pragma once

#include <cstdint>

#include "lora.h"
#include "pack.h"

// Rows of a tile that share a run of 16 outputs of one module of one adapter.
struct DeltaTerm {
  int row;              // within the tile
  int rows;
  int column;           // within the tile: 0 or 16
  const bf16* b;        // 16 outputs of rank 0
  int64_t length;       // elements from one rank to the next
  int64_t rank;
  const float* t;       // of rank 0 and the first row
  int lines;            // cache lines of every rank to prefetch at this tile: 0 where an earlier tile did
};

class LoraDelta {
 public:
  // `terms` has room for kGemmRows * 2 * max_entries; `first_block` is where the thread's own blocks begin.
  LoraDelta(const LoraStep& step, const LoraSite& site, DeltaTerm* terms, int64_t first_block)
      : step_(step), site_(site), terms_(terms), first_block_(first_block) {}

  // Prepares for rows row .. row + rows - 1 and one block of 32 outputs.
  void begin_tile(int64_t row, int rows, int64_t block);
  // Prefetches the part of the tile's lines that is due when `done` of `steps` steps are done.
  void prefetch(int64_t done, int64_t steps);
  // Adds the delta to tiled rows.
  void add(float (*tile)[kBlockOutputs]) const;
  // If the row is direct, stores its outputs away; the GEMM must not write them.
  bool keep(int row, const float* outputs) const;

 private:
  void add_terms(const LoraSegment& segment, int64_t row, int first, int rows, int64_t block);

  const LoraStep& step_;
  const LoraSite& site_;
  DeltaTerm* terms_;
  int64_t first_block_;
  int64_t row_ = 0;          // the tile
  int rows_ = 0;
  int64_t block_ = 0;
  int64_t count_ = 0;        // of its terms
  int64_t lines_ = 0;        // to prefetch for the tile
  int64_t fetched_ = 0;
  int64_t next_term_ = 0;
  int64_t next_rank_ = 0;
};

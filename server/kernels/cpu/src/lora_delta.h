// Adds B t of tiled rows to a GEMM's tiles while they are in fp32, prefetching the columns of B that a tile
// needs while the tile is being computed. Keeps direct rows' outputs for later.
#pragma once

#include <cstdint>

#include "lora.h"
#include "pack.h"

// Rows of a tile that share a run of outputs of one module of one adapter.
struct DeltaTerm {
  int row;              // within the tile
  int rows;
  int column;           // within the tile: 0 or 16
  int columns;          // 16, or 32: the whole block
  const bf16* b;        // these outputs of rank 0
  int64_t length;       // elements from one rank to the next
  int64_t rank;
  const float* t;       // of rank 0 and the first row
  int lines;            // cache lines of every rank to prefetch at this tile: 0 where an earlier tile did
  bool first;           // of the mix: the delta starts from 0
  bool last;
};

// Rows of a tile that share the vectors of one module of one adapter, or that have images.
struct VectorTerm {
  int row;              // within the tile
  int rows;
  int column;           // within the tile: 0 or 16
  int64_t at;           // first of the 16 outputs within the module
  LoraVectors vectors;
  const float* image;   // of the first row; or null
};

class LoraDelta {
 public:
  // `terms` has room for kGemmRows * 2 * max_entries, `vectors` for as many and kGemmRows * 2; `first_block` is where the thread's own blocks begin.
  LoraDelta(const LoraStep& step, const LoraSite& site, DeltaTerm* terms, VectorTerm* vectors, int64_t first_block)
      : step_(step), site_(site), terms_(terms), vectors_(vectors), first_block_(first_block) {}

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
  void add_vector_terms(const LoraSegment& segment, int64_t row, int first, int rows, int64_t block);
  // The place of a half of a block within a module; outside it if the half belongs to another one.
  int64_t column_of(int64_t module, int64_t module_begin, int64_t block, int half) const {
    if (site_.interleaved()) return half == module ? block * 16 : -1;
    return block * kBlockOutputs + half * 16 - module_begin;
  }

  const LoraStep& step_;
  const LoraSite& site_;
  DeltaTerm* terms_;
  VectorTerm* vectors_;
  int64_t first_block_;
  int64_t row_ = 0;          // the tile
  int rows_ = 0;
  int64_t block_ = 0;
  int64_t count_ = 0;        // of its terms
  int64_t vector_count_ = 0;
  int64_t lines_ = 0;        // to prefetch for the tile
  int64_t fetched_ = 0;
  int64_t next_term_ = 0;
  int64_t next_rank_ = 0;
  int64_t fetched_entry_ = -1;  // first entry of the last mix whose lines of the block were listed
};

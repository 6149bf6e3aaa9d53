// The LoRA delta y += sum over a row's mix of weight * B (A x), added in fp32 to the tiles of the GEMM that
// computes y. Before that GEMM, in one phase:
//   - rows that share their mix with at most one other ("direct") get their whole delta computed, B being
//     read front to back, as fast as memory gives it;
//   - for segments of more rows only t = A x is computed ("shrink"); the GEMM multiplies its tiles' part of B.
//
// Weights are read in place from the page pool: for a module, `rank` rows of A then `rank` columns of B, each
// padded to 32 elements. Every number is accumulated in one fixed order (inputs ascending; then adapters in
// the mix's order, ranks ascending, starting from 0), so neither way nor the other rows of the step change a bit.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "stream.h"
#include "worker.h"

constexpr int64_t kPageAlign = 32;
constexpr int64_t kMaxSiteModules = 3;
constexpr int64_t kDirectRows = 2;

// Rows with the same mix: entries entry .. entry_end - 1 of the step's list.
struct LoraSegment {
  int64_t row;
  int64_t rows;
  int64_t entry;
  int64_t entry_end;
  int64_t delta_row;     // first of its rows in LoraStep::delta; -1: not direct

  bool direct() const { return delta_row >= 0; }
};

// The mixes of one step.
struct LoraStep {
  const Lora* lora = nullptr;
  const bf16* pool = nullptr;
  std::vector<LoraSegment> segments;
  std::vector<int32_t> segment_of;  // [rows]
  int64_t max_entries = 0;          // of any segment
  int64_t t_stride = 0;             // no segment has more ranks at a site
  int64_t delta_stride = 0;
  Buffer<float> t;                  // [rows][t_stride] results of shrink, mix weights included
  Buffer<float> delta;              // [direct rows][delta_stride], columns as the GEMM's blocks have them

  bool active() const { return lora != nullptr; }
  // `columns`: the most outputs of any site, rounded up to whole blocks.
  void build(const Lora* mixes, const bf16* pages, const Step& step, int64_t columns);
};

// Modules that share an input and whose outputs are computed by one GEMM.
struct LoraSite {
  int64_t module;        // number of the first one
  int64_t modules;
  int64_t in;
  int64_t out[kMaxSiteModules];
  const bf16* x;         // [rows][x_stride], columns behind `in` are zero up to a multiple of 32
  int64_t x_stride;
  bool interleaved;      // the GEMM's blocks hold 16 outputs of one module, 16 of the other; else module after module
};

// Rows and columns of one module of one adapter.
struct LoraPages {
  const bf16* a;
  const bf16* b;
  int64_t rank;
};

LoraPages pages_of(const LoraStep& step, const LoraSite& site, int64_t entry, int64_t module);

// Some rows of A of one module of one entry, for a segment that is not direct.
struct ShrinkItem {
  const LoraSegment* segment;
  const bf16* a;         // first row to do
  int64_t ranks;
  int64_t t_column;
  float weight;
};

// One module of a direct segment.
struct DirectItem {
  const LoraSegment* segment;
  int64_t module;
};

// What one thread does for a site before its GEMM, and the bytes it reads for that and right after it.
struct LoraShare {
  std::vector<ShrinkItem> shrink;
  std::vector<DirectItem> direct;
  std::vector<ByteRange> ranges;
  ByteStream stream;     // prefetches a little ahead of what is being read
  Buffer<float> panel;   // working memory of direct items
  Buffer<float> factors;

  void reserve(const LoraStep& step);  // room for any site, so that build never allocates
  void build(const LoraStep& step, const LoraSite& site, const ByteRange& following, const Worker& worker);
};

// The phase before the site's GEMM; a barrier has to follow.
void lora_prepare(const LoraStep& step, const LoraSite& site, LoraShare& share);

// Its parts. shrink_rows writes t[row][rank] = weight * A x for `ranks` rows of A.
void shrink_rows(const bf16* a, int64_t ranks, const LoraSite& site, int64_t row, int64_t rows, float weight, float* t,
                 int64_t t_stride, ByteStream& ahead);
void direct_delta(const LoraStep& step, const LoraSite& site, const DirectItem& item, LoraShare& share);

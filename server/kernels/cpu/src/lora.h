// The adapters' delta y += sum over a row's mix of weight * (B (A x) + change x + gain y + partner Py + constant), for
// the outputs y of one GEMM, and W (sum of weight * (input_gain x + x input_blocks)), which is a GEMM of its own
// ("image", lora_vectors.cpp). Two ways:
//   - Segments of several rows ("tiled"): t = A x is computed before the GEMM, and B t is added to each of the GEMM's
//     tiles while it is in the nearest cache (lora_delta.h).
//   - Rows that share their mix with at most one other ("direct"): the GEMM leaves their outputs in fp32; after
//     it, A and B are read front to back, as fast as memory gives them, and the outputs are completed. So are rows of
//     mixes that add outputs to each other ("partners"), however many: a tile has not all of them.
//
// Weights are read in place from the page pool: for a module, `rank` rows of A then `rank` columns of B, each
// padded to 32 elements. t, weighted, is rounded to bf16 as the base's inputs are, and multiplied by B two ranks at a
// time; an odd rank gets a zero beside it. Every number is accumulated in one fixed order (inputs ascending; then
// adapters in the mix's order, ranks ascending, starting from 0; then changes x, then gains, constants and
// partners, in the mix's order; then the image), so neither the way nor the other rows of the step change a bit.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "output.h"
#include "stream.h"
#include "worker.h"

constexpr int64_t kPageAlign = 32;
constexpr int64_t kMaxSiteModules = 3;
constexpr int64_t kDirectRows = 2;
constexpr int64_t kPagesAhead = 16384;  // bytes that pages are prefetched ahead of their use

// Adjacent rows with the same mix: entries entry .. entry_end - 1 of the step's list.
struct LoraSegment {
  int64_t row;
  int64_t rows;
  int64_t entry;
  int64_t entry_end;
  bool direct;

  int64_t end() const { return row + rows; }
  bool tiled() const { return !direct && entry < entry_end; }
};

constexpr int64_t kNotDirect = -1;

// Where a row's pair of ranks is in t.
constexpr int64_t t_place(int64_t row, int64_t pair, int64_t stride) {
#if defined(ML_TILES)
  return row * stride + 2 * pair;
#else
  return pair * stride + 2 * row;
#endif
}

// The mixes of one step.
struct LoraStep {
  const Lora* lora = nullptr;
  const bf16* pool = nullptr;
  std::vector<LoraSegment> segments;
  std::vector<int32_t> segment_of;  // [rows]
  std::vector<int64_t> direct_row;  // [rows] row of `outputs`, or kNotDirect
  int64_t direct_rows = 0;
  bool any_direct = false;
  bool any_tiled = false;
  int64_t max_entries = 0;          // of any segment
  int64_t pieces = 0;               // that segments are cut into when their t is computed
  int64_t max_pairs = 0;            // of ranks: no segment has more at a module
  int64_t input_columns = 0;        // the most of any site, whole blocks
  int64_t output_stride = 0;
  int64_t t_stride = 0;
  int64_t change_pair = 0;          // where the products of changes begin in t, laid out like A x
  // Of tiled rows, by module, then by adapter. For vectors [kMaxSiteModules max_pairs, ...][rows][2], for tile registers
  // [rows][kMaxSiteModules max_pairs, ...][2].
  Buffer<bf16> t;
  Buffer<float> outputs;            // [direct rows][output_stride] the GEMM's outputs, in the order of its blocks

  bool any_vectors = false;         // gains, constants, input gains or changes
  int64_t max_changes = 0;          // adapters with changes in any segment
  bool any_norms = false;           // gains of norms, perhaps
  std::vector<int64_t> scaled_row;  // [rows] row of `scaled`, or -1: its mix scales no input
  std::vector<int64_t> scaled_from; // the row of the step that each row of `scaled` is made from
  Buffer<bf16> scaled;              // [scaled rows][input columns] x times a mix's input gains and blocks
  Buffer<float> images;             // [modules][scaled rows][output_stride] in the order of the GEMM's blocks

  bool active() const { return lora != nullptr; }

  bf16* t_at(int64_t row, int64_t pair) const { return t.data() + t_place(row, pair, t_stride); }

  // `columns` and `inputs`: the most of any site, rounded up to whole blocks.
  void build(const Lora* mixes, const bf16* pages, const Step& step, int64_t columns, int64_t inputs);

 private:
  void add_segment(const LoraSegment& segment);
  void find_scaled(const Step& step, int64_t inputs);
};

// Modules that share an input and whose outputs are computed by one GEMM.
struct LoraSite {
  int64_t module;        // number of the first one
  int64_t modules;
  int64_t in;
  int64_t out[kMaxSiteModules];
  const bf16* x;         // [rows][x_stride], columns behind `in` are zero up to a multiple of 32
  int64_t x_stride;
  Output output;         // of a product: gate and up, interleaved by 16, two modules or one; else module after module

  bool interleaved() const { return output.is_product(); }
  bool one_for_both() const { return interleaved() && modules == 1; }
  // Columns of a part of a module: its outputs, or the half of them that one of the two multiplied has.
  int64_t part_of(int64_t m) const { return out[m] / (one_for_both() ? 2 : 1); }
};

// Rows and columns of one module of one adapter.
struct LoraPages {
  const bf16* a;
  const bf16* b;
  int64_t rank;
};

LoraPages pages_of(const LoraStep& step, const LoraSite& site, int64_t entry, int64_t module);

// Ranks that one product sums at least: t has zeros behind the last one.
#if defined(ML_TILES)
constexpr int64_t kRankUnit = 32;
#else
constexpr int64_t kRankUnit = 2;
#endif

constexpr int64_t pairs_of(int64_t rank) { return round_up(rank, kRankUnit) / 2; }

// The vectors of one module of one adapter; null where it has none.
struct LoraVectors {
  const bf16* gain;
  const bf16* constant;
  const bf16* input_gain;
  float weight;          // of the adapter in the mix
  const bf16* change;    // [out][in]: a matrix
  const bf16* partner;
  int64_t distance;      // of partners
  const bf16* input_blocks;
  int64_t block_size;    // of those

  bool at_input() const { return input_gain != nullptr || input_blocks != nullptr; }

  bool at_output() const { return gain != nullptr || constant != nullptr || partner != nullptr; }
};

LoraVectors vectors_of(const LoraStep& step, const LoraSite& site, int64_t entry, int64_t module);

// Whether the segment's mix scales the module's input.
bool scales_input(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module);

// Whether any mix of the step scales it.
bool scales_input(const LoraStep& step, const LoraSite& site, int64_t module);

// scaled[i] = x times the sum of the mix's weighted input gains and blocks, for this thread's share of the rows.
void scale_inputs(const LoraStep& step, const LoraSite& site, int64_t module, const Worker& worker);

// The image of a row of a segment that scales the module's input, in the order of the GEMM's blocks.
inline const float* image_of(const LoraStep& step, int64_t row, int64_t module) {
  const int64_t rows = static_cast<int64_t>(step.scaled_from.size());
  return step.images.data() + (module * rows + step.scaled_row[static_cast<size_t>(row)]) * step.output_stride;
}

// sum + weight (gain y + constant), of kLanes outputs from `column` of the module on.
ML_INLINE simd::Float add_vectors(const LoraVectors& vectors, int64_t column, simd::Float y, simd::Float sum) {
  const simd::Float weight = simd::splat(vectors.weight);
  if (vectors.gain != nullptr) sum = simd::fma(simd::mul(simd::load_bf16(vectors.gain + column), weight), y, sum);
  if (vectors.constant != nullptr) sum = simd::fma(simd::load_bf16(vectors.constant + column), weight, sum);
  return sum;
}

// Whether the mix of a row changes a norm.
bool changes_norm(const LoraStep& step, int64_t module, int64_t row);

// Element i, i + 1, ... of the weight that a norm has in that row: `base` and the gains of the row's mix, in its order.
simd::Float norm_weight(const LoraStep& step, int64_t module, int64_t row, simd::Float base, int64_t i);

// Some rows of A of one module of one entry, from an even one on, for rows of a tiled segment.
struct ShrinkItem {
  int64_t row;
  int64_t rows;
  const bf16* a;         // first row to do
  int64_t ranks;
  int64_t t_pair;        // the first one's place in t
  float weight;
};

// Modules module .. module_end - 1 of a direct segment: one, or what is multiplied; of each of their parts the columns
// begin .. end - 1. Begin is a multiple of 32, and all are done together unless the mix has changes there.
struct DirectItem {
  const LoraSegment* segment;
  int64_t module;
  int64_t module_end;
  int64_t begin;
  int64_t end;
};

// What one thread does at a site, and the bytes it reads for its direct items and right after them.
struct LoraShare {
  std::vector<ShrinkItem> shrink;
  std::vector<DirectItem> direct;
  std::vector<ByteRange> ranges;
  ByteStream stream;     // prefetches a little ahead of what is being read

  void reserve(const LoraStep& step);  // room for any site, so that build never allocates
  void build(const LoraStep& step, const LoraSite& site, const ByteRange& following, const Worker& worker);
};

// Working memory of a thread's direct items.
struct LoraScratch {
  Buffer<float> panel;   // [2 modules][kDirectRows][output_stride]
  Buffer<float> chains;  // [kDirectRows][2 output_stride] sums of even and odd ranks, for tile registers' order
  Buffer<bf16> t;        // as LoraStep's, of one adapter's ranks or outputs
  int64_t t_stride = 0;
  Buffer<bf16> turned;   // [input columns / 2][16][2] of A, for tile registers
  std::vector<LoraVectors> vectors[2];  // of the two modules

  const bf16* t_at(int64_t row, int64_t pair) const { return t.data() + t_place(row, pair, t_stride); }
  void reserve(const LoraStep& step);
};

// How many of the segment's adapters change the weight of a module as a whole.
int64_t count_changes(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module);

// acc += the products of the mix's changes with the item's rows of x, of its outputs of a module. acc is [rows][length],
// of each 2 kLanes outputs the even ones first.
void add_changes(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t module, LoraShare& share,
                 const LoraScratch& scratch, float* acc);

// Before the GEMM, if any segment is tiled, with a barrier between.
void lora_shrink(const LoraStep& step, const LoraSite& site, const LoraShare& share, const LoraScratch& scratch);

// After the GEMM, if any segment is direct, with a barrier between.
void lora_direct(const LoraStep& step, const LoraSite& site, LoraShare& share, LoraScratch& scratch);

// scratch.t = weight * A x for a direct segment's rows.
void shrink_direct(const LoraPages& pages, const LoraSite& site, const LoraSegment& segment, float weight, LoraShare& share,
                   const LoraScratch& scratch);

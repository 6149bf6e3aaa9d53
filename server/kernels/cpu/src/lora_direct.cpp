// One or two rows of one adapter: t = A x, then y + B t, both matrices read front to back.
#include "kernel_scope.h"
#include "lora.h"
#include "pack.h"

#if defined(ML_TILES)
#include "lora_expand_tiles.h"
namespace level = lora_expand_tiles;
#else
#include "lora_expand_vectors.h"
namespace level = lora_expand_vectors;
#endif

namespace {

using simd::Float;
using simd::kLanes;

constexpr int64_t kStep = 2 * kLanes;  // columns of one load of B

// The delta of one module for the item's rows, [rows][module's outputs rounded up].
void module_delta(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t module, LoraShare& share,
                  const LoraScratch& scratch, float* acc) {
  const LoraSegment& segment = *item.segment;
  const int64_t length = round_up(site.out[module], kPageAlign);
  memset(acc, 0, static_cast<size_t>(segment.rows * length) * sizeof(float));
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const LoraPages pages = pages_of(step, site, e, module);
    if (pages.rank == 0) continue;
    shrink_direct(pages, site, segment, step.lora->weight[e], share, scratch);
    if (segment.rows == 1) {
      level::expand<1>(acc, pages, length, scratch, share.stream);
    } else {
      level::expand<2>(acc, pages, length, scratch, share.stream);
    }
  }
  if (step.max_changes > 0) add_changes(step, site, item, module, share, scratch, acc);
}

// What one module of a row adds to the GEMM's outputs, from its column `from` on.
struct RowDelta {
  int64_t from;          // a multiple of 32
  const float* y;        // outputs from there on; columns 16 j on lie `step` further for every j
  int64_t step;
  const float* first;    // outputs of the module before `part`
  const float* second;   // and from there on
  int64_t part;
  const float* acc;      // B t of the whole module, even and odd columns apart
  const float* image;    // as y; or null
  const std::vector<LoraVectors>* vectors;
};

// kLanes outputs of the module from `output` on, each replaced by its partner.
ML_INLINE Float partners(const RowDelta& delta, int64_t output, int64_t distance) {
  alignas(64) float found[kLanes];
  for (int i = 0; i < kLanes; i++) {
    const int64_t c = output + i;
    int64_t other = c % (2 * distance) < distance ? c + distance : c - distance;
    const float* y = other < delta.part ? delta.first : delta.second;
    if (other >= delta.part) other -= delta.part;
    found[i] = y[other / 16 * delta.step + other % 16];
  }
  return simd::load(found);
}

// sum[i] = y[i] + delta of column from + `column` + i, for up to 32 columns; `column` is a multiple of 32.
ML_INLINE void add_delta(const RowDelta& delta, int64_t column, int64_t count, float* sum) {
  const int64_t first = column / 16 * delta.step;
  const float* acc = delta.acc + delta.from + column;
  for (int64_t c = 0; c < count; c += kStep) {
    Float piece[2];
    simd::join_even_odd(simd::load(acc + c), simd::load(acc + c + kLanes), &piece[0], &piece[1]);
    ML_UNROLL
    for (int i = 0; i < 2; i++) {
      const int64_t at = c + i * kLanes;
      if (at >= count) continue;
      const int64_t place = first + at / 16 * delta.step + at % 16;
      const Float y = simd::load(delta.y + place);
      for (const LoraVectors& vectors : *delta.vectors) {
        const int64_t output = delta.from + column + at;
        piece[i] = add_vectors(vectors, output, y, piece[i]);
        if (vectors.partner == nullptr) continue;
        const Float factor = simd::mul(simd::load_bf16(vectors.partner + output), simd::splat(vectors.weight));
        piece[i] = simd::fma(factor, partners(delta, output, vectors.distance), piece[i]);
      }
      if (delta.image != nullptr) piece[i] = simd::add(piece[i], simd::load(delta.image + place));
      simd::store(sum + at, simd::add(y, piece[i]));
    }
  }
}

void list_vectors(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module,
                  std::vector<LoraVectors>& list) {
  list.clear();
  for (int64_t e = segment.entry; step.any_vectors && e < segment.entry_end; e++) {
    const LoraVectors vectors = vectors_of(step, site, e, module);
    if (vectors.at_output()) list.push_back(vectors);
  }
}

void complete(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t m, const LoraScratch& scratch) {
  const int64_t row = item.segment->row + m;
  const float* y = step.outputs.data() + step.direct_row[static_cast<size_t>(row)] * step.output_stride;
  const int64_t length = round_up(site.out[item.module], kPageAlign);
  const int64_t parts = site.interleaved() ? 2 : 1;
  const int64_t columns = site.part_of(item.module);
  int64_t begin = 0;
  for (int64_t k = 0; k < item.module; k++) begin += site.out[k];
  RowDelta delta[2];
  for (int64_t i = 0; i < parts; i++) {
    const int64_t k = site.one_for_both() ? 0 : i;  // the module's place in the item
    const int64_t module = item.module + k;
    const bool image = step.any_vectors && scales_input(step, site, *item.segment, module);
    const int64_t place = site.interleaved() ? 16 * i : begin;
    delta[i] = {site.one_for_both() ? i * columns : 0,
                y + place,
                site.interleaved() ? 32 : 16,
                site.one_for_both() ? y : y + place,
                site.one_for_both() ? y + 16 : nullptr,
                columns,
                scratch.panel.data() + k * kDirectRows * step.output_stride + m * length,
                image ? image_of(step, row, module) + place : nullptr,
                &scratch.vectors[k]};
  }
  alignas(64) float sum[2][32];
  for (int64_t c = item.begin; c < item.end; c += 32) {
    const int64_t count = item.end - c < 32 ? item.end - c : 32;
    for (int64_t i = 0; i < parts; i++) add_delta(delta[i], c, count, sum[i]);
    for (int64_t i = 0; i < count; i += 16) {
      if (site.interleaved()) {
        site.output.write_product(row, (c + i) / 16, sum[0] + i, sum[1] + i);
      } else {
        site.output.write(row, begin + c + i, sum[0] + i);
      }
    }
  }
}

}  // namespace

void lora_direct(const LoraStep& step, const LoraSite& site, LoraShare& share, LoraScratch& scratch) {
  [[maybe_unused]] const KernelScope scope;
  for (const DirectItem& item : share.direct) {
    for (int64_t k = item.module; k < item.module_end; k++) {
      float* acc = scratch.panel.data() + (k - item.module) * kDirectRows * step.output_stride;
      module_delta(step, site, item, k, share, scratch, acc);
      list_vectors(step, site, *item.segment, k, scratch.vectors[k - item.module]);
    }
    for (int64_t m = 0; m < item.segment->rows; m++) complete(step, site, item, m, scratch);
  }
}

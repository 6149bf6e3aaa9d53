// Gains, constants and scaled inputs: which rows have them, and x times a mix's input gains.
#include <algorithm>

#include "lora.h"
#include "pack.h"

using simd::Float;
using simd::kLanes;

// Rows of all mixes in which any adapter scales inputs get a place; of which modules is known site by site.
void LoraStep::find_scaled(const Step& step, int64_t inputs) {
  scaled_row.assign(static_cast<size_t>(step.rows), -1);
  for (const LoraSegment& segment : segments) {
    bool found = false;
    for (int64_t e = segment.entry; e < segment.entry_end; e++) {
      const int64_t adapter = lora->adapter[e];
      found = found || lora->input_gain[adapter] != nullptr || lora->input_blocks[adapter] != nullptr;
    }
    for (int64_t row = segment.row; found && row < segment.row + segment.rows; row++) {
      scaled_row[static_cast<size_t>(row)] = static_cast<int64_t>(scaled_from.size());
      scaled_from.push_back(row);
    }
  }
  const int64_t rows = static_cast<int64_t>(scaled_from.size());
  scaled.reserve(rows * inputs);
  images.reserve(kMaxSiteModules * rows * output_stride);
}

LoraVectors vectors_of(const LoraStep& step, const LoraSite& site, int64_t entry, int64_t module) {
  const Lora& lora = *step.lora;
  const int64_t adapter = lora.adapter[entry];
  const auto at = [&](const int64_t* const* tables) -> const bf16* {
    const int64_t* offsets = tables[adapter];
    const int64_t offset = offsets == nullptr ? 0 : offsets[site.module + module];
    return offset == 0 ? nullptr : step.pool + offset;
  };
  const auto number = [&](const int64_t* const* tables) { return tables[adapter] == nullptr ? 0 : tables[adapter][site.module + module]; };
  return {at(lora.gain), at(lora.constant), at(lora.input_gain), lora.weight[entry], at(lora.change), at(lora.partner),
          number(lora.distance), at(lora.input_blocks), number(lora.block_size)};
}

namespace {

const bf16* norm_gain(const LoraStep& step, int64_t module, int64_t entry) {
  const int64_t* offsets = step.lora->gain[step.lora->adapter[entry]];
  const int64_t offset = offsets == nullptr ? 0 : offsets[module];
  return offset == 0 ? nullptr : step.pool + offset;
}

const LoraSegment& segment_at(const LoraStep& step, int64_t row) {
  return step.segments[static_cast<size_t>(step.segment_of[static_cast<size_t>(row)])];
}

}  // namespace

bool changes_norm(const LoraStep& step, int64_t module, int64_t row) {
  const LoraSegment& segment = segment_at(step, row);
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    if (norm_gain(step, module, e) != nullptr) return true;
  }
  return false;
}

Float norm_weight(const LoraStep& step, int64_t module, int64_t row, Float base, int64_t i) {
  const LoraSegment& segment = segment_at(step, row);
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const bf16* gain = norm_gain(step, module, e);
    if (gain != nullptr) base = simd::fma(simd::load_bf16(gain + i), simd::splat(step.lora->weight[e]), base);
  }
  return base;
}

bool scales_input(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module) {
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    if (vectors_of(step, site, e, module).at_input()) return true;
  }
  return false;
}

bool scales_input(const LoraStep& step, const LoraSite& site, int64_t module) {
  for (const LoraSegment& segment : step.segments) {
    if (scales_input(step, site, segment, module)) return true;
  }
  return false;
}

namespace {

// x times the blocks, of kLanes columns from k on; they lie in one block.
Float mixed_inputs(const LoraVectors& vectors, const bf16* x, int64_t inputs, int64_t k) {
  const int64_t first = k / vectors.block_size * vectors.block_size;
  const int64_t last = std::min(first + vectors.block_size, inputs);
  const bf16* row = vectors.input_blocks + first * vectors.block_size + (k - first);
  Float sums[2] = {simd::zero(), simd::zero()};
  for (int64_t i = first; i < last; i++, row += vectors.block_size) {
    sums[i % 2] = simd::fma(simd::splat(to_float(x[i])), simd::load_bf16(row), sums[i % 2]);
  }
  return simd::add(sums[0], sums[1]);
}

}  // namespace

void scale_inputs(const LoraStep& step, const LoraSite& site, int64_t module, const Worker& worker) {
  const Range rows = worker.share(static_cast<int64_t>(step.scaled_from.size()));
  for (int64_t i = rows.begin; i < rows.end; i++) {
    const int64_t row = step.scaled_from[static_cast<size_t>(i)];
    const LoraSegment& segment = segment_at(step, row);
    const bf16* x = site.x + row * site.x_stride;
    bf16* out = step.scaled.data() + i * round_up(site.in, kPageAlign);
    for (int64_t k = 0; k < site.in; k += kLanes) {
      Float gain = simd::zero();
      Float mixed = simd::zero();
      for (int64_t e = segment.entry; e < segment.entry_end; e++) {
        const LoraVectors vectors = vectors_of(step, site, e, module);
        if (vectors.input_gain != nullptr) gain = simd::fma(simd::load_bf16(vectors.input_gain + k), simd::splat(vectors.weight), gain);
        if (vectors.input_blocks != nullptr) mixed = simd::fma(mixed_inputs(vectors, x, site.in, k), simd::splat(vectors.weight), mixed);
      }
      simd::store_bf16(out + k, simd::fma(simd::load_bf16(x + k), gain, mixed));
    }
  }
}

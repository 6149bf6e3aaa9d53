// What adapters add to the products of experts: of each pair of a row and an expert by itself, so that whoever shares
// the expert changes no bit of it.
//
// y += sum over the mix of B (weight A x). Sums of A x are of 16 chains, inputs ascending in each, joined in one order;
// those of y go on from the base's, adapters in the mix's order, ranks ascending. All levels give the same bits.
#include <algorithm>

#include "experts.h"
#include "pack.h"

namespace {

using simd::Float;
using simd::kLanes;

constexpr int64_t kChains = 16;

float dot(const bf16* a, const bf16* x, int64_t inputs) {
  alignas(64) float chain[kChains];
  for (int i = 0; i < kChains; i += kLanes) {
    Float sum = simd::zero();
    for (int64_t k = i; k < inputs; k += kChains) sum = simd::fma(simd::load_bf16(a + k), simd::load_bf16(x + k), sum);
    simd::store(chain + i, sum);
  }
  for (int64_t width = kChains / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; i++) chain[i] += chain[i + width];
  }
  return chain[0];
}

// Outputs of a module in a row of floats: 16 adjacent ones each, the next 16 lie `step` further.
struct Outputs {
  float* y;
  int64_t count;  // a multiple of 16
  int64_t step;
};

void add_column(const bf16* b, float t, const Outputs& outputs) {
  const Float factor = simd::splat(t);
  float* y = outputs.y;
  for (int64_t c = 0; c < outputs.count; c += 16, b += 16, y += outputs.step) {
    for (int i = 0; i < 16; i += kLanes) simd::store(y + i, simd::fma(simd::load_bf16(b + i), factor, simd::load(y + i)));
  }
}

// The mix's rank pages of a module, applied to a row's input: `parts` are the module's outputs, in their order.
template <int kParts>
void add_mix(const LoraStep& step, const LoraSegment& segment, int64_t module, const bf16* x, int64_t inputs,
             const Outputs (&parts)[kParts]) {
  const Lora& lora = *step.lora;
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const int64_t adapter = lora.adapter[e];
    const int64_t rank = lora.rank[adapter][module];
    int64_t outputs = 0;
    for (const Outputs& part : parts) outputs += part.count;
    const bf16* a = step.pool + lora.offset[adapter][module];
    const bf16* b = a + rank * round_up(inputs, kPageAlign);
    for (int64_t r = 0; r < rank; r++) {
      const float t = lora.weight[e] * dot(a + r * round_up(inputs, kPageAlign), x, inputs);
      const bf16* column = b + r * round_up(outputs, kPageAlign);
      for (const Outputs& part : parts) {
        add_column(column, t, part);
        column += part.count;
      }
    }
  }
}

const LoraSegment& mix_of(const ExpertAdapters& adapters, int64_t row) {
  const LoraStep& step = *adapters.lora;
  return step.segments[static_cast<size_t>(step.segment_of[static_cast<size_t>(row)])];
}

int64_t gate_up_of(const ExpertAdapters& adapters, int64_t expert) { return adapters.module + 2 * expert; }

int64_t down_of(const ExpertAdapters& adapters, int64_t expert) { return gate_up_of(adapters, expert) + 1; }

}  // namespace

// Once a layer, by one thread.
void RoutedExperts::find_adapted(const ExpertAdapters& adapters) {
  std::fill(adapted_.begin(), adapted_.end(), 0);
  adapted_pairs_ = 0;
  if (adapters.lora == nullptr) return;
  const Lora& lora = *adapters.lora->lora;
  for (int64_t e = 0; e < experts_; e++) {
    for (int64_t p = begin_[static_cast<size_t>(e)]; p < begin_[static_cast<size_t>(e + 1)]; p++) {
      const LoraSegment& mix = mix_of(adapters, row_[static_cast<size_t>(p)]);
      for (int64_t entry = mix.entry; entry < mix.entry_end; entry++) {
        const int32_t* rank = lora.rank[lora.adapter[entry]];
        if (rank[gate_up_of(adapters, e)] > 0 || rank[down_of(adapters, e)] > 0) adapted_[static_cast<size_t>(e)] = 1;
      }
    }
    if (adapted_[static_cast<size_t>(e)] != 0) adapted_pairs_ += begin_[static_cast<size_t>(e + 1)] - begin_[static_cast<size_t>(e)];
  }
}

void RoutedExperts::adapt_gate_up(const Decoder& decoder, const ExpertAdapters& adapters, const Worker& worker) {
  const int64_t hidden = round_up(decoder.hidden, kBlockOutputs);
  const int64_t inner = round_up(decoder.expert_intermediate, kBlockOutputs);
  const int64_t wide = round_up(2 * decoder.expert_intermediate, kBlockOutputs);
  const Output product{decoder.activation == kGeluTanh ? Sink::kGeluMul : Sink::kSiluMul, product_.data(), inner};
  const Range mine = worker.share(begin_[static_cast<size_t>(experts_)]);
  for (int64_t p = mine.begin; p < mine.end; p++) {
    const int64_t expert = place_[static_cast<size_t>(p)];
    if (adapted_[static_cast<size_t>(expert)] == 0) continue;
    float* y = raw_.data() + p * wide;
    const Outputs parts[] = {{y, decoder.expert_intermediate, 32}, {y + 16, decoder.expert_intermediate, 32}};
    add_mix(*adapters.lora, mix_of(adapters, row_[static_cast<size_t>(p)]), gate_up_of(adapters, expert),
            input_.data() + p * hidden, decoder.hidden, parts);
    for (int64_t block = 0; block < decoder.expert_intermediate / 16; block++) {
      product.write_product(p, block, y + 32 * block, y + 32 * block + 16);
    }
  }
}

void RoutedExperts::adapt_down(const Decoder& decoder, const ExpertAdapters& adapters, const Worker& worker) {
  const int64_t hidden = round_up(decoder.hidden, kBlockOutputs);
  const int64_t inner = round_up(decoder.expert_intermediate, kBlockOutputs);
  const Range mine = worker.share(begin_[static_cast<size_t>(experts_)]);
  for (int64_t p = mine.begin; p < mine.end; p++) {
    const int64_t expert = place_[static_cast<size_t>(p)];
    if (adapted_[static_cast<size_t>(expert)] == 0) continue;
    const Outputs parts[] = {{output_.data() + p * hidden, decoder.hidden, 16}};
    add_mix(*adapters.lora, mix_of(adapters, row_[static_cast<size_t>(p)]), down_of(adapters, expert),
            product_.data() + p * inner, decoder.expert_intermediate, parts);
  }
}

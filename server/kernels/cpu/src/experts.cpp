#include "experts.h"

#include <algorithm>

#include "gemm.h"
#include "unpack.h"

namespace {

using simd::Float;
using simd::kLanes;

int64_t padded(int64_t columns) { return round_up(columns, kBlockOutputs); }

}  // namespace

RoutedExperts::RoutedExperts(const Decoder& decoder) : experts_(decoder.experts), chosen_(decoder.chosen_experts) {
  if (experts_ == 0) return;
  begin_.resize(static_cast<size_t>(experts_ + 1));
  adapted_.resize(static_cast<size_t>(experts_));
  for (int64_t i = 0; i < 2 * experts_ + 1; i++) queues_.emplace_back(static_cast<int>(decoder.threads));
}

void RoutedExperts::reserve(const Decoder& decoder, int64_t rows, bool adapted) {
  if (experts_ == 0) return;
  const int64_t pairs = rows * chosen_;
  logits_.reserve(rows * padded(experts_));
  input_.reserve(pairs * padded(decoder.hidden));
  product_.reserve(pairs * padded(decoder.expert_intermediate));
  output_.reserve(pairs * padded(decoder.hidden));
  if (adapted) raw_.reserve(pairs * padded(2 * decoder.expert_intermediate));
  if (static_cast<int64_t>(row_.size()) < pairs) {
    for (std::vector<int64_t>* list : {&expert_, &pair_, &row_, &place_}) list->resize(static_cast<size_t>(pairs));
    share_.resize(static_cast<size_t>(pairs));
  }
  for (StealQueue& queue : queues_) queue.reset();
}

void RoutedExperts::run(const Decoder& decoder, const Layer& layer, const bf16* x, int64_t rows, const ExpertAdapters& adapters,
                        const Output& output, const Worker& worker) {
  const int64_t hidden = padded(decoder.hidden);
  Gemm router{};
  router.x = x;
  router.x_stride = hidden;
  router.rows = rows;
  router.weight = plain_matrix(layer.router);
  router.outputs = experts_;
  router.inputs = decoder.hidden;
  router.output = {Sink::kFloat, logits_.data(), padded(experts_)};
  router.queue = &queues_.front();
  gemm(router, worker);
  worker.sync();
  route(decoder, rows, worker);
  worker.sync();
  if (worker.index == 0) {
    group(rows);
    find_adapted(adapters);
  }
  worker.sync();
  const Range mine = worker.share(rows * chosen_);
  for (int64_t p = mine.begin; p < mine.end; p++) {
    std::copy_n(x + row_[static_cast<size_t>(p)] * hidden, decoder.hidden, input_.data() + p * hidden);
  }
  worker.sync();
  multiply(decoder, layer, false, worker);
  worker.sync();
  if (any_adapted()) {
    adapt_gate_up(decoder, adapters, worker);
    worker.sync();
  }
  multiply(decoder, layer, true, worker);
  worker.sync();
  if (any_adapted()) {
    adapt_down(decoder, adapters, worker);
    worker.sync();
  }
  if (worker.index == 0) {
    for (StealQueue& queue : queues_) queue.reset();
  }
  add(decoder, rows, output, worker);
}

void RoutedExperts::route(const Decoder& decoder, int64_t rows, const Worker& worker) {
  const Range mine = worker.share(rows);
  for (int64_t r = mine.begin; r < mine.end; r++) choose(decoder, r);
}

// The row's likeliest experts, of equal ones the first, and their shares.
void RoutedExperts::choose(const Decoder& decoder, int64_t row) {
  float* x = logits_.data() + row * padded(experts_);
  const int last = static_cast<int>(experts_);
  Float best = simd::splat(simd::kLowest);
  for (int i = 0; i < last; i += kLanes) best = simd::max(best, simd::keep_range(simd::load(x + i), i, 0, last));
  const Float most = simd::splat(simd::max_lane(best));
  Float sum = simd::zero();
  for (int i = 0; i < last; i += kLanes) {
    const Float value = simd::exp(simd::sub(simd::keep_range(simd::load(x + i), i, 0, last), most));
    simd::store(x + i, value);
    sum = simd::add(sum, value);
  }
  int64_t* expert = expert_.data() + row * chosen_;
  float* share = share_.data() + row * chosen_;
  float chosen = 0;
  for (int64_t k = 0; k < chosen_; k++) {
    int64_t likeliest = 0;
    for (int64_t e = 1; e < experts_; e++) likeliest = x[e] > x[likeliest] ? e : likeliest;
    expert[k] = likeliest;
    share[k] = x[likeliest];
    chosen += share[k];
    x[likeliest] = -1;  // below every exponential
  }
  const float whole = decoder.normalized_shares != 0 ? chosen : simd::sum(sum);
  for (int64_t k = 0; k < chosen_; k++) share[k] /= whole;
}

void RoutedExperts::group(int64_t rows) {
  std::fill(begin_.begin(), begin_.end(), 0);
  const int64_t pairs = rows * chosen_;
  for (int64_t i = 0; i < pairs; i++) begin_[static_cast<size_t>(expert_[static_cast<size_t>(i)] + 1)]++;
  for (int64_t e = 0; e < experts_; e++) begin_[static_cast<size_t>(e + 1)] += begin_[static_cast<size_t>(e)];
  for (int64_t i = 0; i < pairs; i++) {
    const int64_t place = begin_[static_cast<size_t>(expert_[static_cast<size_t>(i)])]++;
    pair_[static_cast<size_t>(i)] = place;
    row_[static_cast<size_t>(place)] = i / chosen_;
    place_[static_cast<size_t>(place)] = expert_[static_cast<size_t>(i)];
  }
  for (int64_t e = experts_; e > 0; e--) begin_[static_cast<size_t>(e)] = begin_[static_cast<size_t>(e - 1)];
  begin_[0] = 0;
}

// One of the two products of all experts that any row takes; a thread goes from one to the next without waiting.
void RoutedExperts::multiply(const Decoder& decoder, const Layer& layer, bool down, const Worker& worker) {
  const int64_t hidden = padded(decoder.hidden);
  const int64_t inner = padded(decoder.expert_intermediate);
  const Sink sink = decoder.activation == kGeluTanh ? Sink::kGeluMul : Sink::kSiluMul;
  for (int64_t e = 0; e < experts_; e++) {
    const int64_t first = begin_[static_cast<size_t>(e)];
    Gemm job{};
    job.rows = begin_[static_cast<size_t>(e + 1)] - first;
    if (job.rows == 0) continue;
    job.x = down ? product_.data() + first * inner : input_.data() + first * hidden;
    job.x_stride = down ? inner : hidden;
    job.weight = plain_matrix(down ? layer.expert_down[e] : layer.expert_gate_up[e]);
    job.outputs = down ? decoder.hidden : 2 * decoder.expert_intermediate;
    job.inputs = down ? decoder.expert_intermediate : decoder.hidden;
    if (down) {
      job.output = {Sink::kFloat, output_.data() + first * hidden, hidden};
    } else if (adapted_[static_cast<size_t>(e)] != 0) {
      const int64_t wide = padded(2 * decoder.expert_intermediate);
      job.output = {Sink::kFloat, raw_.data() + first * wide, wide};
    } else {
      job.output = {sink, product_.data() + first * inner, inner};
    }
    job.queue = &queues_[static_cast<size_t>(1 + 2 * e + (down ? 1 : 0))];
    gemm(job, worker);
  }
}

void RoutedExperts::add(const Decoder& decoder, int64_t rows, const Output& output, const Worker& worker) const {
  const int64_t hidden = padded(decoder.hidden);
  const Range mine = worker.share(rows);
  alignas(64) float sum[16];
  for (int64_t r = mine.begin; r < mine.end; r++) {
    for (int64_t column = 0; column < decoder.hidden; column += 16) {
      for (int i = 0; i < 16; i += kLanes) {
        Float total = simd::zero();
        for (int64_t k = r * chosen_; k < (r + 1) * chosen_; k++) {
          const Float part = simd::load(output_.data() + pair_[static_cast<size_t>(k)] * hidden + column + i);
          total = simd::fma(part, simd::splat(share_[static_cast<size_t>(k)]), total);
        }
        simd::store(sum + i, total);
      }
      output.write(r, column, sum);
    }
  }
}

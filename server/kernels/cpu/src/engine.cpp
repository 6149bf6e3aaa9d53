#include "engine.h"

#include <omp.h>

#include <algorithm>

#include "norm.h"
#include "rope.h"

namespace {

int64_t padded(int64_t columns) { return round_up(columns, kBlockOutputs); }

int64_t kv_layer_elements(const Decoder& d) { return d.num_blocks * d.kv_heads * 2 * kBlockTokens * d.head_dim; }

int64_t qkv_columns(const Decoder& d) { return (d.heads + 2 * d.kv_heads) * d.head_dim; }

constexpr int64_t kModulesPerLayer = 7;  // q, k, v, o, gate, up, down

constexpr int64_t kMaxEarly = 4 << 20;   // bytes a thread reads ahead into the shared cache

}  // namespace

Engine::Engine(const Decoder& decoder)
    : decoder_(decoder),
      layers_(decoder.layer, decoder.layer + decoder.layers),
      kv_(kv_layer_elements(decoder) * decoder.layers),
      states_(static_cast<size_t>(decoder.threads)),
      queues_{StealQueue(static_cast<int>(decoder.threads)), StealQueue(static_cast<int>(decoder.threads))},
      image_queue_(static_cast<int>(decoder.threads)) {
  decoder_.layer = layers_.data();
  std::vector<int64_t> windows;
  for (const Layer& layer : layers_) {
    const auto known = std::find(windows.begin(), windows.end(), layer.window);
    layer_plan_.push_back(static_cast<size_t>(known - windows.begin()));
    if (known == windows.end()) windows.push_back(layer.window);
  }
  for (const int64_t window : windows) plans_.emplace_back(window);
}

const AttentionPlan& Engine::plan_of(int64_t layer) const { return plans_[layer_plan_[static_cast<size_t>(layer)]]; }

KvCache Engine::cache_of(int64_t layer) const {
  return {kv_.data() + layer * kv_layer_elements(decoder_), decoder_.kv_heads, decoder_.head_dim};
}

// Everything that may allocate happens here, before the threads start.
void Engine::prepare(const Step& step) {
  const Decoder& d = decoder_;
  if (step.rows > space_.rows) {
    const int64_t rows = std::max(step.rows, d.max_rows);
    space_.residual.reserve(rows * padded(d.hidden));
    space_.normed.reserve(rows * padded(d.hidden));
    space_.qkv.reserve(rows * padded(qkv_columns(d)));
    space_.attended.reserve(rows * padded(d.heads * d.head_dim));
    space_.product.reserve(rows * padded(d.intermediate));
    space_.rows = rows;
  }
  active_ = step.layer != nullptr ? step.layer : layers_.data();
  queues_[0].reset();
  lora_.build(step.lora, d.pool, step, padded(std::max({qkv_columns(d), d.hidden, 2 * d.intermediate})),
              padded(std::max({d.hidden, d.heads * d.head_dim, d.intermediate})));
  for (AttentionPlan& plan : plans_) {
    plan.build(step, d.heads, d.kv_heads, d.head_dim, static_cast<int>(d.threads));
    shared_.reserve(plan, d.heads / d.kv_heads, d.head_dim);
    for (ThreadState& state : states_) state.attention.reserve(plan, d.heads, d.kv_heads, d.head_dim);
  }
  for (ThreadState& state : states_) {
    for (LoraShare& share : state.lora) share.reserve(lora_);
    state.lora_scratch.reserve(lora_);
    state.delta_lines.reserve(simd::kGemmRows * 2 * lora_.max_entries);
    state.delta_panel.reserve(2 * kBlockOutputs * lora_.max_pairs);
  }
}

void Engine::run(const Step& step) {
  prepare(step);
#pragma omp parallel num_threads(static_cast<int>(decoder_.threads))
  {
    const int count = omp_get_num_threads();
    if (count == decoder_.threads) {
      work(step, {omp_get_thread_num(), count, &barrier_});
    } else if (omp_get_thread_num() == 0) {
      // OpenMP gave fewer threads than the plans were made for: one does everything.
      for (AttentionPlan& plan : plans_) plan.build(step, decoder_.heads, decoder_.kv_heads, decoder_.head_dim, 1);
      work(step, {0, 1, &barrier_});
    }
  }
}

void Engine::work(const Step& step, const Worker& worker) {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  ThreadState& mine = states_[static_cast<size_t>(worker.index)];
  const auto norm = [&](const float* weight) {
    rms_norm({space_.residual.data(), hidden, nullptr, weight, d.eps, step.rows, d.hidden, space_.normed.data(), hidden}, worker);
    worker.sync();
  };
  embed(d.embedding, step.token_ids, space_.residual.data(), hidden, step.rows, d.hidden, worker);
  if (step.given_count > 0) take_given(step, worker);
  mine.upcoming.restart(lora_.any_direct ? 0 : kMaxEarly);
  for (int64_t number = 0; number < Upcoming::kWindow - 1; number++) announce(number, mine, worker);
  for (int64_t layer = 0; layer < d.layers; layer++) {
    const Layer& weights = active_[layer];
    if (worker.index == 0) shared_.next_task.store(0, std::memory_order_relaxed);
    norm(weights.input_norm);
    project(step, 4 * layer + kQkv, mine, worker);
    attend(step, layer, mine, worker);
    project(step, 4 * layer + kO, mine, worker);
    norm(weights.post_norm);
    project(step, 4 * layer + kGateUp, mine, worker);
    project(step, 4 * layer + kDown, mine, worker);
  }
  logits(step, worker);
}

// Embeddings that the caller gives, over those just looked up: a thread does the rows it looked up itself.
void Engine::take_given(const Step& step, const Worker& worker) {
  const Range mine = worker.share(step.rows);
  const int64_t hidden = padded(decoder_.hidden);
  for (int64_t i = 0; i < step.given_count; i++) {
    const int64_t row = step.given_rows[i];
    if (row < mine.begin || row >= mine.end) continue;
    std::copy_n(step.given + i * decoder_.hidden, decoder_.hidden, space_.residual.data() + row * hidden);
  }
}

void Engine::attend(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker) {
  const Decoder& d = decoder_;
  const Layer& weights = active_[layer];
  const int64_t stride = padded(qkv_columns(d));
  rope({space_.qkv.data(), stride, step.rows, d.heads, cache_of(layer), d.cos, d.sin, step.positions, step.slots,
        weights.q_norm, weights.k_norm, d.eps},
       worker);
  worker.sync();
  attention({&step, &plan_of(layer), space_.qkv.data(), stride, space_.attended.data(), padded(d.heads * d.head_dim),
             d.heads / d.kv_heads, cache_of(layer), d.scale, &shared_},
            mine.attention, worker);
  worker.sync();
}

// Makes known what the thread reads after product `number`: the adapters of direct rows, else the
// cache after qkv. Both would push each other out of the second-level cache.
void Engine::announce(int64_t number, ThreadState& mine, const Worker& worker) {
  if (number >= 4 * decoder_.layers) return;
  ByteStream pages;
  ByteStream cache;
  if (lora_.active()) {
    LoraShare& share = mine.lora[number % Upcoming::kWindow];
    const ByteRange following{reinterpret_cast<const char*>(own_weights_of(number + 1, worker)), kPagesAhead};
    share.build(lora_, site_of(number), following, worker);
    if (lora_.any_direct) pages = ByteStream(share.ranges);
  }
  if (number % 4 == kQkv && !lora_.any_direct) cache = ByteStream(plan_of(number / 4).reads(worker.index), cache_of(number / 4).data);
  mine.upcoming.announce(pages, cache);
}

// One matrix product with the adapters' delta to it. Ends with a barrier.
void Engine::project(const Step& step, int64_t number, ThreadState& mine, const Worker& worker) {
  announce(number + Upcoming::kWindow - 1, mine, worker);
  mine.upcoming.start(number);
  Gemm job = product_of(number, step.rows);
  job.later = &mine.upcoming;
  job.next = own_weights_of(number + 1, worker);
  if (!lora_.active()) {
    multiply(job, number, worker);
    worker.sync();
    return;
  }
  const LoraSite site = site_of(number);
  LoraShare& share = mine.lora[number % Upcoming::kWindow];
  if (lora_.any_tiled) {
    lora_shrink(lora_, site, share);
    worker.sync();
  }
  if (lora_.any_vectors) make_images(site, number, worker);
  LoraDelta delta(lora_, site, mine.delta_lines.data(), mine.delta_panel.data(), own_first_block(job.outputs, worker));
  job.delta = &delta;
  if (lora_.any_direct) job.next = share.ranges.front().data;
  multiply(job, number, worker);
  worker.sync();
  if (lora_.any_direct) {
    lora_direct(lora_, site, share, mine.lora_scratch);
    worker.sync();
  }
}

// The products of the weights with inputs that adapters scale. Ends with a barrier if there are any.
void Engine::make_images(const LoraSite& site, int64_t number, const Worker& worker) {
  const int64_t rows = static_cast<int64_t>(lora_.scaled_from.size());
  for (int64_t m = 0; m < site.modules; m++) {
    if (!scales_input(lora_, site, m)) continue;
    if (worker.index == 0) image_queue_.reset();
    scale_inputs(lora_, site, m, worker);
    worker.sync();
    Gemm job = product_of(number, rows);
    job.x = lora_.scaled.data();
    job.x_stride = round_up(site.in, kPageAlign);
    job.bias = nullptr;
    job.output = {Sink::kFloat, lora_.images.data() + m * rows * lora_.output_stride, lora_.output_stride};
    job.queue = &image_queue_;
    gemm(job, worker);
    worker.sync();
  }
}

void Engine::multiply(Gemm job, int64_t number, const Worker& worker) {
  if (worker.index == 0) queues_[(number + 1) % 2].reset();
  job.queue = &queues_[number % 2];
  gemm(job, worker);
}

void Engine::logits(const Step& step, const Worker& worker) {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  rms_norm({space_.residual.data(), hidden, step.logits_rows, d.final_norm, d.eps, step.logits_count, d.hidden,
            space_.normed.data(), hidden},
           worker);
  worker.sync();
  if (step.final_hidden != nullptr) {
    const Range mine = worker.share(step.logits_count);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      std::copy_n(space_.normed.data() + r * hidden, d.hidden, step.final_hidden + r * d.hidden);
    }
  }
  Gemm job = product_of(4 * d.layers, step.logits_count);
  job.output.data = step.logits;
  multiply(job, 4 * d.layers, worker);
}

// The product of that number; the language model's head comes after the last layer's.
Gemm Engine::product_of(int64_t number, int64_t rows) const {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  const int64_t attended = padded(d.heads * d.head_dim);
  const int64_t product = padded(d.intermediate);
  Gemm job{};
  job.rows = rows;
  job.x = space_.normed.data();
  job.x_stride = hidden;
  job.inputs = d.hidden;
  if (number == 4 * d.layers) {
    job.weight = d.lm_head;
    job.outputs = d.vocab;
    job.output = {Sink::kFloat, nullptr, padded(d.vocab)};
    return job;
  }
  const Layer& weights = active_[number / 4];
  switch (number % 4) {
    case kQkv:
      job.weight = weights.qkv;
      job.bias = weights.qkv_bias;
      job.outputs = qkv_columns(d);
      job.output = {Sink::kBf16, space_.qkv.data(), padded(job.outputs)};
      break;
    case kGateUp:
      job.weight = weights.gate_up;
      job.bias = weights.gate_up_bias;
      job.outputs = 2 * d.intermediate;
      job.output = {Sink::kSiluMul, space_.product.data(), product};
      break;
    default:  // o and down add to the residual stream
      const bool is_o = number % 4 == kO;
      job.x = is_o ? space_.attended.data() : space_.product.data();
      job.x_stride = is_o ? attended : product;
      job.inputs = is_o ? d.heads * d.head_dim : d.intermediate;
      job.weight = is_o ? weights.o : weights.down;
      job.bias = is_o ? weights.o_bias : weights.down_bias;
      job.outputs = d.hidden;
      job.output = {Sink::kAddFloat, space_.residual.data(), hidden};
  }
  return job;
}

LoraSite Engine::site_of(int64_t number) const {
  const Decoder& d = decoder_;
  const Gemm job = product_of(number, 0);
  const int64_t first = number / 4 * kModulesPerLayer;
  const int64_t q = d.heads * d.head_dim;
  const int64_t kv = d.kv_heads * d.head_dim;
  switch (number % 4) {
    case kQkv: return {first, 3, job.inputs, {q, kv, kv}, job.x, job.x_stride, job.output};
    case kO: return {first + 3, 1, job.inputs, {d.hidden, 0, 0}, job.x, job.x_stride, job.output};
    case kGateUp: return {first + 4, 2, job.inputs, {d.intermediate, d.intermediate, 0}, job.x, job.x_stride, job.output};
    default: return {first + 6, 1, job.inputs, {d.hidden, 0, 0}, job.x, job.x_stride, job.output};
  }
}

const bf16* Engine::own_weights_of(int64_t number, const Worker& worker) const {
  const Gemm job = product_of(number, 0);
  return own_weights(job.weight, job.outputs, job.inputs, worker);
}

// Arguments that would make a kernel read or write outside its memory are faults of the caller's
// bookkeeping. Finding them costs microseconds.
StepFault Engine::check(const Step& step) const {
  const Decoder& d = decoder_;
  for (int64_t r = 0; r < step.rows; r++) {
    if (step.token_ids[r] < 0 || step.token_ids[r] >= d.vocab) return kBadToken;
    if (step.positions[r] < 0 || step.positions[r] >= d.positions) return kBadPosition;
    if (step.slots[r] < 0 || step.slots[r] >= d.num_blocks * kBlockTokens) return kBadSlot;
  }
  if (step.query_start[0] != 0 || step.query_start[step.sequences] != step.rows) return kBadSequence;
  for (int64_t s = 0; s < step.sequences; s++) {
    const int64_t rows = step.query_start[s + 1] - step.query_start[s];
    const int64_t blocks = (step.context[s] + kBlockTokens - 1) / kBlockTokens;
    if (rows < 0 || step.context[s] < rows || blocks > step.table_width) return kBadSequence;
    for (int64_t b = 0; b < blocks; b++) {
      const int32_t block = step.block_tables[s * step.table_width + b];
      if (block < 0 || block >= d.num_blocks) return kBadBlock;
    }
  }
  for (int64_t i = 0; i < step.logits_count; i++) {
    if (step.logits_rows[i] < 0 || step.logits_rows[i] >= step.rows) return kBadLogitsRow;
  }
  for (int64_t i = 0; i < step.given_count; i++) {
    if (step.given_rows[i] < 0 || step.given_rows[i] >= step.rows) return kBadGivenRow;
  }
  if (step.lora == nullptr) return kStepDone;
  for (int64_t s = 0; s < step.sequences; s++) {
    for (int64_t e = step.lora->start[s]; e < step.lora->start[s + 1]; e++) {
      if (step.lora->adapter[e] < 0 || step.lora->adapter[e] >= step.lora->adapters) return kBadAdapter;
    }
  }
  return kStepDone;
}

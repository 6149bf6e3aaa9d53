#include "engine.h"

#include <omp.h>

#include <algorithm>

#include "norm.h"
#include "rope.h"

namespace {

KvCache cache_at(const Decoder& d, char* data) { return {data, d.kv_heads, d.head_dim, d.kv_coded != 0}; }

int64_t kv_layer_bytes(const Decoder& d) { return d.num_blocks * d.kv_heads * cache_at(d, nullptr).unit_bytes(); }

constexpr int64_t kMaxEarly = 4 << 20;   // bytes a thread reads ahead into the shared cache

}  // namespace

Engine::Engine(const Decoder& decoder)
    : decoder_(decoder),
      layers_(decoder.layer, decoder.layer + decoder.layers),
      norms_(decoder.layer[0]),
      modules_(decoder),
      kv_(kv_layer_bytes(decoder) * decoder.layers),
      experts_(decoder),
      states_(static_cast<size_t>(decoder.threads)),
      last_plan_(decoder.layer[decoder.layers - 1].window),
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
  for (ThreadState& state : states_) state.unpacked.reserve(unpacked_elements());
}

const LoraStep* Engine::norms_of(int64_t number) const {
  const LoraStep& lora = lora_of(number);
  return lora.active() && lora.any_norms ? &lora : nullptr;
}

const AttentionPlan& Engine::plan_of(int64_t layer) const {
  if (in_last_rows(4 * layer + kO)) return last_plan_;
  return plans_[layer_plan_[static_cast<size_t>(layer)]];
}

KvCache Engine::cache_of(int64_t layer) const {
  return cache_at(decoder_, kv_.data() + layer * kv_layer_bytes(decoder_));
}

// Everything that may allocate happens here, before the threads start.
void Engine::prepare(const Step& step) {
  const Decoder& d = decoder_;
  if (step.rows > space_.rows) {
    const int64_t rows = std::max(step.rows, d.max_rows);
    space_.residual.reserve(rows * padded(d.hidden));
    space_.normed.reserve(rows * padded(d.hidden));
    if (d.layer[0].attention_norm != nullptr || d.layer[0].mlp_norm != nullptr) space_.branch.reserve(rows * padded(d.hidden));
    space_.qkv.reserve(rows * padded(qkv_columns(d)));
    space_.attended.reserve(rows * padded(d.heads * d.head_dim));
    space_.product.reserve(rows * padded(d.intermediate));
    space_.rows = rows;
  }
  experts_.reserve(d, space_.rows, adapts_experts(step));
  active_ = step.layer != nullptr ? step.layer : layers_.data();
  queues_[0].reset();
  some_last_ = last_rows_.find(step);
  plan_attention(step, static_cast<int>(d.threads));
  prepare_lora(step, lora_);
  if (some_last_) prepare_lora(last_rows_.step(), last_lora_);
}

void Engine::plan_attention(const Step& step, int threads) {
  const Decoder& d = decoder_;
  const auto make = [&](AttentionPlan& plan, const Step& planned) {
    plan.build(planned, d.heads, cache_at(d, nullptr), threads);
    shared_.reserve(plan, d.heads / d.kv_heads, d.head_dim);
    for (ThreadState& state : states_) state.attention.reserve(plan, d.heads, cache_at(d, nullptr));
  };
  for (AttentionPlan& plan : plans_) make(plan, step);
  if (some_last_) make(last_plan_, last_rows_.step());
}

void Engine::prepare_lora(const Step& step, LoraStep& lora) {
  const Decoder& d = decoder_;
  lora.build(step.lora, d.pool, step, padded(std::max({qkv_columns(d), d.hidden, 2 * d.intermediate})),
             padded(std::max({d.hidden, d.heads * d.head_dim, d.intermediate})));
  for (ThreadState& state : states_) {
    for (LoraShare& share : state.lora) share.reserve(lora);
    state.lora_scratch.reserve(lora);
    state.delta_lines.reserve(simd::kGemmRows * 2 * lora.max_entries);
    state.delta_panel.reserve(2 * kBlockOutputs * lora.max_pairs);
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
      plan_attention(step, 1);
      work(step, {0, 1, &barrier_});
    }
  }
}

void Engine::work(const Step& step, const Worker& worker) {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  ThreadState& mine = states_[static_cast<size_t>(worker.index)];
  embed(d.embedding, d.embedding_scale, step.token_ids, space_.residual.data(), hidden, step.rows, d.hidden, worker);
  if (step.given_count > 0) take_given(step, worker);
  mine.upcoming.restart(lora_.any_direct ? 0 : kMaxEarly);
  for (int64_t number = 0; number < Upcoming::kWindow - 1; number++) announce(number, mine, worker);
  for (int64_t layer = 0; layer < d.layers; layer++) {
    const Layer& weights = active_[layer];
    if (worker.index == 0) shared_.next_task.store(0, std::memory_order_relaxed);
    enter(weights.input_norm, step.rows, 4 * layer + kQkv, norm_module(layer, norms_.input), worker);
    project(step, 4 * layer + kQkv, mine, worker);
    rotate(step, layer, worker);
    const bool some = in_last_rows(4 * layer + kO);
    if (some) keep_last_rows(worker);
    const Step& rest = some ? last_rows_.step() : step;
    if (rest.rows == 0) return;
    attend(rest, layer, mine, worker);
    project(rest, 4 * layer + kO, mine, worker);
    add_branch(weights.attention_norm, rest.rows, 4 * layer + kO, norm_module(layer, norms_.attention), worker);
    enter(weights.post_norm, rest.rows, 4 * layer + kGateUp, norm_module(layer, norms_.post), worker);
    mlp(rest, layer, mine, worker);
    add_branch(weights.mlp_norm, rest.rows, 4 * layer + kDown, norm_module(layer, norms_.mlp), worker);
  }
  if (norms_.mlp != NormPlaces::kNone || d.experts > 0) worker.sync();  // the final norm shares out other rows
  logits(some_last_ ? last_rows_.step() : step, worker);
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

void Engine::mlp(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker) {
  const int64_t first = 4 * layer + kGateUp;
  if (!of_experts(first)) {
    project(step, first, mine, worker);
    project(step, first + 1, mine, worker);
    return;
  }
  for (int64_t number = first; number < first + 2; number++) {
    announce(number + Upcoming::kWindow - 1, mine, worker);
    mine.upcoming.start(number);
  }
  const LoraStep& lora = lora_of(first);
  const ExpertAdapters adapters{adapts_experts(step) ? &lora : nullptr, expert_module(layer)};
  experts_.run(decoder_, active_[layer], space_.normed.data(), step.rows, adapters, product_of(first + 1, step.rows).output,
               worker);
}

// Whether any adapter of the step has rank pages at experts.
bool Engine::adapts_experts(const Step& step) const {
  if (decoder_.experts == 0 || step.lora == nullptr) return false;
  const int32_t* rank = step.lora->max_expert_rank;
  return std::any_of(rank, rank + step.lora->adapters, [](int32_t most) { return most > 0; });
}

// What attention or the MLP starts from: the rows of the residual stream, normalized if the model does.
void Engine::enter(const float* weight, int64_t rows, int64_t number, int64_t module, const Worker& worker) {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  if (weight != nullptr) {
    rms_norm({space_.residual.data(), hidden, nullptr, weight, d.eps, rows, d.hidden, space_.normed.data(), hidden,
              norms_of(number), module},
             worker);
  } else {
    round_rows(space_.residual.data(), hidden, space_.normed.data(), hidden, rows, d.hidden, worker);
  }
  worker.sync();
}

// Adds what a product gave to the residual stream, where a norm comes between. A thread does the rows that it enters
// the next part with: no barrier is needed.
void Engine::add_branch(const float* weight, int64_t rows, int64_t number, int64_t module, const Worker& worker) {
  const Decoder& d = decoder_;
  if (weight == nullptr) return;
  add_rms_norm({space_.branch.data(), space_.residual.data(), padded(d.hidden), weight, d.eps, d.residual_scale, rows, d.hidden,
                norms_of(number), module},
               worker);
}

// Turns queries and keys to their positions, and writes keys and values to the cache.
void Engine::rotate(const Step& step, int64_t layer, const Worker& worker) {
  const Decoder& d = decoder_;
  const Layer& weights = active_[layer];
  const int64_t stride = padded(qkv_columns(d));
  const LoraStep* lora = norms_of(4 * layer + kQkv);
  const bool joint = d.joint_qk_norm != 0;
  if (joint) {
    const int64_t q = d.heads * d.head_dim;
    rms_norm_in_place({space_.qkv.data(), stride, weights.q_norm, d.eps, step.rows, q, lora, norm_module(layer, norms_.q)}, worker);
    rms_norm_in_place({space_.qkv.data() + q, stride, weights.k_norm, d.eps, step.rows, d.kv_heads * d.head_dim, lora,
                       norm_module(layer, norms_.k)},
                      worker);
    worker.sync();
  }
  rope({space_.qkv.data(), stride, step.rows, d.heads, cache_of(layer), weights.cos, weights.sin, d.turned, step.positions,
        step.slots, joint ? nullptr : weights.q_norm, joint ? nullptr : weights.k_norm, d.eps, lora,
        norm_module(layer, norms_.q)},
       worker);
  worker.sync();
}

void Engine::keep_last_rows(const Worker& worker) {
  const Decoder& d = decoder_;
  if (worker.index == 0) {
    last_rows_.gather(space_.residual.data(), padded(d.hidden), d.hidden);
    last_rows_.gather(space_.qkv.data(), padded(qkv_columns(d)), d.heads * d.head_dim);
  }
  worker.sync();
}

void Engine::attend(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker) {
  const Decoder& d = decoder_;
  attention({&step, &plan_of(layer), space_.qkv.data(), padded(qkv_columns(d)), space_.attended.data(),
             padded(d.heads * d.head_dim), d.heads / d.kv_heads, cache_of(layer), d.scale, d.score_cap, &shared_},
            mine.attention, worker);
  worker.sync();
}

// Makes known what the thread reads after product `number`: the adapters of direct rows, else the
// cache after qkv. Both would push each other out of the second-level cache.
void Engine::announce(int64_t number, ThreadState& mine, const Worker& worker) {
  if (number >= 4 * decoder_.layers) return;
  if (of_experts(number)) {
    mine.upcoming.announce({}, {});
    return;
  }
  ByteStream pages;
  ByteStream cache;
  const LoraStep& lora = lora_of(number);
  if (lora.active()) {
    LoraShare& share = mine.lora[number % Upcoming::kWindow];
    const ByteRange following{own_codes_of(number + 1, worker), kPagesAhead};
    share.build(lora, site_of(number), following, worker);
    if (lora.any_direct) pages = ByteStream(share.ranges);
  }
  if (number % 4 == kQkv && !lora.any_direct) cache = ByteStream(plan_of(number / 4).reads(worker.index), cache_of(number / 4).data);
  mine.upcoming.announce(pages, cache);
}

// One matrix product with the adapters' delta to it. Ends with a barrier.
void Engine::project(const Step& step, int64_t number, ThreadState& mine, const Worker& worker) {
  announce(number + Upcoming::kWindow - 1, mine, worker);
  mine.upcoming.start(number);
  Gemm job = product_of(number, step.rows);
  job.later = &mine.upcoming;
  job.next = own_codes_of(number + 1, worker);
  const LoraStep& lora = lora_of(number);
  if (!lora.active()) {
    multiply(job, number, worker);
    worker.sync();
    return;
  }
  const LoraSite site = site_of(number);
  LoraShare& share = mine.lora[number % Upcoming::kWindow];
  if (lora.any_tiled) {
    lora_shrink(lora, site, share, mine.lora_scratch);
    worker.sync();
  }
  if (lora.any_vectors) make_images(site, number, worker);
  LoraDelta delta(lora, site, mine.delta_lines.data(), mine.delta_panel.data(), own_first_block(job.outputs, worker));
  job.delta = &delta;
  if (lora.any_direct) job.next = share.ranges.front().data;
  multiply(job, number, worker);
  worker.sync();
  if (lora.any_direct) {
    lora_direct(lora, site, share, mine.lora_scratch);
    worker.sync();
  }
}

// The products of the weights with inputs that adapters scale. Ends with a barrier if there are any.
void Engine::make_images(const LoraSite& site, int64_t number, const Worker& worker) {
  const LoraStep& lora = lora_of(number);
  const int64_t rows = static_cast<int64_t>(lora.scaled_from.size());
  for (int64_t m = 0; m < site.modules; m++) {
    if (!scales_input(lora, site, m)) continue;
    if (worker.index == 0) image_queue_.reset();
    scale_inputs(lora, site, m, worker);
    worker.sync();
    Gemm job = product_of(number, rows);
    job.x = lora.scaled.data();
    job.x_stride = round_up(site.in, kPageAlign);
    job.bias = nullptr;
    job.output = {Sink::kFloat, lora.images.data() + m * rows * lora.output_stride, lora.output_stride};
    job.queue = &image_queue_;
    job.unpacked = states_[static_cast<size_t>(worker.index)].unpacked.data();
    gemm(job, worker);
    worker.sync();
  }
}

void Engine::multiply(Gemm job, int64_t number, const Worker& worker) {
  if (worker.index == 0) queues_[(number + 1) % 2].reset();
  job.queue = &queues_[number % 2];
  job.unpacked = states_[static_cast<size_t>(worker.index)].unpacked.data();
  gemm(job, worker);
}

void Engine::logits(const Step& step, const Worker& worker) {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  rms_norm({space_.residual.data(), hidden, step.logits_rows, step.final_norm != nullptr ? step.final_norm : d.final_norm,
            d.eps, step.logits_count, d.hidden, space_.normed.data(), hidden, norms_of(4 * d.layers),
            norm_module(d.layers, 0)},
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
  if (step.raw_logits == 0 && (d.logit_scale != 1 || d.logit_cap > 0)) {
    job.output.sink = Sink::kLogits;
    job.output.scale = d.logit_scale;
    job.output.cap = d.logit_cap;
  }
  multiply(job, 4 * d.layers, worker);
}

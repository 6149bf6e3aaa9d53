// A decoder with its KV cache and working memory, and the step that runs it.
#pragma once

#include <vector>

#include "abi.h"
#include "attention.h"
#include "experts.h"
#include "gemm.h"
#include "last_rows.h"
#include "lora.h"
#include "memory.h"
#include "queue.h"
#include "worker.h"

// Columns of an activation in memory: whole blocks.
inline int64_t padded(int64_t columns) { return round_up(columns, kBlockOutputs); }

inline int64_t qkv_columns(const Decoder& d) { return (d.heads + 2 * d.kv_heads) * d.head_dim; }

// Activations, row-major. Columns behind the used ones up to a multiple of 32 are zero and stay so.
struct Workspace {
  int64_t rows = 0;
  Buffer<float> residual;  // [rows][hidden]
  Buffer<float> branch;    // [rows][hidden] what is normalized before it is added, in models that do so
  Buffer<bf16> normed;     // [rows][hidden]
  Buffer<bf16> qkv;        // [rows][(heads + 2 kv_heads) head_dim]
  Buffer<bf16> attended;   // [rows][heads head_dim]
  Buffer<bf16> product;    // [rows][intermediate]
};

// What belongs to one thread.
struct ThreadState {
  LoraShare lora[Upcoming::kWindow];  // of this product and the next ones, by number modulo the window
  Upcoming upcoming;
  LoraScratch lora_scratch;
  Buffer<DeltaLines> delta_lines;
  Buffer<bf16> delta_panel;
  AttentionScratch attention;
  Buffer<bf16> unpacked;              // a block of weights that are kept in few bits
};

// Norms of a layer, as adapters number them; kNone of those that the model does not have.
struct NormPlaces {
  static constexpr int64_t kNone = -1;
  int64_t input = kNone;
  int64_t q = kNone;
  int64_t k = kNone;
  int64_t attention = kNone;
  int64_t post = kNone;
  int64_t mlp = kNone;
  int64_t count = 0;

  explicit NormPlaces(const Layer& layer) {
    const auto place = [&](const float* weight) { return weight != nullptr ? count++ : kNone; };
    input = place(layer.input_norm);
    q = place(layer.q_norm);
    k = place(layer.k_norm);
    attention = place(layer.attention_norm);
    post = place(layer.post_norm);
    mlp = place(layer.mlp_norm);
  }
};

// The numbers by which adapters know the modules of the layers.
struct ModulePlaces {
  std::vector<int64_t> first;         // [layers + 1] of each layer; the last is that behind them all
  std::vector<int64_t> first_expert;  // [layers] of each layer's experts, counted from those of the first layer with any

  explicit ModulePlaces(const Decoder& decoder) : first{0} {
    int64_t experts = 0;
    for (int64_t i = 0; i < decoder.layers; i++) {
      const bool routed = decoder.layer[i].router != nullptr;
      first.push_back(first.back() + decoder.qkv_modules + 1 + (routed ? 0 : decoder.gate_up_modules + 1));
      first_expert.push_back(experts);
      if (routed) experts += 2 * decoder.experts;
    }
  }
};

struct Engine {
  explicit Engine(const Decoder& decoder);

  StepFault check(const Step& step) const;
  void run(const Step& step);
  StepFault fill_cache(const int64_t* slots, int64_t count, int64_t start);

 private:
  // The four matrix products of a layer, numbered layer * 4 + kind through the step.
  enum Kind { kQkv, kO, kGateUp, kDown };

  void prepare(const Step& step);
  void prepare_lora(const Step& step, LoraStep& lora);
  void plan_attention(const Step& step, int threads);
  void work(const Step& step, const Worker& worker);
  void take_given(const Step& step, const Worker& worker);
  void enter(const float* weight, int64_t rows, int64_t number, int64_t module, const Worker& worker);
  void add_branch(const float* weight, int64_t rows, int64_t number, int64_t module, const Worker& worker);
  void rotate(const Step& step, int64_t layer, const Worker& worker);
  void keep_last_rows(const Worker& worker);
  void attend(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker);
  void project(const Step& step, int64_t number, ThreadState& mine, const Worker& worker);
  void announce(int64_t number, ThreadState& mine, const Worker& worker);
  void make_images(const LoraSite& site, int64_t number, const Worker& worker);
  void multiply(Gemm job, int64_t number, const Worker& worker);
  void mlp(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker);
  void logits(const Step& step, const Worker& worker);

  Gemm product_of(int64_t number, int64_t rows) const;
  LoraSite site_of(int64_t number) const;
  const char* own_codes_of(int64_t number, const Worker& worker) const;
  int64_t unpacked_elements() const;
  bool in_last_rows(int64_t number) const { return some_last_ && number > 4 * (decoder_.layers - 1) + kQkv; }
  const LoraStep& lora_of(int64_t number) const { return in_last_rows(number) ? last_lora_ : lora_; }
  // The mixes at a product if any adapter may change the norm before it; null if none does.
  const LoraStep* norms_of(int64_t number) const;
  // Whether a product is of an MLP that the layer has experts in place of.
  bool of_experts(int64_t number) const {
    return number < 4 * decoder_.layers && number % 4 >= kGateUp && layers_[static_cast<size_t>(number / 4)].router != nullptr;
  }
  int64_t norm_module(int64_t layer, int64_t which) const {
    return modules_.first.back() + layer * norms_.count + which;
  }
  bool adapts_experts(const Step& step) const;
  int64_t expert_module(int64_t layer) const {
    return norm_module(decoder_.layers, 1) + modules_.first_expert[static_cast<size_t>(layer)];
  }
  const AttentionPlan& plan_of(int64_t layer) const;
  KvCache cache_of(int64_t layer) const;

  Decoder decoder_;
  std::vector<Layer> layers_;
  NormPlaces norms_;
  ModulePlaces modules_;
  const Layer* active_ = nullptr;      // the layers of the step that runs
  Reservation<char> kv_;
  Workspace space_;
  RoutedExperts experts_;
  LoraStep lora_;
  std::vector<ThreadState> states_;    // one a thread
  std::vector<AttentionPlan> plans_;   // one for each window that occurs
  std::vector<size_t> layer_plan_;
  LastRows last_rows_;
  LoraStep last_lora_;                 // of the last rows
  AttentionPlan last_plan_;
  bool some_last_ = false;             // whether the last rows are fewer than all
  AttentionShared shared_;
  StealQueue queues_[2];               // of this product and the next
  StealQueue image_queue_;
  Barrier barrier_;
};

// A decoder with its KV cache and working memory, and the step that runs it.
#pragma once

#include <vector>

#include "abi.h"
#include "attention.h"
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
  void rotate(const Step& step, int64_t layer, const Worker& worker);
  void keep_last_rows(const Worker& worker);
  void attend(const Step& step, int64_t layer, ThreadState& mine, const Worker& worker);
  void project(const Step& step, int64_t number, ThreadState& mine, const Worker& worker);
  void announce(int64_t number, ThreadState& mine, const Worker& worker);
  void make_images(const LoraSite& site, int64_t number, const Worker& worker);
  void multiply(Gemm job, int64_t number, const Worker& worker);
  void logits(const Step& step, const Worker& worker);

  Gemm product_of(int64_t number, int64_t rows) const;
  LoraSite site_of(int64_t number) const;
  const bf16* own_weights_of(int64_t number, const Worker& worker) const;
  bool in_last_rows(int64_t number) const { return some_last_ && number > 4 * (decoder_.layers - 1) + kQkv; }
  const LoraStep& lora_of(int64_t number) const { return in_last_rows(number) ? last_lora_ : lora_; }
  // The mixes at a product if any adapter may change the norm before it; null if none does.
  const LoraStep* norms_of(int64_t number) const;
  int64_t norms_per_layer() const { return decoder_.layer[0].q_norm != nullptr ? 4 : 2; }
  int64_t norm_module(int64_t layer, int64_t which) const { return 7 * decoder_.layers + layer * norms_per_layer() + which; }
  const AttentionPlan& plan_of(int64_t layer) const;
  KvCache cache_of(int64_t layer) const;

  Decoder decoder_;
  std::vector<Layer> layers_;
  const Layer* active_ = nullptr;      // the layers of the step that runs
  Reservation<char> kv_;
  Workspace space_;
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

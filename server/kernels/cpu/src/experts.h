// The MLPs of which every row takes a few: a router's products say which, and in what shares.
//
// Pairs of a row and one of its experts are grouped by expert, so that a product runs over all rows of an expert. A
// row's outputs are added up in the order of its experts, whoever else is in the step.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "lora.h"
#include "memory.h"
#include "output.h"
#include "queue.h"
#include "worker.h"

// The mixes of a step, where an adapter has rank pages at experts, and the number of a layer's first expert module.
struct ExpertAdapters {
  const LoraStep* lora;  // null: none has
  int64_t module;
};

class RoutedExperts {
 public:
  explicit RoutedExperts(const Decoder& decoder);

  // Makes room for a step's rows, and for what adapters add if any does. Before the threads start.
  void reserve(const Decoder& decoder, int64_t rows, bool adapted);

  // The experts' MLPs of the rows of x, to where the outputs of an MLP go. Called by every thread; ends with the
  // thread's share of the rows done.
  void run(const Decoder& decoder, const Layer& layer, const bf16* x, int64_t rows, const ExpertAdapters& adapters,
           const Output& output, const Worker& worker);

 private:
  void route(const Decoder& decoder, int64_t rows, const Worker& worker);
  void choose(const Decoder& decoder, int64_t row);
  void group(int64_t rows);
  void multiply(const Decoder& decoder, const Layer& layer, bool down, const Worker& worker);
  void find_adapted(const ExpertAdapters& adapters);
  void adapt_gate_up(const Decoder& decoder, const ExpertAdapters& adapters, const Worker& worker);
  void adapt_down(const Decoder& decoder, const ExpertAdapters& adapters, const Worker& worker);
  bool any_adapted() const { return adapted_pairs_ > 0; }
  void add(const Decoder& decoder, int64_t rows, const Output& output, const Worker& worker) const;

  int64_t experts_;
  int64_t chosen_;
  Buffer<float> logits_;         // [rows][experts rounded up to 32], then their exponentials
  std::vector<int64_t> expert_;  // [rows][chosen] the likeliest first
  std::vector<float> share_;     // [rows][chosen]
  std::vector<int64_t> pair_;    // [rows][chosen] its place in the order by expert
  std::vector<int64_t> row_;     // [pairs]
  std::vector<int64_t> begin_;   // [experts + 1] the pairs of each expert
  std::vector<int64_t> place_;   // [pairs] the expert of each, in that order
  std::vector<char> adapted_;    // [experts] whether a mix of any of its rows has rank pages there
  int64_t adapted_pairs_ = 0;    // of those experts
  Buffer<float> raw_;            // [pairs][2 intermediate] gate and up before adapters, in the packed order
  Buffer<bf16> input_;           // [pairs][hidden]
  Buffer<bf16> product_;         // [pairs][intermediate]
  Buffer<float> output_;         // [pairs][hidden]
  std::vector<StealQueue> queues_;  // of the router's product, then of each expert's two
};

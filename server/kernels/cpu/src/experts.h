// The MLPs of which every row takes a few: a router's products say which, and in what shares.
//
// Pairs of a row and one of its experts are grouped by expert, so that a product runs over all rows of an expert. A
// row's outputs are added up in the order of its experts, whoever else is in the step.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "output.h"
#include "queue.h"
#include "worker.h"

class RoutedExperts {
 public:
  explicit RoutedExperts(const Decoder& decoder);

  // Makes room for a step's rows. Before the threads start.
  void reserve(const Decoder& decoder, int64_t rows);

  // The experts' MLPs of the rows of x, to where the outputs of an MLP go. Called by every thread; ends with the
  // thread's share of the rows done.
  void run(const Decoder& decoder, const Layer& layer, const bf16* x, int64_t rows, const Output& output, const Worker& worker);

 private:
  void route(const Decoder& decoder, int64_t rows, const Worker& worker);
  void choose(const Decoder& decoder, int64_t row);
  void group(int64_t rows);
  void multiply(const Decoder& decoder, const Layer& layer, bool down, const Worker& worker);
  void add(const Decoder& decoder, int64_t rows, const Output& output, const Worker& worker) const;

  int64_t experts_;
  int64_t chosen_;
  Buffer<float> logits_;         // [rows][experts rounded up to 32], then their exponentials
  std::vector<int64_t> expert_;  // [rows][chosen] the likeliest first
  std::vector<float> share_;     // [rows][chosen]
  std::vector<int64_t> pair_;    // [rows][chosen] its place in the order by expert
  std::vector<int64_t> row_;     // [pairs]
  std::vector<int64_t> begin_;   // [experts + 1] the pairs of each expert
  Buffer<bf16> input_;           // [pairs][hidden]
  Buffer<bf16> product_;         // [pairs][intermediate]
  Buffer<float> output_;         // [pairs][hidden]
  std::vector<StealQueue> queues_;  // of the router's product, then of each expert's two
};

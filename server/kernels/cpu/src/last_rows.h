// The rows that the end of the last layer is computed for. All rows write their keys and values there, but what
// follows is only read by the head: for the rows whose logits are wanted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "abi.h"

class LastRows {
 public:
  // Whether only some rows are wanted, and of each sequence its last ones, as their attention is planned for.
  bool find(const Step& step);

  // The step as it goes on: the wanted rows, in order. Sequences keep their numbers, some without rows.
  const Step& step() const { return step_; }

  // Moves each wanted row of x to its place.
  template <typename T>
  void gather(T* x, int64_t stride, int64_t columns) const {
    for (int64_t r = 0; r < step_.rows; r++) {
      T* from = x + source_[r] * stride;
      if (source_[r] != r) std::copy_n(from, columns, x + r * stride);
    }
  }

 private:
  Step step_{};
  const int64_t* source_ = nullptr;  // [rows] ascending
  std::vector<int32_t> start_;       // [sequences + 1]
};

// Drawing the next token of each row from its logits: temperature, then top-k, top-p of what that leaves, min-p.
#pragma once

#include <vector>

#include "abi.h"
#include "memory.h"
#include "selection.h"

// One row of logits in pieces, the last one filled up with -inf, which is also what tokens have that may not be
// drawn.
class LogitsRow {
 public:
  static constexpr int64_t kPiece = 256;

  // Makes room for rows of that width; `copies`: also for those of which tokens are left out.
  void reserve(int64_t width, bool copies);

  // Null for `allowed`: all tokens are.
  void open(const float* logits, int64_t width, const uint32_t* allowed);

  int64_t width() const { return width_; }
  int64_t pieces() const { return pieces_; }
  const float* piece(int64_t i) const { return piece_.data()[i]; }
  float best(int64_t i) const { return best_.data()[i]; }
  const float* best() const { return best_.data(); }
  float top() const { return top_; }

  // The id of the ordinal-th token (from 1, in the order of ids) with this logit; 0 if there are not so many.
  int64_t token(float logit, int64_t ordinal) const;

 private:
  void leave_out(const uint32_t* allowed);

  int64_t width_ = 0;
  int64_t pieces_ = 0;
  float top_ = 0.0f;            // the largest logit
  Buffer<float> best_;          // [pieces] the largest of each
  Buffer<const float*> piece_;  // [pieces] where each lies
  Buffer<float> copies_;        // of pieces of which some tokens are left out
  float end_[kPiece];
};

// Draws rows one after the other; one for each thread. A row is drawn by itself: nothing of others enters.
class RowSampler {
 public:
  // Makes room for rows of that width; `copies`: also for those of which tokens are left out.
  void reserve(int64_t width, bool copies);

  int64_t draw(const Draw& job, int64_t row);

 private:
  int64_t draw_whole(double uniform);
  int64_t draw_truncated(const Draw& job, int64_t row);
  double gather(float floor, bool weigh);

  LogitsRow row_;
  Weigher weigher_{};
  Buffer<double> passed_;  // [pieces] weights up to the end of each piece
  Buffer<float> bests_;    // [pieces] to be partly sorted
  Selection selection_;
};

struct Sampler {
  explicit Sampler(int64_t threads) : rows(static_cast<size_t>(threads)) {}

  void run(const Draw& job);

  std::vector<RowSampler> rows;
};

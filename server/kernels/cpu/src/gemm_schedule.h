// How a GEMM's tile of outputs is computed: what it reads, and what it prefetches meanwhile.
#pragma once

#include "gemm.h"

constexpr int kStepElements = kBlockOutputs * 2;  // packed elements of one pair of inputs
constexpr int64_t kStepBytes = kStepElements * sizeof(bf16);
constexpr int kPieceSteps = 64;                   // steps (pairs of inputs) served by one prefetched piece
constexpr int kScheduleSteps = 16;
constexpr int64_t kLaterLines = 24;               // prefetched a piece while weights stream

using Tile = float[simd::kGemmRows][kBlockOutputs];

// Two lines to prefetch each step: they advance by `stride` bytes, or stand still at 0.
struct Ahead {
  const char* first;
  const char* second;
  int64_t first_stride;
  int64_t second_stride;

  ML_INLINE void step() {
    simd::prefetch(first);
    simd::prefetch(second);
    first += first_stride;
    second += second_stride;
  }
};

// How the steps of one tile are cut up for prefetching.
struct Schedule {
  const bf16* x;
  int64_t stride;
  const bf16* w;
  int64_t steps;
  const char* weights; // next lines of the weights
  int64_t lines;       // weight lines to prefetch every kScheduleSteps
  Upcoming* later;
  LoraDelta* delta;
  bool resume;         // the tile holds the sums of the steps before: multiples of kScheduleSteps
};

// Lines for the steps from k on, one or two each.
ML_INLINE Ahead next_piece(const Schedule& s, int64_t k) {
  const char* idle = reinterpret_cast<const char*>(s.x);
  Ahead ahead{idle, idle, 0, 0};
  if (s.lines == 2 * kScheduleSteps) {
    const char* piece = s.later != nullptr ? s.later->take(kLaterLines * 64) : nullptr;
    for (int64_t i = 0; piece != nullptr && i < kLaterLines; i++) simd::prefetch(piece + i * 64);
    return {s.weights + k * 128, s.weights + k * 128 + 64, 128, 128};
  }
  if (s.lines == kScheduleSteps) {
    ahead.first = s.weights + k * 64;
    ahead.first_stride = 64;
  } else if (const char* piece = s.later != nullptr ? s.later->take(kPieceSteps * 64) : nullptr) {
    ahead.first = piece;
    ahead.first_stride = 64;
  }
  if (const char* piece = s.later != nullptr ? s.later->take(kPieceSteps * 64) : nullptr) {
    ahead.second = piece;
    ahead.second_stride = 64;
  }
  return ahead;
}

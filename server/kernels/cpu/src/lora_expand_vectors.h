// B t of one or two rows, with the bf16 dot product.
#pragma once

#include "lora.h"

namespace lora_expand_vectors {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int64_t kStep = 2 * kLanes;  // columns of one load of B

template <int Ranks>
constexpr int kPairs = (Ranks + 1) / 2;

// acc += sum over `Ranks` columns of B, two after two, for `Width` steps from column c on. acc is
// [Rows][length]; each step's columns are kept as the even ones, then the odd ones: so two vectors of bf16 join with
// shifts and masks. Several steps at once hide the latency of the chain of additions.
template <int Rows, int Ranks, int Width>
ML_INLINE void add_steps(float* acc, const bf16* b, int64_t length, int64_t c, const Pairs (&factor)[Rows][kPairs<Ranks>],
                         ByteStream& ahead) {
  const char* next = ahead.take(Ranks * Width * kStep * 2);
  if (next == nullptr) next = reinterpret_cast<const char*>(b);
  Float even[Rows][Width];
  Float odd[Rows][Width];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      even[m][j] = simd::load(acc + m * length + c + j * kStep);
      odd[m][j] = simd::load(acc + m * length + c + j * kStep + kLanes);
    }
  }
  ML_UNROLL
  for (int r = 0; r < Ranks; r += 2) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      const int line = r * Width + j;
      if (line * 64 < Ranks * Width * kStep * 2) simd::prefetch(next + line * 64);
      if (r + 1 < Ranks && (line + Width) * 64 < Ranks * Width * kStep * 2) simd::prefetch(next + (line + Width) * 64);
      const bf16* column = b + r * length + c + j * kStep;
      const Pairs first = simd::load_pairs(column);
      const Pairs second = r + 1 < Ranks ? simd::load_pairs(column + length) : Pairs{};
      const Pairs evens = simd::join_even(first, second);
      const Pairs odds = simd::join_odd(first, second);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        even[m][j] = simd::dot2(even[m][j], evens, factor[m][r / 2]);
        odd[m][j] = simd::dot2(odd[m][j], odds, factor[m][r / 2]);
      }
    }
  }
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      simd::store(acc + m * length + c + j * kStep, even[m][j]);
      simd::store(acc + m * length + c + j * kStep + kLanes, odd[m][j]);
    }
  }
}

template <int Rows, int Ranks>
void add_columns(float* acc, const bf16* b, int64_t length, const bf16* t, ByteStream& ahead) {
  Pairs factor[Rows][kPairs<Ranks>];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int r = 0; r < Ranks; r += 2) factor[m][r / 2] = simd::splat_pair(t + r * kDirectRows + 2 * m);
  }
  int64_t c = 0;
  for (; c + 2 * kStep <= length; c += 2 * kStep) add_steps<Rows, Ranks, 2>(acc, b, length, c, factor, ahead);
  for (; c < length; c += kStep) add_steps<Rows, Ranks, 1>(acc, b, length, c, factor, ahead);
}

template <int Rows>
void expand(float* acc, const LoraPages& pages, int64_t length, const LoraScratch& scratch, ByteStream& ahead) {
  const bf16* t = scratch.t.data();
  constexpr int kMany = 8;  // as many factors as registers hold
  int64_t r = 0;
  for (; r + kMany <= pages.rank; r += kMany) add_columns<Rows, kMany>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  for (; r + 4 <= pages.rank; r += 4) add_columns<Rows, 4>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  for (; r + 2 <= pages.rank; r += 2) add_columns<Rows, 2>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  if (r < pages.rank) add_columns<Rows, 1>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
}

}  // namespace lora_expand_vectors

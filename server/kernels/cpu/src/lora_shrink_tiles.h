// A x in tile registers. For one or two rows 16 rows of A are the left factor as they lie in the pool, and a row of x is
// a right factor of one column; for more, x is the left factor as it lies in memory, and A is turned around first.
#pragma once

#include <algorithm>

#include "lora.h"
#include "tiles.h"

namespace lora_shrink_tiles {

using tile_order::kInputs;
using tile_order::kPairs;

constexpr int kRanks = 16;       // rows of A that one register holds
constexpr int64_t kInputRow = 2 * sizeof(bf16);

// t of one row: `ranks` sums, times the adapter's weight; zeros behind the last rank up to a whole product.
ML_INLINE void write_row(const float* sums, int64_t first, int64_t count, int64_t ranks, float weight, bf16* t) {
  alignas(64) bf16 rounded[kRanks];
  for (int i = 0; i < kRanks; i += simd::kLanes) {
    simd::store_bf16(rounded + i, simd::mul(simd::load(sums + i), simd::splat(weight)));
  }
  memcpy(t + first, rounded, static_cast<size_t>(count) * sizeof(bf16));
  const int64_t end = first + count;
  if (end == ranks) memset(t + end, 0, static_cast<size_t>(round_up(end, kInputs) - end) * sizeof(bf16));
}

// Registers 0 and 1 (for `rest` ranks: 2 and 3) hold the sums of two rows, 4 (5) rows of A, 6 and 7 the two rows of x.
inline tiles::Config direct(int rest) {
  tiles::Config config;
  const int last = rest > 0 ? rest : 1;
  for (int t = 0; t < 4; t++) config.shape(t, t < 2 ? kRanks : last, sizeof(float));
  config.shape(4, kRanks, 64);
  config.shape(5, last, 64);
  for (int t = 6; t < 8; t++) config.shape(t, kPairs, kInputRow);
  return config;
}

// Sums of up to 16 ranks, in registers C and C + 1.
template <int C, int A, bool Two>
ML_INLINE void dot_rows(const bf16* a, int64_t ranks, const bf16* x, int64_t stride, int64_t length, ByteStream* ahead,
                        float (&sums)[2][kRanks]) {
  tiles::zero<C>();
  if (Two) tiles::zero<C + 1>();
  for (int64_t k = 0; k < length; k += kInputs) {
    tiles::load<A>(a + k, length * static_cast<int64_t>(sizeof(bf16)));
    tiles::load<6>(x + k, kInputRow);
    if (Two) tiles::load<7>(x + stride + k, kInputRow);
    const char* next = ahead != nullptr ? ahead->take(ranks * 64) : nullptr;
    for (int64_t i = 0; next != nullptr && i < ranks; i++) simd::prefetch(next + i * 64);
    tiles::dot<C, A, 6>();
    if (Two) tiles::dot<C + 1, A, 7>();
  }
  tiles::store<C>(sums[0], sizeof(float));
  if (Two) tiles::store<C + 1>(sums[1], sizeof(float));
}

template <bool Two>
void shrink_direct(const bf16* a, int64_t ranks, const bf16* x, int64_t x_stride, int64_t length, float weight, bf16* t,
                   int64_t stride, ByteStream* ahead) {
  tiles::configure(tiles::Use::kShrink, static_cast<int>(ranks % kRanks), direct);
  for (int64_t r = 0; r < ranks; r += kRanks) {
    const int64_t count = std::min<int64_t>(kRanks, ranks - r);
    alignas(64) float sums[2][kRanks] = {};
    if (count == kRanks) {
      dot_rows<0, 4, Two>(a + r * length, count, x, x_stride, length, ahead, sums);
    } else {
      dot_rows<2, 5, Two>(a + r * length, count, x, x_stride, length, ahead, sums);
    }
    for (int m = 0; m < (Two ? 2 : 1); m++) write_row(sums[m], r, count, ranks, weight, t + m * stride);
  }
}

// Up to 16 rows of A [count][length] to the right factors of its products: [length / 2][16][2]. Places of ranks that are
// not there repeat the last one.
inline void turn(const bf16* a, int64_t count, int64_t length, bf16* out) {
  const bf16* rank[kRanks];
  for (int64_t r = 0; r < kRanks; r++) rank[r] = a + std::min(r, count - 1) * length;
  for (int64_t k = 0; k < length; k += kInputs) simd::transpose_pairs(rank, k, out + k * kRanks);
}

template <bool Both>
ML_INLINE void dot_many(const bf16* x, int64_t stride, const bf16* a, int64_t length, float (&sums)[32][kRanks]) {
  const int64_t row = stride * static_cast<int64_t>(sizeof(bf16));
  tiles::zero<0>();
  if (Both) tiles::zero<2>();
  for (int64_t k = 0; k < length; k += kInputs) {
    tiles::load<6>(a + k * kRanks, 64);
    tiles::load<4>(x + k, row);
    if (Both) tiles::load<5>(x + 16 * stride + k, row);
    tiles::dot<0, 4, 6>();
    if (Both) tiles::dot<2, 5, 6>();
  }
  tiles::store<0>(sums[0], sizeof sums[0]);
  if (Both) tiles::store<2>(sums[16], sizeof sums[0]);
}

inline void shrink_many(const bf16* a, int64_t ranks, const bf16* x, int64_t x_stride, int64_t rows, int64_t length,
                        float weight, bf16* t, int64_t stride, bf16* turned) {
  for (int64_t r = 0; r < ranks; r += kRanks) {
    const int64_t count = std::min<int64_t>(kRanks, ranks - r);
    turn(a + r * length, count, length, turned);
    for (int64_t m = 0; m < rows; m += 32) {
      const int height = static_cast<int>(std::min<int64_t>(32, rows - m));
      alignas(64) float sums[32][kRanks];
      tiles::configure(tiles::Use::kTwoByTwo, height, tiles::two_by_two);
      if (height > 16) {
        dot_many<true>(x + m * x_stride, x_stride, turned, length, sums);
      } else {
        dot_many<false>(x + m * x_stride, x_stride, turned, length, sums);
      }
      for (int j = 0; j < height; j++) write_row(sums[j], r, count, ranks, weight, t + (m + j) * stride);
    }
  }
}

inline void shrink_rows(const bf16* a, int64_t ranks, const LoraSite& site, int64_t row, int64_t rows, float weight, bf16* t,
                        int64_t stride, const LoraScratch& scratch, ByteStream* ahead) {
  const int64_t length = round_up(site.in, kPageAlign);
  const bf16* x = site.x + row * site.x_stride;
  if (rows == 1) return shrink_direct<false>(a, ranks, x, site.x_stride, length, weight, t, stride, ahead);
  if (rows == 2) return shrink_direct<true>(a, ranks, x, site.x_stride, length, weight, t, stride, ahead);
  shrink_many(a, ranks, x, site.x_stride, rows, length, weight, t, stride, scratch.turned.data());
}

}  // namespace lora_shrink_tiles

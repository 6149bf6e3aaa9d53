// B t of one or two rows in vector registers, in the order of tile products: of every 32 ranks the even ones and the odd
// ones are summed by themselves.
#pragma once

#include <algorithm>

#include "lora.h"
#include "tiles.h"

namespace lora_expand_tiles {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int64_t kStep = 2 * kLanes;  // columns of one load of B
constexpr int kMany = 8;               // ranks that are read together

// Sums of the even and of the odd ranks, each of the even and then of the odd columns of a step.
template <int Rows, int Width>
using Chains = Float[Rows][Width][2][2];

// Adds `count` columns of B, the first one of an even rank, to the chains of `Width` steps from column c on.
template <int Rows, int Width>
ML_INLINE void add_ranks(Chains<Rows, Width>& chain, const bf16* b, int64_t length, int64_t c, int64_t count,
                         const float (&factor)[Rows][kMany], ByteStream& ahead) {
  const char* next = ahead.take(count * Width * kStep * 2);
  for (int64_t r = 0; r < count; r++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      if (next != nullptr) simd::prefetch(next + (r * Width + j) * kStep * 2);
      const Pairs column = simd::load_pairs(b + r * length + c + j * kStep);
      const Float low = simd::low_half(column);
      const Float high = simd::high_half(column);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        const Float t = simd::splat(factor[m][r]);
        Float* sums = chain[m][j][r % 2];
        sums[0] = tiles::fma(low, t, sums[0]);
        sums[1] = tiles::fma(high, t, sums[1]);
      }
    }
  }
}

// Columns of B that are read together: they begin, go on with or end the sums of 32 ranks.
struct Group {
  const bf16* b;
  int64_t count;
  bool first;
  bool last;
};

template <int Rows, int Width, int Count>
ML_INLINE void add_steps(float* acc, float* chains, const Group& group, int64_t length, int64_t c,
                         const float (&factor)[Rows][kMany], ByteStream& ahead) {
  Chains<Rows, Width> chain;
  ML_UNROLL
  for (int i = 0; i < Rows * Width * 4; i++) {
    const int m = i / (Width * 4);
    const float* kept = chains + m * 2 * length + 2 * c + i % (Width * 4) * kLanes;
    chain[m][i / 4 % Width][i / 2 % 2][i % 2] = group.first ? simd::zero() : simd::load(kept);
  }
  add_ranks<Rows, Width>(chain, group.b, length, c, Count > 0 ? Count : group.count, factor, ahead);
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      const Float(&sums)[2][2] = chain[m][j];
      float* y = acc + m * length + c + j * kStep;
      float* kept = chains + m * 2 * length + 2 * c + j * 4 * kLanes;
      ML_UNROLL
      for (int i = 0; i < 2; i++) {
        if (group.last) simd::store(y + i * kLanes, tiles::add(simd::load(y + i * kLanes), tiles::add(sums[0][i], sums[1][i])));
        if (!group.last) simd::store(kept + i * kLanes, sums[0][i]);
        if (!group.last) simd::store(kept + (2 + i) * kLanes, sums[1][i]);
      }
    }
  }
}

template <int Rows, int Count>
void add_group(float* acc, float* chains, const Group& group, int64_t length, const float (&factor)[Rows][kMany],
               ByteStream& ahead) {
  constexpr int kWide = 2;  // hides the latency of the chains
  int64_t c = 0;
  for (; c + kWide * kStep <= length; c += kWide * kStep) add_steps<Rows, kWide, Count>(acc, chains, group, length, c, factor, ahead);
  for (; c < length; c += kStep) add_steps<Rows, 1, Count>(acc, chains, group, length, c, factor, ahead);
}

// acc, [Rows][length], holds a step's even columns, then its odd ones.
template <int Rows>
void expand(float* acc, const LoraPages& pages, int64_t length, const LoraScratch& scratch, ByteStream& ahead) {
  for (int64_t r = 0; r < pages.rank; r += kMany) {
    const int64_t count = std::min<int64_t>(kMany, pages.rank - r);
    const Group group{pages.b + r * length, count, r % kRankUnit == 0, (r + count) % kRankUnit == 0 || r + count == pages.rank};
    float factor[Rows][kMany];
    for (int m = 0; m < Rows; m++) {
      for (int64_t i = 0; i < count; i++) factor[m][i] = to_float(scratch.t.data()[m * scratch.t_stride + r + i]);
    }
    if (count == kMany) {
      add_group<Rows, kMany>(acc, scratch.chains.data(), group, length, factor, ahead);
    } else {
      add_group<Rows, 0>(acc, scratch.chains.data(), group, length, factor, ahead);
    }
  }
}

}  // namespace lora_expand_tiles

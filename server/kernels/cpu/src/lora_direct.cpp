// The delta of one or two rows of one module: t = A x, then B t, both read front to back.
#include "lora.h"
#include "pack.h"

namespace {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int64_t kStep = 2 * kLanes;  // columns of one load of B

// acc += sum over `Ranks` columns of B, one after the other. acc is [Rows][length]; each kStep columns are kept
// as the even ones, then the odd ones: so a vector of bf16 widens with a shift and a mask.
template <int Rows, int Ranks>
void add_columns(float* acc, const bf16* b, int64_t length, const float* t, int64_t t_stride, ByteStream& ahead) {
  Float factor[Rows][Ranks];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int r = 0; r < Ranks; r++) factor[m][r] = simd::splat(t[m * t_stride + r]);
  }
  for (int64_t c = 0; c < length; c += kStep) {
    const char* next = ahead.take(Ranks * kStep * 2);
    if (next == nullptr) next = reinterpret_cast<const char*>(b);
    Float even[Rows];
    Float odd[Rows];
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      even[m] = simd::load(acc + m * length + c);
      odd[m] = simd::load(acc + m * length + c + kLanes);
    }
    ML_UNROLL
    for (int r = 0; r < Ranks; r++) {
      const Pairs column = simd::load_pairs(b + r * length + c);
      if (r * 64 < Ranks * kStep * 2) simd::prefetch(next + r * 64);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        even[m] = simd::fma(simd::low_half(column), factor[m][r], even[m]);
        odd[m] = simd::fma(simd::high_half(column), factor[m][r], odd[m]);
      }
    }
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      simd::store(acc + m * length + c, even[m]);
      simd::store(acc + m * length + c + kLanes, odd[m]);
    }
  }
}

template <int Rows>
void expand(float* acc, const LoraPages& pages, int64_t length, const float* t, int64_t t_stride, ByteStream& ahead) {
  constexpr int kMany = Rows == 1 ? 16 : 8;  // as many factors as registers hold
  int64_t r = 0;
  for (; r + kMany <= pages.rank; r += kMany) add_columns<Rows, kMany>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
  for (; r + 4 <= pages.rank; r += 4) add_columns<Rows, 4>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
  for (; r < pages.rank; r++) add_columns<Rows, 1>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
}

// Puts a row's delta of one module where the GEMM's blocks have its outputs.
void place(const float* acc, const LoraSite& site, int64_t module, float* delta) {
  int64_t begin = 0;
  for (int64_t m = 0; m < module; m++) begin += site.out[m];
  for (int64_t c = 0; c < site.out[module]; c += kStep) {
    Float piece[2];
    simd::join_even_odd(simd::load(acc + c), simd::load(acc + c + kLanes), &piece[0], &piece[1]);
    for (int64_t i = 0; i < 2 && c + i * kLanes < site.out[module]; i++) {
      const int64_t column = c + i * kLanes;
      const int64_t at = site.interleaved ? column / 16 * 32 + column % 16 + 16 * module : begin + column;
      simd::store(delta + at, piece[i]);
    }
  }
}

}  // namespace

void direct_delta(const LoraStep& step, const LoraSite& site, const DirectItem& item, LoraShare& share) {
  const LoraSegment& segment = *item.segment;
  const int64_t length = round_up(site.out[item.module], kPageAlign);
  float* acc = share.panel.data();
  float* t = share.factors.data();
  memset(acc, 0, static_cast<size_t>(segment.rows * length) * sizeof(float));
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const LoraPages pages = pages_of(step, site, e, item.module);
    if (pages.rank == 0) continue;
    shrink_rows(pages.a, pages.rank, site, segment.row, segment.rows, step.lora->weight[e], t, step.t_stride, share.stream);
    if (segment.rows == 1) {
      expand<1>(acc, pages, length, t, step.t_stride, share.stream);
    } else {
      expand<2>(acc, pages, length, t, step.t_stride, share.stream);
    }
  }
  for (int64_t m = 0; m < segment.rows; m++) {
    place(acc + m * length, site, item.module, step.delta.data() + (segment.delta_row + m) * step.delta_stride);
  }
}

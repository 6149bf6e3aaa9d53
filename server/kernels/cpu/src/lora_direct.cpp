// One or two rows of one adapter: t = A x, then y + B t, both matrices read front to back.
#include "lora.h"
#include "pack.h"

namespace {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int64_t kStep = 2 * kLanes;  // columns of one load of B

// acc += sum over `Ranks` columns of B, one after the other, for `Width` steps from column c on. acc is
// [Rows][length]; each step's columns are kept as the even ones, then the odd ones: so a vector of bf16 widens with
// a shift and a mask. Several steps at once hide the latency of the chain of additions.
template <int Rows, int Ranks, int Width>
ML_INLINE void add_steps(float* acc, const bf16* b, int64_t length, int64_t c, const Float (&factor)[Rows][Ranks],
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
  for (int r = 0; r < Ranks; r++) {
    ML_UNROLL
    for (int j = 0; j < Width; j++) {
      const int line = r * Width + j;
      if (line * 64 < Ranks * Width * kStep * 2) simd::prefetch(next + line * 64);
      const Pairs column = simd::load_pairs(b + r * length + c + j * kStep);
      ML_UNROLL
      for (int m = 0; m < Rows; m++) {
        even[m][j] = simd::fma(simd::low_half(column), factor[m][r], even[m][j]);
        odd[m][j] = simd::fma(simd::high_half(column), factor[m][r], odd[m][j]);
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
void add_columns(float* acc, const bf16* b, int64_t length, const float* t, int64_t t_stride, ByteStream& ahead) {
  Float factor[Rows][Ranks];
  ML_UNROLL
  for (int m = 0; m < Rows; m++) {
    ML_UNROLL
    for (int r = 0; r < Ranks; r++) factor[m][r] = simd::splat(t[m * t_stride + r]);
  }
  int64_t c = 0;
  for (; c + 2 * kStep <= length; c += 2 * kStep) add_steps<Rows, Ranks, 2>(acc, b, length, c, factor, ahead);
  for (; c < length; c += kStep) add_steps<Rows, Ranks, 1>(acc, b, length, c, factor, ahead);
}

template <int Rows>
void expand(float* acc, const LoraPages& pages, int64_t length, const float* t, int64_t t_stride, ByteStream& ahead) {
  constexpr int kMany = 8;  // as many factors as registers hold
  int64_t r = 0;
  for (; r + kMany <= pages.rank; r += kMany) add_columns<Rows, kMany>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
  for (; r + 4 <= pages.rank; r += 4) add_columns<Rows, 4>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
  for (; r < pages.rank; r++) add_columns<Rows, 1>(acc, pages.b + r * length, length, t + r, t_stride, ahead);
}

// The delta of one module for the item's rows, [rows][module's outputs rounded up].
void module_delta(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module, LoraShare& share,
                  const LoraScratch& scratch, float* acc) {
  const int64_t length = round_up(site.out[module], kPageAlign);
  float* t = scratch.t.data();
  memset(acc, 0, static_cast<size_t>(segment.rows * length) * sizeof(float));
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const LoraPages pages = pages_of(step, site, e, module);
    if (pages.rank == 0) continue;
    shrink_rows(pages.a, pages.rank, site, segment.row, segment.rows, step.lora->weight[e], t, step.t_stride, &share.stream);
    if (segment.rows == 1) {
      expand<1>(acc, pages, length, t, step.t_stride, share.stream);
    } else {
      expand<2>(acc, pages, length, t, step.t_stride, share.stream);
    }
  }
}

// sum[i] = y[i] + delta of column `column` + i, for up to 32 columns; `column` is a multiple of 32.
ML_INLINE void add_delta(const float* y, int64_t y_step, const float* acc, int64_t column, int64_t count, float* sum) {
  for (int64_t c = 0; c < count; c += kStep) {
    Float piece[2];
    simd::join_even_odd(simd::load(acc + column + c), simd::load(acc + column + c + kLanes), &piece[0], &piece[1]);
    ML_UNROLL
    for (int i = 0; i < 2; i++) {
      const int64_t at = c + i * kLanes;
      if (at < count) simd::store(sum + at, simd::add(simd::load(y + at / 16 * y_step + at % 16), piece[i]));
    }
  }
}

void complete(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t m, const LoraScratch& scratch) {
  const int64_t row = item.segment->row + m;
  const float* y = step.outputs.data() + step.direct_row[static_cast<size_t>(row)] * step.output_stride;
  const int64_t columns = site.out[item.module];
  const float* acc = scratch.panel.data() + m * round_up(columns, kPageAlign);
  const float* acc_up = acc + kDirectRows * step.output_stride;
  int64_t begin = 0;
  for (int64_t k = 0; k < item.module; k++) begin += site.out[k];
  alignas(64) float sum[2][32];
  for (int64_t c = 0; c < columns; c += 32) {
    const int64_t count = columns - c < 32 ? columns - c : 32;
    if (site.interleaved()) {
      add_delta(y + 2 * c, 32, acc, c, count, sum[0]);
      add_delta(y + 2 * c + 16, 32, acc_up, c, count, sum[1]);
    } else {
      add_delta(y + begin + c, 16, acc, c, count, sum[0]);
    }
    for (int64_t i = 0; i < count; i += 16) {
      if (site.interleaved()) {
        site.output.write_product(row, (c + i) / 16, sum[0] + i, sum[1] + i);
      } else {
        site.output.write(row, begin + c + i, sum[0] + i);
      }
    }
  }
}

}  // namespace

void lora_direct(const LoraStep& step, const LoraSite& site, LoraShare& share, LoraScratch& scratch) {
  for (const DirectItem& item : share.direct) {
    for (int64_t k = item.module; k < item.module_end; k++) {
      float* acc = scratch.panel.data() + (k - item.module) * kDirectRows * step.output_stride;
      module_delta(step, site, *item.segment, k, share, scratch, acc);
    }
    for (int64_t m = 0; m < item.segment->rows; m++) complete(step, site, item, m, scratch);
  }
}

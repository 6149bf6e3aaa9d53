// One or two rows of one adapter: t = A x, then y + B t, both matrices read front to back.
#include "lora.h"
#include "pack.h"

namespace {

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
void expand(float* acc, const LoraPages& pages, int64_t length, const bf16* t, ByteStream& ahead) {
  constexpr int kMany = 8;  // as many factors as registers hold
  int64_t r = 0;
  for (; r + kMany <= pages.rank; r += kMany) add_columns<Rows, kMany>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  for (; r + 4 <= pages.rank; r += 4) add_columns<Rows, 4>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  for (; r + 2 <= pages.rank; r += 2) add_columns<Rows, 2>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
  if (r < pages.rank) add_columns<Rows, 1>(acc, pages.b + r * length, length, t + r * kDirectRows, ahead);
}

// The delta of one module for the item's rows, [rows][module's outputs rounded up].
void module_delta(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t module, LoraShare& share,
                  const LoraScratch& scratch, float* acc) {
  const LoraSegment& segment = *item.segment;
  const int64_t length = round_up(site.out[module], kPageAlign);
  bf16* t = scratch.t.data();
  memset(acc, 0, static_cast<size_t>(segment.rows * length) * sizeof(float));
  for (int64_t e = segment.entry; e < segment.entry_end; e++) {
    const LoraPages pages = pages_of(step, site, e, module);
    if (pages.rank == 0) continue;
    shrink_rows(pages.a, pages.rank, site, segment.row, segment.rows, step.lora->weight[e], t, 2 * kDirectRows, &share.stream);
    if (segment.rows == 1) {
      expand<1>(acc, pages, length, t, share.stream);
    } else {
      expand<2>(acc, pages, length, t, share.stream);
    }
  }
  if (step.max_changes > 0) add_changes(step, site, item, module, t, &share.stream, acc);
}

// What one module of a row adds to the GEMM's outputs.
struct RowDelta {
  const float* y;        // outputs of the module; its columns 16 j on lie `step` further for every j
  int64_t step;
  const float* acc;      // B t, even and odd columns apart
  const float* image;    // as y; or null
  const std::vector<LoraVectors>* vectors;
};

// kLanes outputs from `column` on, each replaced by its partner.
ML_INLINE Float partners(const RowDelta& delta, int64_t column, int64_t distance) {
  alignas(64) float found[kLanes];
  for (int i = 0; i < kLanes; i++) {
    const int64_t c = column + i;
    const int64_t other = c % (2 * distance) < distance ? c + distance : c - distance;
    found[i] = delta.y[other / 16 * delta.step + other % 16];
  }
  return simd::load(found);
}

// sum[i] = y[i] + delta of column `column` + i, for up to 32 columns; `column` is a multiple of 32.
ML_INLINE void add_delta(const RowDelta& delta, int64_t column, int64_t count, float* sum) {
  const int64_t first = column / 16 * delta.step;
  for (int64_t c = 0; c < count; c += kStep) {
    Float piece[2];
    simd::join_even_odd(simd::load(delta.acc + column + c), simd::load(delta.acc + column + c + kLanes), &piece[0], &piece[1]);
    ML_UNROLL
    for (int i = 0; i < 2; i++) {
      const int64_t at = c + i * kLanes;
      if (at >= count) continue;
      const int64_t place = first + at / 16 * delta.step + at % 16;
      const Float y = simd::load(delta.y + place);
      for (const LoraVectors& vectors : *delta.vectors) {
        piece[i] = add_vectors(vectors, column + at, y, piece[i]);
        if (vectors.partner == nullptr) continue;
        const Float factor = simd::mul(simd::load_bf16(vectors.partner + column + at), simd::splat(vectors.weight));
        piece[i] = simd::fma(factor, partners(delta, column + at, vectors.distance), piece[i]);
      }
      if (delta.image != nullptr) piece[i] = simd::add(piece[i], simd::load(delta.image + place));
      simd::store(sum + at, simd::add(y, piece[i]));
    }
  }
}

void list_vectors(const LoraStep& step, const LoraSite& site, const LoraSegment& segment, int64_t module,
                  std::vector<LoraVectors>& list) {
  list.clear();
  for (int64_t e = segment.entry; step.any_vectors && e < segment.entry_end; e++) {
    const LoraVectors vectors = vectors_of(step, site, e, module);
    if (vectors.at_output()) list.push_back(vectors);
  }
}

void complete(const LoraStep& step, const LoraSite& site, const DirectItem& item, int64_t m, const LoraScratch& scratch) {
  const int64_t row = item.segment->row + m;
  const float* y = step.outputs.data() + step.direct_row[static_cast<size_t>(row)] * step.output_stride;
  const int64_t columns = site.out[item.module];
  int64_t begin = 0;
  for (int64_t k = 0; k < item.module; k++) begin += site.out[k];
  RowDelta delta[2];
  for (int64_t k = item.module; k < item.module_end; k++) {
    const int64_t i = k - item.module;
    const bool image = step.any_vectors && scales_input(step, site, *item.segment, k);
    const int64_t place = site.interleaved() ? 16 * k : begin;
    delta[i] = {y + place,
                site.interleaved() ? 32 : 16,
                scratch.panel.data() + i * kDirectRows * step.output_stride + m * round_up(columns, kPageAlign),
                image ? image_of(step, row, k) + place : nullptr,
                &scratch.vectors[i]};
  }
  alignas(64) float sum[2][32];
  for (int64_t c = item.begin; c < item.end; c += 32) {
    const int64_t count = item.end - c < 32 ? item.end - c : 32;
    for (int64_t k = item.module; k < item.module_end; k++) add_delta(delta[k - item.module], c, count, sum[k - item.module]);
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
      module_delta(step, site, item, k, share, scratch, acc);
      list_vectors(step, site, *item.segment, k, scratch.vectors[k - item.module]);
    }
    for (int64_t m = 0; m < item.segment->rows; m++) complete(step, site, item, m, scratch);
  }
}

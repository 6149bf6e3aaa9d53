#include "sampling.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <functional>

namespace {

constexpr int64_t kPiece = LogitsRow::kPiece;

float largest_of(const float* piece) {
  simd::Float best = simd::splat(-INFINITY);
  for (int64_t i = 0; i < kPiece; i += simd::kLanes) best = simd::max(simd::load(piece + i), best);  // lets no NaN through
  return simd::max_lane(best);
}

double weight_of(const float* piece, const Weigher& weigher) {
  simd::Float total = simd::zero();
  for (int64_t i = 0; i < kPiece; i += simd::kLanes) total = simd::add(total, weigher(simd::load(piece + i)));
  return static_cast<double>(simd::sum(total));
}

// A logit below which no kept token lies, as far as that can be said before all are weighed.
float floor_of(const LogitsRow& row, double top_p, double min_p, double temperature) {
  double least = -INFINITY;  // natural logarithm of a weight
  // All tokens below this weight together have less than what top-p leaves out; half of it for rounding.
  if (top_p < 1.0) least = std::log((1.0 - top_p) / (2.0 * static_cast<double>(row.width())));
  if (min_p > 0.0) least = std::max(least, std::log(min_p) - 1e-3);
  const double floor = static_cast<double>(row.top()) + temperature * std::min(least, 0.0);
  return static_cast<float>(std::max(floor, static_cast<double>(-FLT_MAX)));
}

}  // namespace

void LogitsRow::reserve(int64_t width, bool copies) {
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  best_.reserve(pieces);
  piece_.reserve(pieces);
  if (copies) copies_.reserve(pieces * kPiece);
}

void LogitsRow::open(const float* logits, int64_t width, const uint32_t* allowed) {
  width_ = width;
  pieces_ = (width + kPiece - 1) / kPiece;
  std::fill_n(end_, kPiece, -INFINITY);
  std::copy(logits + width / kPiece * kPiece, logits + width, end_);
  for (int64_t i = 0; i < pieces_; i++) piece_.data()[i] = i < width / kPiece ? logits + i * kPiece : end_;
  if (allowed != nullptr) leave_out(allowed);
  top_ = -INFINITY;
  for (int64_t i = 0; i < pieces_; i++) {
    best_.data()[i] = largest_of(piece(i));
    top_ = std::max(top_, best_.data()[i]);
  }
}

// Most pieces have no token that is allowed, or none that is not: these are not copied.
void LogitsRow::leave_out(const uint32_t* allowed) {
  static const std::array<float, kPiece> none = [] {
    std::array<float, kPiece> piece;
    piece.fill(-INFINITY);
    return piece;
  }();
  const int64_t words = (width_ + 31) / 32;
  for (int64_t i = 0; i < pieces_; i++) {
    uint32_t bits[kPiece / 32] = {};
    std::copy(allowed + i * (kPiece / 32), allowed + std::min((i + 1) * (kPiece / 32), words), bits);
    uint32_t any = 0;
    uint32_t all = ~0u;
    for (const uint32_t word : bits) {
      any |= word;
      all &= word;
    }
    if (all == ~0u) continue;
    if (any == 0) {
      piece_.data()[i] = none.data();
      continue;
    }
    float* copy = copies_.data() + i * kPiece;
    for (int64_t j = 0; j < kPiece; j += simd::kLanes) {
      simd::store(copy + j, simd::keep_bits(simd::load(piece(i) + j), bits[j / 32] >> (j % 32)));
    }
    piece_.data()[i] = copy;
  }
}

int64_t LogitsRow::token(float logit, int64_t ordinal) const {
  for (int64_t i = 0; i < pieces_; i++) {
    if (best(i) < logit) continue;
    const float* values = piece(i);
    int equal = 0;
    for (int64_t j = 0; j < kPiece; j++) equal += values[j] == logit;
    if (ordinal > equal) {
      ordinal -= equal;
      continue;
    }
    for (int64_t j = 0; j < kPiece; j++) {
      if (values[j] == logit && --ordinal == 0) return i * kPiece + j;
    }
  }
  return 0;
}

void RowSampler::reserve(int64_t width, bool copies) {
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  row_.reserve(width, copies);
  passed_.reserve(pieces);
  bests_.reserve(pieces);
  selection_.reserve(width);
}

int64_t RowSampler::draw(const Draw& job, int64_t row) {
  row_.open(job.logits[row], job.width, job.allowed == nullptr ? nullptr : job.allowed[row]);
  const float temperature = job.temperature[row];
  if (row_.top() == -INFINITY) return 0;
  if (temperature == 0.0f || row_.top() == INFINITY) return row_.token(row_.top(), 1);
  weigher_ = {row_.top(), 1.0f / temperature};
  const bool limited = job.top_k[row] > 0 && job.top_k[row] < job.width;
  if (limited || job.top_p[row] < 1.0 || job.min_p[row] > 0.0f) return draw_truncated(job, row);
  return draw_whole(job.uniform[row]);
}

// First the piece in which the summed weights pass the share, then the token.
int64_t RowSampler::draw_whole(double uniform) {
  double* passed = passed_.data();
  const int64_t pieces = row_.pieces();
  double total = 0.0;
  for (int64_t i = 0; i < pieces; i++) passed[i] = total += weight_of(row_.piece(i), weigher_);
  if (!(total > 0.0)) return row_.token(row_.top(), 1);  // a logit is not a number
  const double target = uniform * total;
  int64_t chosen = std::min<int64_t>(std::upper_bound(passed, passed + pieces, target) - passed, pieces - 1);
  while (chosen > 0 && passed[chosen] == passed[chosen - 1]) chosen--;
  double before = chosen == 0 ? 0.0 : passed[chosen - 1];
  float weights[kPiece];
  for (int64_t i = 0; i < kPiece; i += simd::kLanes) {
    simd::store(weights + i, weigher_(simd::load(row_.piece(chosen) + i)));
  }
  int64_t last = 0;
  for (int64_t i = 0; i < kPiece; i++) {
    if (weights[i] == 0.0f) continue;
    last = i;
    before += static_cast<double>(weights[i]);
    if (before > target) break;
  }
  return chosen * kPiece + last;
}

// Fills the selection with the logits from `floor` on. Returns the weight of all tokens if asked to.
double RowSampler::gather(float floor, bool weigh) {
  float* values = selection_.values();
  float* weights = selection_.weights();
  int64_t count = 0;
  double total = 0.0;
  for (int64_t i = 0; i < row_.pieces(); i++) {
    const float* piece = row_.piece(i);
    if (row_.best(i) < floor) {
      if (weigh) total += weight_of(piece, weigher_);
      continue;
    }
    simd::Float sum = simd::zero();
    for (int64_t j = 0; j < kPiece; j += simd::kLanes) {
      const simd::Float v = simd::load(piece + j);
      const simd::Float weight = weigher_(v);
      sum = simd::add(sum, weight);
      simd::keep_between(weight, v, floor, FLT_MAX, weights + count);
      count += simd::keep_between(v, v, floor, FLT_MAX, values + count);
    }
    total += static_cast<double>(simd::sum(sum));
  }
  selection_.begin(count, weigher_);
  return total;
}

int64_t RowSampler::draw_truncated(const Draw& job, int64_t row) {
  const double top_p = job.top_p[row];
  const double min_p = static_cast<double>(job.min_p[row]);
  const double temperature = static_cast<double>(job.temperature[row]);
  const int64_t top_k = job.top_k[row];
  const bool limited = top_k > 0 && top_k < row_.width();
  Place last{0, 0, 0, 0.0};  // the last token that is kept
  double mass;               // top-p is a share of it
  if (limited) {
    float floor = -FLT_MAX;
    if (2 * top_k <= row_.pieces()) {  // so many pieces have a logit from here on
      std::copy_n(row_.best(), row_.pieces(), bests_.data());
      std::nth_element(bests_.data(), bests_.data() + top_k - 1, bests_.data() + row_.pieces(), std::greater<float>());
      floor = std::max(floor, bests_.data()[top_k - 1]);
    }
    gather(floor, false);
    last = selection_.find({Goal::kCount, static_cast<double>(std::min(top_k, selection_.count()))});
    mass = last.mass;
  } else {
    mass = gather(floor_of(row_, top_p, min_p, temperature), true);
    last.count = selection_.count() + 1;
  }
  if (!(mass > 0.0)) return row_.token(row_.top(), 1);  // a logit is not a number
  if (top_p < 1.0) {
    const Place cut = selection_.find({Goal::kMass, top_p * mass});
    if (cut.count < last.count) last = cut;
  }
  if (min_p > 0.0) {
    const float least = static_cast<float>(static_cast<double>(row_.top()) + temperature * std::log(std::min(min_p, 1.0)));
    int64_t reaching = 0;
    for (int64_t i = 0; i < selection_.count(); i++) reaching += selection_.values()[i] >= least;
    if (reaching < last.count) last = selection_.find({Goal::kCount, static_cast<double>(reaching)});
  }
  const Place drawn = selection_.find({Goal::kBeyondMass, job.uniform[row] * last.mass});
  const Place& place = drawn.count < last.count ? drawn : last;
  return row_.token(place.value, place.ordinal);
}

void Sampler::run(const Draw& job) {
  for (RowSampler& row : rows) row.reserve(job.width, job.allowed != nullptr);
  if (job.rows == 1 || rows.size() == 1) {
    for (int64_t row = 0; row < job.rows; row++) job.tokens[row] = rows[0].draw(job, row);
    return;
  }
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(static_cast<int>(rows.size()))
  {
    RowSampler& mine = rows[static_cast<size_t>(omp_get_thread_num())];
    for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < job.rows;) job.tokens[row] = mine.draw(job, row);
  }
}

#include "selection.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace {

constexpr int64_t kStretch = 256;  // values whose bins are computed before they are added up

// The value of the last vector of a list, the lanes behind its end copies of its first value.
simd::Float load_end(const float* values, int64_t count, float first) {
  float lanes[simd::kLanes];
  std::fill_n(lanes, simd::kLanes, first);
  std::copy_n(values, count, lanes);
  return simd::load(lanes);
}

}  // namespace

void Selection::reserve(int64_t count) {
  const int64_t padded = round_up(count, simd::kLanes) + simd::kLanes;
  for (Buffer<float>* buffer : {&values_, &weights_, &some_, &some_weights_}) buffer->reserve(padded);
}

void Selection::begin(int64_t count, const Weigher& weigher) {
  weigher_ = weigher;
  count_ = count;
  all_ = part_of(values_.data(), count);
  if (all_.is_divisible()) fill(all_, weights_.data(), all_bins_);
}

bool Selection::Part::is_divisible() const { return count > kFew && scale > 0 && scale <= 1e30f; }

Selection::Part Selection::part_of(float* values, int64_t count) const {
  simd::Float top = simd::splat(values[0]);
  simd::Float bottom = top;
  for (int64_t i = 0; i < count; i += simd::kLanes) {
    const int64_t left = count - i;
    const simd::Float v = left >= simd::kLanes ? simd::load(values + i) : load_end(values + i, left, values[0]);
    top = simd::max(top, v);
    bottom = simd::min(bottom, v);
  }
  const float high = simd::max_lane(top);
  const float low = simd::min_lane(bottom);
  return {values, count, high, low, static_cast<float>(kBins - 1) / (high - low)};
}

void Selection::fill(const Part& part, const float* weights, Bin* bins) {
  std::fill_n(tables_[0], kTables * kBins, Bin{0.0, 0.0});
  float number[kStretch];
  int32_t index[kStretch];
  for (int64_t begin = 0; begin < part.count; begin += kStretch) {
    const int64_t count = std::min(kStretch, part.count - begin);
    for (int64_t i = 0; i < count; i += simd::kLanes) simd::store(number + i, part.bins(simd::load(part.values + begin + i)));
    for (int64_t i = 0; i < count; i++) index[i] = static_cast<int32_t>(number[i]);
    const auto add = [&](int64_t i, int64_t table) { tables_[table][index[i]] += Bin{1.0, static_cast<double>(weights[begin + i])}; };
    int64_t i = 0;
    for (; i + kTables <= count; i += kTables) {
      ML_UNROLL for (int64_t table = 0; table < kTables; table++) add(i + table, table);
    }
    for (; i < count; i++) add(i, 0);
  }
  for (int64_t b = 0; b < kBins; b++) bins[b] = (tables_[0][b] + tables_[1][b]) + (tables_[2][b] + tables_[3][b]);
}

// Copies the part's values that lie in the bin to out, which may be where they are now; returns how many.
int64_t Selection::take(const Part& part, int64_t bin, float* out) const {
  const float low = static_cast<float>(bin) - 0.5f;
  const float high = bin == kBins - 1 ? INFINITY : static_cast<float>(bin) + 0.5f;
  int64_t taken = 0;
  for (int64_t i = 0; i < part.count; i += simd::kLanes) {
    const int64_t left = part.count - i;
    if (left >= simd::kLanes) {
      const simd::Float v = simd::load(part.values + i);
      taken += simd::keep_between(v, part.bins(v), low, high, out + taken);
      continue;
    }
    float lanes[simd::kLanes];
    const simd::Float v = load_end(part.values + i, left, part.values[i]);
    simd::store(lanes, part.bins(v));
    float ends[simd::kLanes];
    simd::store(ends, v);
    for (int64_t j = 0; j < left; j++) {
      if (lanes[j] >= low && lanes[j] <= high) out[taken++] = ends[j];
    }
  }
  return taken;
}

Place Selection::find(const Goal& goal) {
  Part part = all_;
  const Bin* bins = all_bins_;
  Place above{0, 0, 0, 0.0};
  while (part.is_divisible()) {
    int64_t chosen = -1;
    Place before = above;
    for (int64_t b = 0; b < kBins; b++) {
      const Bin& bin = bins[b];
      if (bin[0] == 0.0 || (goal.kind != Goal::kCount && bin[1] == 0.0)) continue;
      chosen = b;
      before = above;
      above.count += static_cast<int64_t>(bin[0]);
      above.mass += bin[1];
      if (goal.met(above.count, above.mass)) break;
    }
    above = before;
    part = part_of(some_.data(), take(part, chosen, some_.data()));
    if (!part.is_divisible()) break;
    for (int64_t i = 0; i < part.count; i += simd::kLanes) {
      simd::store(some_weights_.data() + i, weigher_(simd::load(part.values + i)));
    }
    fill(part, some_weights_.data(), bins_);
    bins = bins_;
  }
  return part.top == part.bottom ? find_equal(part, goal, above) : find_sorted(part, goal, above);
}

Place Selection::find_equal(const Part& part, const Goal& goal, const Place& above) const {
  float lanes[simd::kLanes];
  simd::store(lanes, weigher_(simd::splat(part.top)));
  const double weight = static_cast<double>(lanes[0]);
  double needed = goal.target - static_cast<double>(above.count);
  if (goal.kind == Goal::kMass) needed = std::ceil((goal.target - above.mass) / weight);
  if (goal.kind == Goal::kBeyondMass) needed = std::floor((goal.target - above.mass) / weight) + 1.0;
  const double most = static_cast<double>(part.count);
  const double taken = needed >= 1.0 ? std::min(needed, most) : 1.0;  // also where it is not a number
  const int64_t ordinal = static_cast<int64_t>(taken);
  return {part.top, ordinal, above.count + ordinal, above.mass + taken * weight};
}

Place Selection::find_sorted(const Part& part, const Goal& goal, const Place& above) const {
  float* values = part.values;
  if (values == values_.data()) values = std::copy_n(values, part.count, some_.data()) - part.count;
  std::sort(values, values + part.count, std::greater<float>());
  Place place{values[0], 0, above.count, above.mass};
  Place last = place;
  float weights[simd::kLanes];
  for (int64_t i = 0; i < part.count; i++) {
    if (i % simd::kLanes == 0) simd::store(weights, weigher_(simd::load(values + i)));
    const double weight = static_cast<double>(weights[i % simd::kLanes]);
    place.ordinal = values[i] == place.value ? place.ordinal + 1 : 1;
    place.value = values[i];
    place.count++;
    place.mass += weight;
    if (weight > 0.0 || goal.kind == Goal::kCount || i == 0) last = place;
    if (goal.met(place.count, place.mass)) return place;
  }
  return last;
}

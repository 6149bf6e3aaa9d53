// The k-th largest of a row's values, and the one at which their summed weights pass a number: without sorting
// them. Values are counted and weighed in bins, and only the bin that matters is looked into.
#pragma once

#include <cstdint>

#include "memory.h"
#include "simd.h"

// A value's weight is e^((value - top) / temperature): probabilities that do not sum to 1.
struct Weigher {
  float top;
  float per_temperature;

  ML_INLINE simd::Float operator()(simd::Float values) const {
    return simd::exp(simd::mul(simd::sub(values, simd::splat(top)), simd::splat(per_temperature)));
  }
};

// What is looked for among values in falling order: the first at which the count or the mass, its own included,
// reaches the target; or exceeds it.
struct Goal {
  enum Kind { kCount, kMass, kBeyondMass };
  Kind kind;
  double target;

  bool met(int64_t count, double mass) const {
    switch (kind) {
      case kCount: return static_cast<double>(count) >= target;
      case kMass: return mass >= target;
      default: return mass > target;
    }
  }
};

struct Place {
  float value;
  int64_t ordinal;  // of those equal to it, how many are counted
  int64_t count;    // of values up to this one
  double mass;      // of these
};

class Selection {
 public:
  // Makes room for count values.
  void reserve(int64_t count);

  // To be filled, each value and its weight; behind them is room for kLanes more.
  float* values() { return values_.data(); }
  float* weights() { return weights_.data(); }
  const float* values() const { return values_.data(); }
  int64_t count() const { return count_; }

  // Deals out the values there are now, at least one, all finite.
  void begin(int64_t count, const Weigher& weigher);

  // The place that meets the goal; the last one with weight (for kCount: the last) if rounding lets none.
  Place find(const Goal& goal);

 private:
  static constexpr int64_t kBins = 256;
  static constexpr int64_t kTables = 4;  // in turn: a bin just written to is slow to add to
  static constexpr int64_t kFew = 64;  // values that are sorted

  typedef double Bin __attribute__((vector_size(16)));  // how many values, and their mass

  // Values between its bounds, dealt to bins of equal width, the largest to bin 0.
  struct Part {
    float* values;
    int64_t count;
    float top;
    float bottom;
    float scale;

    ML_INLINE simd::Float bins(simd::Float v) const {
      return simd::round_even(simd::mul(simd::sub(simd::splat(top), v), simd::splat(scale)));
    }
    bool is_divisible() const;
  };

  Part part_of(float* values, int64_t count) const;
  void fill(const Part& part, const float* weights, Bin* bins);
  int64_t take(const Part& part, int64_t bin, float* out) const;
  Place find_sorted(const Part& part, const Goal& goal, const Place& above) const;
  Place find_equal(const Part& part, const Goal& goal, const Place& above) const;

  Weigher weigher_{};
  Buffer<float> values_;
  Buffer<float> weights_;
  Buffer<float> some_;          // values of one bin
  Buffer<float> some_weights_;
  int64_t count_ = 0;
  Part all_{};
  Bin tables_[kTables][kBins];
  Bin all_bins_[kBins];
  Bin bins_[kBins];
};

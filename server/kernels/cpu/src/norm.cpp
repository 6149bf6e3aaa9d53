#include "norm.h"

#include <algorithm>
#include <cmath>

namespace {

using simd::Float;
using simd::kLanes;

ML_INLINE Float load_vector(const float* x) { return simd::load(x); }
ML_INLINE Float load_vector(const bf16* x) { return simd::load_bf16(x); }

template <typename Element>
Float inverse_rms(const Element* x, int64_t count, float eps) {
  Float squares = simd::zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Float v = load_vector(x + i);
    squares = simd::fma(v, v, squares);
  }
  return simd::splat(1.0f / std::sqrt(simd::sum(squares) / static_cast<float>(count) + eps));
}

// One row of a norm that adapters change.
void changed_row(const RmsNorm& job, int64_t r, int64_t number) {
  const float* x = job.x + number * job.x_stride;
  const Float scale = inverse_rms(x, job.hidden, job.eps);
  for (int64_t i = 0; i < job.hidden; i += kLanes) {
    const Float weight = norm_weight(*job.lora, job.module, number, simd::load(job.weight + i), i);
    simd::store_bf16(job.out + r * job.out_stride + i, simd::mul(simd::mul(simd::load(x + i), scale), weight));
  }
}

// The weight that a norm has in one row, vector by vector.
class RowWeight {
 public:
  RowWeight(const float* weight, const LoraStep* lora, int64_t module, int64_t row)
      : weight_(weight), lora_(lora != nullptr && changes_norm(*lora, module, row) ? lora : nullptr), module_(module), row_(row) {}

  Float operator()(int64_t i) const {
    const Float own = simd::load(weight_ + i);
    return lora_ != nullptr ? norm_weight(*lora_, module_, row_, own, i) : own;
  }

 private:
  const float* weight_;
  const LoraStep* lora_;
  int64_t module_;
  int64_t row_;
};

}  // namespace

void embed(const bf16* embedding, float scale, const int64_t* ids, float* x, int64_t stride, int64_t rows, int64_t hidden,
           const Worker& worker) {
  const Float factor = simd::splat(scale);
  const Range mine = worker.share(rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    const bf16* source = embedding + ids[r] * hidden;
    for (int64_t i = 0; i < hidden; i += kLanes) {
      simd::store(x + r * stride + i, simd::mul(simd::load_bf16(source + i), factor));
    }
  }
}

void rms_norm(const RmsNorm& job, const Worker& worker) {
  const Range mine = worker.share(job.rows);
  const auto row = [&](int64_t r) { return job.x + (job.gather != nullptr ? job.gather[r] : r) * job.x_stride; };
  for (int64_t r = mine.begin; r < mine.end; r++) {
    const int64_t number = job.gather != nullptr ? job.gather[r] : r;
    if (job.lora != nullptr && changes_norm(*job.lora, job.module, number)) {
      changed_row(job, r, number);
      continue;
    }
    const float* x = row(r);
    const float* ahead = row(std::min(r + 2, mine.end - 1));  // half of it lies in another core's cache
    const Float scale = inverse_rms(x, job.hidden, job.eps);
    for (int64_t i = 0; i < job.hidden; i += kLanes) {
      simd::prefetch(ahead + i);
      const Float normal = simd::mul(simd::load(x + i), scale);
      simd::store_bf16(job.out + r * job.out_stride + i, simd::mul(normal, simd::load(job.weight + i)));
    }
  }
}

void round_rows(const float* x, int64_t x_stride, bf16* out, int64_t out_stride, int64_t rows, int64_t hidden, const Worker& worker) {
  const Range mine = worker.share(rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    for (int64_t i = 0; i < hidden; i += kLanes) simd::store_bf16(out + r * out_stride + i, simd::load(x + r * x_stride + i));
  }
}

void add_rms_norm(const BranchNorm& job, const Worker& worker) {
  const Range mine = worker.share(job.rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    const float* x = job.x + r * job.stride;
    float* sum = job.residual + r * job.stride;
    const RowWeight weight(job.weight, job.lora, job.module, r);
    const Float scale = simd::mul(inverse_rms(x, job.hidden, job.eps), simd::splat(job.scale));
    for (int64_t i = 0; i < job.hidden; i += kLanes) {
      const Float normal = simd::mul(simd::load(x + i), scale);
      simd::store(sum + i, simd::add(simd::load(sum + i), simd::mul(normal, weight(i))));
    }
  }
}

void rms_norm_in_place(const JointNorm& job, const Worker& worker) {
  const Range mine = worker.share(job.rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    bf16* x = job.x + r * job.stride;
    const RowWeight weight(job.weight, job.lora, job.module, r);
    const Float scale = inverse_rms(x, job.columns, job.eps);
    for (int64_t i = 0; i < job.columns; i += kLanes) {
      simd::store_bf16(x + i, simd::mul(simd::mul(simd::load_bf16(x + i), scale), weight(i)));
    }
  }
}

void rms_norm_vector(float* x, const float* weight, float eps, int64_t count) {
  const Float scale = inverse_rms(x, count, eps);
  for (int64_t i = 0; i < count; i += kLanes) {
    simd::store(x + i, simd::mul(simd::mul(simd::load(x + i), scale), simd::load(weight + i)));
  }
}

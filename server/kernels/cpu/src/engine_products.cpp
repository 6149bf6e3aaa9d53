// Which matrices, rows and adapters' modules each product of a step has.
#include <algorithm>

#include "engine.h"
#include "unpack.h"

// The product of that number; the language model's head comes after the last layer's.
Gemm Engine::product_of(int64_t number, int64_t rows) const {
  const Decoder& d = decoder_;
  const int64_t hidden = padded(d.hidden);
  const int64_t attended = padded(d.heads * d.head_dim);
  const int64_t product = padded(d.intermediate);
  Gemm job{};
  job.rows = rows;
  job.x = space_.normed.data();
  job.x_stride = hidden;
  job.inputs = d.hidden;
  if (number == 4 * d.layers) {
    job.weight = d.lm_head;
    job.outputs = d.vocab;
    job.output = {Sink::kFloat, nullptr, padded(d.vocab)};
    return job;
  }
  const Layer& weights = active_[number / 4];
  switch (number % 4) {
    case kQkv:
      job.weight = weights.qkv;
      job.bias = weights.qkv_bias;
      job.outputs = qkv_columns(d);
      job.output = {Sink::kBf16, space_.qkv.data(), padded(job.outputs)};
      break;
    case kGateUp:
      job.weight = weights.gate_up;
      job.bias = weights.gate_up_bias;
      job.outputs = 2 * d.intermediate;
      job.output = {d.activation == kGeluTanh ? Sink::kGeluMul : Sink::kSiluMul, space_.product.data(), product};
      break;
    default:  // o and down add to the residual stream, perhaps through a norm
      const bool is_o = number % 4 == kO;
      job.x = is_o ? space_.attended.data() : space_.product.data();
      job.x_stride = is_o ? attended : product;
      job.inputs = is_o ? d.heads * d.head_dim : d.intermediate;
      job.weight = is_o ? weights.o : weights.down;
      job.bias = is_o ? weights.o_bias : weights.down_bias;
      job.outputs = d.hidden;
      if ((is_o ? weights.attention_norm : weights.mlp_norm) != nullptr) {
        job.output = {Sink::kFloat, space_.branch.data(), hidden};
      } else {
        job.output = {Sink::kAddFloat, space_.residual.data(), hidden, d.residual_scale};
      }
  }
  return job;
}

LoraSite Engine::site_of(int64_t number) const {
  const Decoder& d = decoder_;
  const Gemm job = product_of(number, 0);
  const int64_t first = modules_.first[static_cast<size_t>(number / 4)];
  const int64_t o = first + d.qkv_modules;
  const int64_t inner = d.intermediate;
  const int64_t q = d.heads * d.head_dim;
  const int64_t kv = d.kv_heads * d.head_dim;
  switch (number % 4) {
    case kQkv:
      if (d.qkv_modules == 1) return {first, 1, job.inputs, {q + 2 * kv, 0, 0}, job.x, job.x_stride, job.output};
      return {first, 3, job.inputs, {q, kv, kv}, job.x, job.x_stride, job.output};
    case kO: return {o, 1, job.inputs, {d.hidden, 0, 0}, job.x, job.x_stride, job.output};
    case kGateUp:
      if (d.gate_up_modules == 1) return {o + 1, 1, job.inputs, {2 * inner, 0, 0}, job.x, job.x_stride, job.output};
      return {o + 1, 2, job.inputs, {inner, inner, 0}, job.x, job.x_stride, job.output};
    default: return {o + 1 + d.gate_up_modules, 1, job.inputs, {d.hidden, 0, 0}, job.x, job.x_stride, job.output};
  }
}

const char* Engine::own_codes_of(int64_t number, const Worker& worker) const {
  if (of_experts(number)) {
    return own_codes(plain_matrix(active_[number / 4].router), decoder_.experts, decoder_.hidden, worker);
  }
  const Gemm job = product_of(number, 0);
  return own_codes(job.weight, job.outputs, job.inputs, worker);
}

// Room that a thread needs for a block of the decoder's own weights; merged ones are plain.
int64_t Engine::unpacked_elements() const {
  const Decoder& d = decoder_;
  const auto of = [](const PackedMatrix& matrix, int64_t inputs) {
    return matrix.kind == kPlain ? 0 : inputs * kBlockOutputs;
  };
  int64_t most = of(d.lm_head, d.hidden);
  for (const Layer& layer : layers_) {
    most = std::max({most, of(layer.qkv, d.hidden), of(layer.o, d.heads * d.head_dim), of(layer.gate_up, d.hidden),
                     of(layer.down, d.intermediate)});
  }
  return most;
}

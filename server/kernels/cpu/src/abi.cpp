#include "abi.h"

#include <omp.h>

#include <new>

#include "engine.h"
#include "gemm.h"
#include "pack.h"
#include "sampling.h"
#include "unpack.h"

extern "C" {

int64_t manylora_struct_size(int which) {
  switch (which) {
    case 0: return sizeof(Layer);
    case 1: return sizeof(Decoder);
    case 2: return sizeof(Lora);
    case 3: return sizeof(Step);
    case 4: return sizeof(Draw);
    case 5: return sizeof(PackedMatrix);
    default: return -1;
  }
}

Engine* manylora_open(const Decoder* decoder) {
  try {
    return new Engine(*decoder);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void manylora_close(Engine* engine) { delete engine; }

int manylora_step(Engine* engine, const Step* step) {
  const StepFault fault = engine->check(*step);
  if (fault != kStepDone || step->rows == 0) return fault;
  try {
    engine->run(*step);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kStepDone;
}

int manylora_fill_cache(Engine* engine, const int64_t* slots, int64_t count, int64_t start) {
  return engine->fill_cache(slots, count, start);
}

Sampler* manylora_open_sampler(int64_t threads) {
  try {
    return new Sampler(threads);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void manylora_close_sampler(Sampler* sampler) { delete sampler; }

int manylora_draw(Sampler* sampler, const Draw* draw) {
  try {
    sampler->run(*draw);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kStepDone;
}

void manylora_prefer_huge_pages(void* memory, int64_t bytes) { prefer_huge_pages(memory, bytes); }

void manylora_pack(const bf16* matrix, bf16* packed, int64_t outputs, int64_t inputs) { pack(matrix, packed, outputs, inputs); }

void manylora_pack_gate_up(const bf16* matrix, bf16* packed, int64_t intermediate, int64_t inputs) {
  pack_gate_up(matrix, packed, intermediate, inputs);
}

int manylora_inputs_apart() {
#if defined(ML_INPUTS_APART)
  return 1;
#else
  return 0;
#endif
}

void manylora_unpack(const PackedMatrix* matrix, bf16* packed, int64_t outputs, int64_t inputs) {
  const int64_t blocks = round_up(outputs, kBlockOutputs) / kBlockOutputs;
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; b++) {
    const char* codes = block_codes(*matrix, inputs, b);
    unpack(*matrix, inputs, {b, 0, inputs / 2, codes}, packed + b * kBlockOutputs * inputs);
  }
}

void manylora_gemm(const bf16* x, const bf16* packed, float* y, int64_t rows, int64_t outputs, int64_t inputs, int64_t threads) {
  Barrier barrier;
  StealQueue queue(static_cast<int>(threads));
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    const Worker worker{omp_get_thread_num(), omp_get_num_threads(), &barrier};
    const PackedMatrix weight{packed, nullptr, nullptr, nullptr, 0, round_up(outputs, kBlockOutputs) / kBlockOutputs, kPlain, 0, 0};
    gemm({x, inputs, rows, weight, outputs, inputs, nullptr, {Sink::kFloat, y, round_up(outputs, kBlockOutputs)}, nullptr, nullptr, &queue, nullptr, nullptr}, worker);
  }
}

void manylora_exp(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += simd::kLanes) simd::store(y + i, simd::exp(simd::load(x + i)));
}
}

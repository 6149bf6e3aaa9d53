#pragma once

#include <cstdint>

#include "lora.h"
#include "simd.h"
#include "worker.h"

// x[r] = scale * embedding[ids[r]] in fp32, for this thread's share of the rows.
void embed(const bf16* embedding, float scale, const int64_t* ids, float* x, int64_t stride, int64_t rows, int64_t hidden,
           const Worker& worker);

struct RmsNorm {
  const float* x;          // [*][x_stride]
  int64_t x_stride;
  const int64_t* gather;   // output row r is made from row gather[r] of x; null: from row r
  const float* weight;     // [hidden]
  float eps;
  int64_t rows;
  int64_t hidden;
  bf16* out;               // [rows][out_stride]
  int64_t out_stride;
  const LoraStep* lora;    // whose adapters change the norm in some rows; null: nobody does
  int64_t module;          // its number among those that adapters change
};

// out = x / rms(x) * (weight and the adapters' gains), for this thread's share of the rows.
void rms_norm(const RmsNorm& job, const Worker& worker);

// out[r] = x[r] rounded, where a model has no norm; for this thread's share of the rows.
void round_rows(const float* x, int64_t x_stride, bf16* out, int64_t out_stride, int64_t rows, int64_t hidden, const Worker& worker);

// Of what attention or the MLP gives, before it is added to the residual stream.
struct BranchNorm {
  const float* x;          // [rows][stride]
  float* residual;         // [rows][stride]
  int64_t stride;
  const float* weight;     // [hidden]
  float eps;
  float scale;             // of what is added
  int64_t rows;
  int64_t hidden;
  const LoraStep* lora;    // as in RmsNorm
  int64_t module;
};

// residual += scale * (x / rms(x) * weight), for this thread's share of the rows.
void add_rms_norm(const BranchNorm& job, const Worker& worker);

// Of the queries or the keys of all heads together.
struct JointNorm {
  bf16* x;                 // [rows][stride]
  int64_t stride;
  const float* weight;     // [columns]
  float eps;
  int64_t rows;
  int64_t columns;
  const LoraStep* lora;    // as in RmsNorm
  int64_t module;
};

// x = x / rms(x) * weight, for this thread's share of the rows.
void rms_norm_in_place(const JointNorm& job, const Worker& worker);

// In place on one vector of fp32; count a multiple of 16.
void rms_norm_vector(float* x, const float* weight, float eps, int64_t count);

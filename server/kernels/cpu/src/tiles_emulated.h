// The tile registers in plain C++: what the instructions do, bit for bit except for the payload of NaNs.
#pragma once

#include <cstring>

namespace tiles {

struct Register {
  alignas(64) unsigned char bytes[16][64];
};

struct Registers {
  Config config;
  Register tile[8];
};

inline thread_local Registers registers;

inline void load_config(const Config& config) {
  registers.config = config;
  memset(registers.tile, 0, sizeof registers.tile);
}

inline void release() {}

template <int T>
inline void zero() {
  memset(&registers.tile[T], 0, sizeof registers.tile[T]);
}

template <int T>
inline void load(const void* data, int64_t stride) {
  zero<T>();
  for (int r = 0; r < registers.config.rows[T]; r++) {
    memcpy(registers.tile[T].bytes[r], static_cast<const char*>(data) + r * stride, registers.config.bytes[T]);
  }
}

template <int T>
inline void store(void* data, int64_t stride) {
  for (int r = 0; r < registers.config.rows[T]; r++) {
    memcpy(static_cast<char*>(data) + r * stride, registers.tile[T].bytes[r], registers.config.bytes[T]);
  }
}

// Row `row` of a b, added to that of c.
inline void multiply_row(const Register& a, const Register& b, int row, int pairs, float (&out)[16]) {
  float even[16] = {};
  float odd[16] = {};
  bf16 left[32];
  memcpy(left, a.bytes[row], sizeof left);
  for (int k = 0; k < pairs; k++) {
    bf16 right[32];
    memcpy(right, b.bytes[k], sizeof right);
    const float x = tile_order::flush(to_float(left[2 * k]));
    const float y = tile_order::flush(to_float(left[2 * k + 1]));
    for (int n = 0; n < 16; n++) {
      even[n] = tile_order::fma(x, tile_order::flush(to_float(right[2 * n])), even[n]);
      odd[n] = tile_order::fma(y, tile_order::flush(to_float(right[2 * n + 1])), odd[n]);
    }
  }
  for (int n = 0; n < 16; n++) out[n] = tile_order::add(tile_order::flush(out[n]), tile_order::add(even[n], odd[n]));
}

template <int C, int A, int B>
inline void dot() {
  const Config& config = registers.config;
  for (int m = 0; m < config.rows[C]; m++) {
    float out[16];
    memcpy(out, registers.tile[C].bytes[m], sizeof out);
    multiply_row(registers.tile[A], registers.tile[B], m, config.bytes[A] / 4, out);
    memcpy(registers.tile[C].bytes[m], out, config.bytes[C]);
  }
}

class FlushDenormals {};

// fma and add of every lane, which flush by themselves.
inline simd::Float fma(simd::Float a, simd::Float b, simd::Float c) {
  float x[simd::kLanes], y[simd::kLanes], z[simd::kLanes];
  simd::store(x, a);
  simd::store(y, b);
  simd::store(z, c);
  for (int i = 0; i < simd::kLanes; i++) z[i] = tile_order::fma(tile_order::flush(x[i]), tile_order::flush(y[i]), z[i]);
  return simd::load(z);
}

inline simd::Float add(simd::Float a, simd::Float b) {
  float x[simd::kLanes], y[simd::kLanes];
  simd::store(x, a);
  simd::store(y, b);
  for (int i = 0; i < simd::kLanes; i++) x[i] = tile_order::add(x[i], y[i]);
  return simd::load(x);
}

}  // namespace tiles

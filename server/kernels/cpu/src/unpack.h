// Weights that are kept in few bits, made bf16 a piece at a time in the layout that a product reads (pack.h).
//
// A kind is added by its number in abi.h, its bytes in block_bytes, its unpack functions beside unpack_nibbles.cpp and in
// unpack_apart.cpp, a line in unpack(), and the packers in packed_codes.py; codes.py says in PyTorch what it stands for.
// 4-bit and 8-bit kinds with another formula (a zero point, a minimum) need the formula alone: code_formulas.h.
#pragma once

#include <cstdint>

#include "abi.h"
#include "pack.h"

// Some of the codes of a matrix, and where the memory is read next.
struct Codes {
  int64_t block;
  int64_t begin;      // steps, pairs of inputs: a multiple of 8
  int64_t end;        // a multiple of 8
  const char* ahead;  // prefetched meanwhile, from the block's first step on as many bytes as its codes have
};

// Bytes that the codes of a block take.
inline int64_t block_bytes(int32_t kind, int64_t inputs) {
  switch (kind) {
    case kNibbles:
    case kShifted:
    case kAdded: return inputs * kBlockOutputs / 2;
    case kBytes:
    case kAddedBytes: return inputs * kBlockOutputs;
    default: return inputs * kBlockOutputs * static_cast<int64_t>(sizeof(bf16));
  }
}

// The part of a matrix that has a block, which becomes the part's own number of it.
inline const PackedMatrix& part_of(const PackedMatrix& matrix, int64_t* block) {
  if (matrix.kind != kSeveral) return matrix;
  const auto* part = static_cast<const PackedMatrix*>(matrix.codes);
  const PackedMatrix* last = part + matrix.group - 1;
  for (; part != last && *block >= part->blocks; part++) *block -= part->blocks;
  return *part;
}

// Weights that are packed, but not in few bits.
inline PackedMatrix plain_matrix(const bf16* packed) {
  PackedMatrix matrix{};
  matrix.codes = packed;
  matrix.kind = kPlain;
  return matrix;
}

inline const char* block_codes(const PackedMatrix& matrix, int64_t inputs, int64_t block) {
  const PackedMatrix& part = part_of(matrix, &block);
  return static_cast<const char*>(part.codes) + block * block_bytes(part.kind, inputs);
}

// The scales, or the offsets, of an output block in one group of inputs.
inline const float* of_group(const float* values, const PackedMatrix& matrix, int64_t inputs, int64_t block, int64_t group) {
  const int64_t groups = (inputs + matrix.group - 1) / matrix.group;
  return values + (block * groups + group) * kBlockOutputs;
}

// The weights of `codes` to out[end - begin][32][2]. Not for null scales.
void unpack(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out);

void unpack_nibbles(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out);
void unpack_bytes(const PackedMatrix& matrix, int64_t inputs, const Codes& codes, bf16* out);

// Calls piece(group, begin, end) for the steps of each group in turn.
template <class Piece>
inline void each_group(const PackedMatrix& matrix, const Codes& codes, Piece piece) {
  const int64_t steps = matrix.group / 2;
  for (int64_t k = codes.begin; k < codes.end;) {
    const int64_t group = k / steps;
    const int64_t end = (group + 1) * steps < codes.end ? (group + 1) * steps : codes.end;
    piece(group, k, end);
    k = end;
  }
}

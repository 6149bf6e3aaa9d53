#include "gemm.h"

#include "memory.h"
#include "unpack.h"

namespace {

using simd::Float;
using simd::kLanes;
using simd::Pairs;

constexpr int kPassVectors = 2;                                      // output vectors of one pass
constexpr int kPasses = kBlockOutputs / (kPassVectors * kLanes);     // passes that make a block
constexpr int kStepElements = kBlockOutputs * 2;                     // packed elements of one pair of inputs
constexpr int64_t kStepBytes = kStepElements * sizeof(bf16);
constexpr int kPieceSteps = 64;                                      // steps served by one prefetched piece
constexpr int64_t kRowChunk = 12 * simd::kGemmRows;                  // rows whose inputs stay in the L2 cache
constexpr int64_t kNear = 4096;                                      // prefetch distances into the weights
constexpr int64_t kFar = 12288;
constexpr int64_t kLaterLines = 24;                                  // prefetched a piece while weights stream
constexpr int64_t kUnpackedSteps = 2 * kPieceSteps;                  // unpacked at a time: they stay in the L1 cache

using Tile = float[simd::kGemmRows][kBlockOutputs];

// Two lines to prefetch each step: they advance by `stride` bytes, or stand still at 0.
struct Ahead {
  const char* first;
  const char* second;
  int64_t first_stride;
  int64_t second_stride;
};

// Accumulates steps [begin, end) of one pass. The array is kept in registers by full unrolling. Rows are
// addressed in threes from a pointer the compiler can't see through: left alone it keeps twelve row
// pointers and spills half of them.
template <int Rows>
ML_INLINE void accumulate(Float (&acc)[Rows][kPassVectors], const bf16* x, int64_t stride, const bf16* w,
                          int64_t begin, int64_t end, const Ahead& ahead) {
  constexpr int kGroups = (Rows + 2) / 3;
  const char* first = ahead.first;
  const char* second = ahead.second;
  const bf16* group[kGroups];
  for (int g = 0; g < kGroups; g++) group[g] = x + 3 * g * stride + 2 * begin;
  const bf16* step = w + begin * kStepElements;
  const bf16* const stop = w + end * kStepElements;
  for (; step != stop; step += kStepElements) {
    Pairs weight[kPassVectors];
    ML_UNROLL
    for (int v = 0; v < kPassVectors; v++) weight[v] = simd::load_pairs(step + v * 2 * kLanes);
    simd::prefetch(first);
    simd::prefetch(second);
    first += ahead.first_stride;
    second += ahead.second_stride;
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      if (m % 3 == 0) asm("" : "+r"(group[m / 3]));
      const Pairs input = simd::splat_pair(group[m / 3] + m % 3 * stride);
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) acc[m][v] = simd::dot2(acc[m][v], weight[v], input);
    }
    ML_UNROLL
    for (int g = 0; g < kGroups; g++) group[g] += 2;
  }
}

// How the steps of one tile are cut up for prefetching.
struct Schedule {
  const bf16* x;
  int64_t stride;
  const bf16* w;
  int64_t steps;
  const char* weights; // next lines of the weights
  int64_t lines;       // weight lines to prefetch each step: 2, 1 or 0
  Upcoming* later;
  LoraDelta* delta;
  bool resume;         // go on from what the tile holds: sums of the steps before
};

ML_INLINE Ahead next_piece(const Schedule& s, int64_t k) {
  const char* idle = reinterpret_cast<const char*>(s.x);
  Ahead ahead{idle, idle, 0, 0};
  if (s.lines == 2) {
    const char* piece = s.later != nullptr ? s.later->take(kLaterLines * 64) : nullptr;
    for (int64_t i = 0; piece != nullptr && i < kLaterLines; i++) simd::prefetch(piece + i * 64);
    return {s.weights + k * 128, s.weights + k * 128 + 64, 128, 128};
  }
  if (s.lines == 1) {
    ahead.first = s.weights + k * 64;
    ahead.first_stride = 64;
  } else if (const char* piece = s.later != nullptr ? s.later->take(kPieceSteps * 64) : nullptr) {
    ahead.first = piece;
    ahead.first_stride = 64;
  }
  if (const char* piece = s.later != nullptr ? s.later->take(kPieceSteps * 64) : nullptr) {
    ahead.second = piece;
    ahead.second_stride = 64;
  }
  return ahead;
}

template <int Rows>
void multiply(const Schedule& s, Tile& out) {
  for (int pass = 0; pass < kPasses; pass++) {
    Float acc[Rows][kPassVectors];
    const int column = pass * kPassVectors * kLanes;
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) acc[m][v] = s.resume ? simd::load(out[m] + column + v * kLanes) : simd::zero();
    }
    for (int64_t k = 0; k < s.steps; k += kPieceSteps) {
      const int64_t end = k + kPieceSteps < s.steps ? k + kPieceSteps : s.steps;
      if (s.delta != nullptr && pass == 0) s.delta->prefetch(end, s.steps);
      accumulate<Rows>(acc, s.x, s.stride, s.w + 2 * column, k, end, next_piece(s, k));
    }
    ML_UNROLL
    for (int m = 0; m < Rows; m++) {
      ML_UNROLL
      for (int v = 0; v < kPassVectors; v++) simd::store(out[m] + column + v * kLanes, acc[m][v]);
    }
  }
}

void multiply(int rows, const Schedule& s, Tile& out) {
  switch (rows) {
    case 1: return multiply<1>(s, out);
    case 2: return multiply<2>(s, out);
    case 3: return multiply<3>(s, out);
    case 4: return multiply<4>(s, out);
#if !defined(ML_SHORT_TILES)
    case 5: return multiply<5>(s, out);
    case 6: return multiply<6>(s, out);
    case 7: return multiply<7>(s, out);
    case 8: return multiply<8>(s, out);
    case 9: return multiply<9>(s, out);
    case 10: return multiply<10>(s, out);
    case 11: return multiply<11>(s, out);
    case 12: return multiply<12>(s, out);
#endif
    default: __builtin_unreachable();
  }
}

// Bias, adapters' delta, then wherever the outputs go.
void write(const Gemm& job, Tile& tile, int64_t row0, int rows, int64_t block) {
  if (job.bias != nullptr) {
    const float* bias = job.bias + block * kBlockOutputs;
    for (int m = 0; m < rows; m++) {
      for (int c = 0; c < kBlockOutputs; c += kLanes) {
        simd::store(tile[m] + c, simd::add(simd::load(tile[m] + c), simd::load(bias + c)));
      }
    }
  }
  if (job.delta != nullptr) job.delta->add(tile);
  for (int m = 0; m < rows; m++) {
    if (job.delta != nullptr && job.delta->keep(m, tile[m])) continue;
    if (job.output.sink == Sink::kSiluMul) {
      job.output.write_product(row0 + m, block, tile[m], tile[m] + 16);
    } else {
      job.output.write(row0 + m, block * kBlockOutputs, tile[m]);
      job.output.write(row0 + m, block * kBlockOutputs + 16, tile[m] + 16);
    }
  }
}

// One block of outputs for rows that fit one tile: the weights stream from memory. The last block brings in as
// much of what follows: the memory stays busy across the barrier.
void stream_block(const Gemm& job, const bf16* w, int64_t block, const char* following) {
  const int64_t steps = job.inputs / 2;
  const int64_t distance = job.rows <= 4 ? kNear : kFar;
  const char* codes = reinterpret_cast<const char*>(w);
  const bool goes_on = following == nullptr || following == codes + steps * kStepBytes;
  const Schedule s{job.x, job.x_stride, w, steps, goes_on ? codes + distance : following, 2, job.later, job.delta, false};
  if (job.delta != nullptr) job.delta->begin_tile(0, static_cast<int>(job.rows), block);
  Tile tile;
  multiply(static_cast<int>(job.rows), s, tile);
  write(job, tile, 0, static_cast<int>(job.rows), block);
}

// One block of outputs for many rows: the weights stay in cache from tile to tile, and the first two
// tiles prefetch the next block's.
void cached_block(const Gemm& job, const bf16* w, int64_t block, int64_t row0, int64_t rows, const char* following) {
  const int64_t steps = job.inputs / 2;
  const int64_t tiles = (rows + simd::kGemmRows - 1) / simd::kGemmRows;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t begin = row0 + rows * t / tiles;
    const int count = static_cast<int>(row0 + rows * (t + 1) / tiles - begin);
    const bool fetch = t < 2 && following != nullptr;
    const Schedule s{job.x + begin * job.x_stride, job.x_stride, w, steps,
                     fetch ? following + t * steps * 64 : nullptr, fetch ? 1 : 0, job.later, job.delta, false};
    if (job.delta != nullptr) job.delta->begin_tile(begin, count, block);
    Tile tile;
    multiply(count, s, tile);
    write(job, tile, begin, count, block);
  }
}

// The work of a GEMM as items, one block of outputs for one chunk of rows; a thread's own items are its
// share of the blocks, chunk after chunk.
class Grid {
 public:
  explicit Grid(const Gemm& job) : job_(job), blocks_(round_up(job.outputs, kBlockOutputs) / kBlockOutputs) {
    const int64_t chunks = (job.rows + kRowChunk - 1) / kRowChunk;
    chunk_rows_ = chunks > 0 ? round_up((job.rows + chunks - 1) / chunks, simd::kGemmRows) : 1;
    chunks_ = (job.rows + chunk_rows_ - 1) / chunk_rows_;
  }

  int64_t items(const Worker& owner) const { return chunks_ * own_blocks(owner); }

  int64_t block(const Worker& owner, int64_t item) const { return owner.share(blocks_).begin + item % own_blocks(owner); }

  const char* codes(const Worker& owner, int64_t item) const {
    return block_codes(job_.weight, job_.inputs, block(owner, item));
  }

  Range rows(const Worker& owner, int64_t item) const {
    const int64_t begin = item / own_blocks(owner) * chunk_rows_;
    return {begin, begin + chunk_rows_ < job_.rows ? begin + chunk_rows_ : job_.rows};
  }

 private:
  int64_t own_blocks(const Worker& owner) const {
    const Range range = owner.share(blocks_);
    return range.end - range.begin;
  }

  const Gemm& job_;
  int64_t blocks_;
  int64_t chunks_;
  int64_t chunk_rows_;
};

// The rows of an item by plain weights, which stream from memory.
void plain_item(const Gemm& job, const bf16* w, int64_t block, const Range& rows, const char* following) {
  if (job.rows <= simd::kGemmRows) {
    stream_block(job, w, block, following);
  } else {
    cached_block(job, w, block, rows.begin, rows.end - rows.begin, following);
  }
}

// One block of weights in few bits, for rows that fit one tile: made bf16 a piece at a time, in reach of the product.
void stream_codes(const Gemm& job, const Codes& block) {
  const int rows = static_cast<int>(job.rows);
  const int64_t steps = job.inputs / 2;
  if (job.delta != nullptr) job.delta->begin_tile(0, rows, block.block);
  Tile tile;
  Codes piece = block;
  for (int64_t k = 0; k < steps; k = piece.end) {
    piece.begin = k;
    piece.end = k + kUnpackedSteps < steps ? k + kUnpackedSteps : steps;
    unpack(job.weight, job.inputs, piece, job.unpacked);
    if (job.delta != nullptr) job.delta->prefetch(piece.end, steps);
    const Schedule s{job.x + 2 * k, job.x_stride, job.unpacked, piece.end - k, nullptr, 0, job.later, nullptr, k > 0};
    multiply(rows, s, tile);
  }
  write(job, tile, 0, rows, block.block);
}

// The rows of an item by weights in few bits.
void coded_item(const Gemm& job, const char* codes, int64_t block, const Range& rows, const char* following) {
  int64_t own = block;
  const int64_t size = block_bytes(part_of(job.weight, &own).kind, job.inputs);
  const bool goes_on = following == nullptr || following == codes + size;
  const Codes whole{block, 0, job.inputs / 2, goes_on ? codes + kNear : following};
  if (job.rows <= simd::kGemmRows) {
    stream_codes(job, whole);
  } else {
    unpack(job.weight, job.inputs, whole, job.unpacked);
    cached_block(job, job.unpacked, block, rows.begin, rows.end - rows.begin, nullptr);
  }
}

void run_item(const Gemm& job, const Grid& grid, const Worker& owner, int64_t item, const char* following) {
  const char* codes = grid.codes(owner, item);
  const int64_t block = grid.block(owner, item);
  if (job.weight.kind == kPlain) {
    plain_item(job, reinterpret_cast<const bf16*>(codes), block, grid.rows(owner, item), following);
  } else {
    coded_item(job, codes, block, grid.rows(owner, item), following);
  }
}

}  // namespace

void gemm(const Gemm& job, const Worker& worker) {
  const Grid grid(job);
  const int64_t own = grid.items(worker);
  for (int64_t i = job.queue->take_own(worker.index, own); i >= 0; i = job.queue->take_own(worker.index, own)) {
    run_item(job, grid, worker, i, i + 1 < own ? grid.codes(worker, i + 1) : static_cast<const char*>(job.next));
  }
  for (int k = 1; k < worker.count; k++) {
    const Worker victim{(worker.index + k) % worker.count, worker.count, worker.barrier};
    const int64_t items = grid.items(victim);
    for (int64_t i = job.queue->steal(victim.index, items); i >= 0; i = job.queue->steal(victim.index, items)) {
      run_item(job, grid, victim, i, static_cast<const char*>(job.next));
    }
  }
}

int64_t own_first_block(int64_t outputs, const Worker& worker) {
  return worker.share(round_up(outputs, kBlockOutputs) / kBlockOutputs).begin;
}

const char* own_codes(const PackedMatrix& matrix, int64_t outputs, int64_t inputs, const Worker& worker) {
  return block_codes(matrix, inputs, own_first_block(outputs, worker));
}

#include "gemm.h"

#include "kernel_scope.h"
#include "memory.h"
#include "unpack.h"
#if defined(ML_TILES)
#include "gemm_tiles.h"
using namespace gemm_tiles;
#else
#include "gemm_vectors.h"
using namespace gemm_vectors;
#endif
#include "gemm_codes.h"

namespace {

constexpr int64_t kRowChunk = 12 * simd::kGemmRows;  // rows whose inputs stay in the L2 cache
constexpr int64_t kNear = 4096;                      // prefetch distances into the weights
constexpr int64_t kFar = 12288;
// Steps unpacked at a time. Where sums wait for each other the next piece is unpacked meanwhile, if it is short; else a
// piece stays in the L1 cache.
constexpr int64_t kShortPiece = 32;
constexpr int64_t kLongPiece = 256;

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
    if (job.output.is_product()) {
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
  const char* weights = goes_on ? codes + distance : following;
  const Schedule s{job.x, job.x_stride, w, steps, weights, 2 * kScheduleSteps, job.later, job.delta, false};
  if (job.delta != nullptr) job.delta->begin_tile(0, static_cast<int>(job.rows), block);
  Tile tile;
  multiply(static_cast<int>(job.rows), s, tile);
  write(job, tile, 0, static_cast<int>(job.rows), block);
}

// One block of outputs for many rows: the weights stay in cache from tile to tile, and the first tiles prefetch
// the next block's.
void cached_block(const Gemm& job, const bf16* w, int64_t block, int64_t row0, int64_t rows, const char* following) {
  const int64_t steps = job.inputs / 2;
  const int64_t tiles = (rows + simd::kGemmRows - 1) / simd::kGemmRows;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t begin = row0 + tile_begin(rows, t, tiles);
    const int count = static_cast<int>(row0 + tile_begin(rows, t + 1, tiles) - begin);
    const bool fetch = t < kFetchingTiles && following != nullptr;
    const int64_t lines = fetch ? 2 * kScheduleSteps / kFetchingTiles : 0;
    const char* weights = fetch ? following + t * steps * kStepBytes / kFetchingTiles : nullptr;
    const Schedule s{job.x + begin * job.x_stride, job.x_stride, w, steps, weights, lines, job.later, job.delta, false};
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

// What is due of later reads when steps [begin, end) are computed.
void fetch_later(Upcoming& later, int64_t begin, int64_t end) {
  for (int64_t k = round_up(begin, kPieceSteps); k < end; k += kPieceSteps) {
    const char* piece = later.take(kLaterLines * 64);
    for (int64_t i = 0; piece != nullptr && i < kLaterLines; i++) simd::prefetch(piece + i * 64);
  }
}

// One block of weights in few bits, for rows that fit one tile: a piece at a time, made bf16 in reach of the product or
// multiplied as it is read.
void stream_codes(const Gemm& job, const Codes& block) {
  const int rows = static_cast<int>(job.rows);
  const int64_t steps = job.inputs / 2;
  if (job.delta != nullptr) job.delta->begin_tile(0, rows, block.block);
  Tile tile;
  Codes piece = block;
  const PackedMatrix& weight = part_of(job.weight, &piece.block);
  const bool stored = !gemm_codes::takes(weight, rows);
  const int64_t most = stored && rows <= kFewRows ? kShortPiece : kLongPiece;
  for (int64_t k = 0; k < steps; k = piece.end) {
    piece.begin = k;
    piece.end = k + most < steps ? k + most : steps;
    if (stored) unpack(weight, job.inputs, piece, job.unpacked);
    if (job.delta != nullptr) job.delta->prefetch(piece.end, steps);
    if (job.later != nullptr) fetch_later(*job.later, k, piece.end);
    if (!stored) {
      gemm_codes::multiply(rows, weight, job.inputs, piece, job.x + 2 * k, job.x_stride, k > 0, tile);
      continue;
    }
    const Schedule s{job.x + 2 * k, job.x_stride, job.unpacked, piece.end - k, nullptr, 0, nullptr, nullptr, k > 0};
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
  [[maybe_unused]] const KernelScope scope;
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

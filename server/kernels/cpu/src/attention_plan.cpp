#include "attention_plan.h"

#include <algorithm>

namespace {

constexpr int64_t kMaxReads = 4 << 20;  // bytes a thread may ask for in advance: its part of the L3 cache
constexpr int64_t kTaskVectors = 96;  // query vectors of a prefill task

int64_t blocks_of(const Span& span) { return span.end_block() - span.first_block(); }

}  // namespace

void AttentionPlan::build(const Step& step, int64_t heads, const KvCache& cache, int threads) {
  const int64_t kv_heads = cache.kv_heads;
  max_chunks_ = 0;
  rows_.clear();
  splits_.clear();
  prefill_.clear();
  pieces_.resize(static_cast<size_t>(threads));
  for (auto& list : pieces_) list.clear();
  collect(step, kv_heads, heads / kv_heads);

  int64_t total = 0;
  for (const Row& row : rows_) total += blocks_of(row.span) * kv_heads;
  // Thread k gets the blocks k total / threads .. (k + 1) total / threads of the line. A head goes to the
  // thread that its middle falls to, unless that would leave the threads too unequal.
  const int64_t tolerance = total / threads / 8;
  int64_t at = 0;
  for (const Row& row : rows_) {
    const int64_t blocks = blocks_of(row.span);
    int64_t head = 0;
    while (head < kv_heads) {
      const int64_t start = at + head * blocks;
      const int thread = static_cast<int>(std::min<int64_t>(threads - 1, (start + blocks / 2) * threads / total));
      const int64_t begin = total * thread / threads;
      const int64_t end = total * (thread + 1) / threads;
      const bool balanced = start + tolerance >= begin && start + blocks <= end + tolerance;
      if (!balanced && row.span.end_chunk() - row.span.first_chunk() > 1) {
        split_head(row, head, start, total, threads);
      } else {
        give_heads(row, head, head + 1, thread);
      }
      head++;
    }
    at += blocks * kv_heads;
  }
  list_reads(step, cache);
}

void AttentionPlan::collect(const Step& step, int64_t kv_heads, int64_t groups) {
  const int64_t task_rows = std::max<int64_t>(1, kTaskVectors / groups);
  for (int64_t s = 0; s < step.sequences; s++) {
    const int64_t rows = step.query_start[s + 1] - step.query_start[s];
    if (rows == 1) rows_.push_back({s, step.query_start[s], visible(step.context[s], 1, 0)});
    if (rows <= 1) continue;
    // The last rows see most: they come first, so that no thread starts a long task at the end.
    for (int64_t t = (rows - 1) / task_rows; t >= 0; t--) {
      const int64_t first = t * task_rows;
      for (int64_t h = 0; h < kv_heads; h++) prefill_.push_back({s, h, first, std::min(task_rows, rows - first)});
    }
  }
}

// Joins the head to the piece before it where both are whole heads of the same row, so that a block's
// heads, which are neighbours in memory, are read together.
void AttentionPlan::give_heads(const Row& row, int64_t head, int64_t head_end, int thread) {
  auto& list = pieces_[static_cast<size_t>(thread)];
  if (!list.empty() && list.back().split < 0 && list.back().row == row.row && list.back().head_end == head) {
    list.back().head_end = head_end;
    return;
  }
  list.push_back({row.sequence, row.row, row.span, head, head_end, row.span.first_chunk(), row.span.end_chunk(), -1});
}

void AttentionPlan::split_head(const Row& row, int64_t head, int64_t start, int64_t total, int threads) {
  const int64_t number = static_cast<int64_t>(splits_.size());
  splits_.push_back({row.row, head, row.span});
  max_chunks_ = std::max(max_chunks_, row.span.end_chunk() - row.span.first_chunk());
  for (int64_t c = row.span.first_chunk(); c < row.span.end_chunk(); c++) {
    const int64_t first = std::max(c * kChunkBlocks, row.span.first_block()) - row.span.first_block();
    const int64_t last = std::min((c + 1) * kChunkBlocks, row.span.end_block()) - row.span.first_block();
    const int64_t middle = start + (first + last) / 2;
    auto& list = pieces_[static_cast<size_t>(std::min<int64_t>(threads - 1, middle * threads / total))];
    if (!list.empty() && list.back().split == number) {
      list.back().chunk_end = c + 1;
    } else {
      list.push_back({row.sequence, row.row, row.span, head, head + 1, c, c + 1, number});
    }
  }
}

void AttentionPlan::list_reads(const Step& step, const KvCache& cache) {
  const int64_t unit = cache.unit_bytes();
  reads_.resize(pieces_.size());
  for (size_t t = 0; t < pieces_.size(); t++) {
    reads_[t].clear();
    int64_t bytes = 0;
    for (const DecodePiece& piece : pieces_[t]) {
      const int64_t first = std::max(piece.chunk * kChunkBlocks, piece.span.first_block());
      const int64_t end = std::min(piece.chunk_end * kChunkBlocks, piece.span.end_block());
      for (int64_t b = first; b < end && bytes < kMaxReads; b++) {
        const int64_t block = step.block_tables[piece.sequence * step.table_width + b];
        const int64_t size = (piece.head_end - piece.head) * unit;
        reads_[t].push_back({reinterpret_cast<const char*>((block * cache.kv_heads + piece.head) * unit), size});
        bytes += size;
      }
    }
  }
}

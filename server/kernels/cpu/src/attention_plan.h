// Who computes which piece of attention. Sequences with one row are decoded: their (sequence, kv head,
// chunk) pieces form one line that is cut into equal parts, one a thread, if need be inside a head.
// Sequences with more rows are cut into tasks that the threads take as they become free.
#pragma once

#include <cstdint>
#include <vector>

#include "abi.h"
#include "attention_tile.h"
#include "stream.h"

// Positions a row sees: begin .. end - 1.
struct Span {
  int64_t begin;
  int64_t end;

  int64_t first_block() const { return begin / kBlockTokens; }
  int64_t end_block() const { return (end + kBlockTokens - 1) / kBlockTokens; }
  int64_t first_chunk() const { return begin / kChunkTokens; }
  int64_t end_chunk() const { return (end + kChunkTokens - 1) / kChunkTokens; }
};

// Heads head .. head_end - 1 of chunks chunk .. chunk_end - 1 of one decode sequence.
struct DecodePiece {
  int64_t sequence;
  int64_t row;        // its only row
  Span span;
  int64_t head;
  int64_t head_end;
  int64_t chunk;
  int64_t chunk_end;
  int64_t split;      // number of the split head this is a part of; -1: all chunks of its heads
};

// A head whose chunks several threads compute.
struct SplitHead {
  int64_t row;
  int64_t head;
  Span span;
};

struct PrefillTask {
  int64_t sequence;
  int64_t head;
  int64_t first_row;  // counted within the sequence's rows
  int64_t rows;
};

class AttentionPlan {
 public:
  // For layers with this window (0: none).
  explicit AttentionPlan(int64_t window) : window_(window) {}

  void build(const Step& step, int64_t heads, const KvCache& cache, int threads);

  const std::vector<DecodePiece>& pieces(int thread) const { return pieces_[static_cast<size_t>(thread)]; }
  // What a thread reads of the cache in decode, up to a few megabytes, as offsets from the layer's cache.
  const std::vector<ByteRange>& reads(int thread) const { return reads_[static_cast<size_t>(thread)]; }
  const std::vector<SplitHead>& splits() const { return splits_; }
  const std::vector<PrefillTask>& prefill() const { return prefill_; }
  int64_t max_chunks() const { return max_chunks_; }  // of any split head

  // What row `row` (of `rows`) of a sequence with `context` tokens sees.
  Span visible(int64_t context, int64_t rows, int64_t row) const {
    const int64_t end = context - rows + row + 1;
    return {window_ > 0 && end > window_ ? end - window_ : 0, end};
  }

 private:
  struct Row {
    int64_t sequence;
    int64_t row;
    Span span;
  };

  void collect(const Step& step, int64_t kv_heads, int64_t groups);
  void give_heads(const Row& row, int64_t head, int64_t head_end, int thread);
  void list_reads(const Step& step, const KvCache& cache);
  void split_head(const Row& row, int64_t head, int64_t start, int64_t total, int threads);

  int64_t window_;
  int64_t max_chunks_ = 0;
  std::vector<Row> rows_;
  std::vector<std::vector<DecodePiece>> pieces_;
  std::vector<std::vector<ByteRange>> reads_;
  std::vector<SplitHead> splits_;
  std::vector<PrefillTask> prefill_;
};

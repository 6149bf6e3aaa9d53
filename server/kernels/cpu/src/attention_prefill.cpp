// Attention of chunks of rows: tiles of query vectors share K and V, which stay in cache from tile to tile.
#include <algorithm>

#include "attention.h"

namespace {

constexpr int64_t kTile = simd::kQueryVectors;

// One task: query vector v is row v / groups, head v % groups of the kv head's group.
class TaskRunner {
 public:
  TaskRunner(const Attention& job, const PrefillTask& task, AttentionScratch& scratch)
      : job_(job),
        task_(task),
        scratch_(scratch),
        vectors_(task.rows * job.groups),
        start_(job.step->query_start[task.sequence]),
        rows_(job.step->query_start[task.sequence + 1] - start_),
        state_(state_at(scratch.state.data(), vectors_, job.head_dim())) {}

  void run() {
    clear(state_, vectors_, job_.head_dim());
    pack_queries();
    const int64_t first = visible(0).first_chunk();
    const int64_t end = visible(vectors_ - 1).end_chunk();
    for (int64_t c = first; c < end; c++) {
      open_units(c);
      KeyChunk all = chunk_of(c, visible(0), visible(vectors_ - 1));
      gather_values(all, visible(vectors_ - 1).end, job_.head_dim(), scratch_.values.data());
      for (int64_t v = 0; v < vectors_; v += kTile) run_tile(c, v, all.values, std::min(kTile, vectors_ - v));
    }
    for (int64_t v = 0; v < vectors_; v++) finish(state_, v, job_.head_dim(), job_.out + out_of(v));
  }

 private:
  Span visible(int64_t vector) const {
    return job_.plan->visible(job_.step->context[task_.sequence], rows_, task_.first_row + vector / job_.groups);
  }

  int64_t row_of(int64_t vector) const { return start_ + task_.first_row + vector / job_.groups; }

  int64_t column_of(int64_t vector) const {
    return (task_.head * job_.groups + vector % job_.groups) * job_.head_dim();
  }

  int64_t out_of(int64_t vector) const { return row_of(vector) * job_.out_stride + column_of(vector); }

  void pack_queries() const {
    for (int64_t v = 0; v < vectors_; v += kTile) {
      const int64_t count = std::min(kTile, vectors_ - v);
      const bf16* query[kTile];
      for (int64_t j = 0; j < count; j++) query[j] = job_.qkv + row_of(v + j) * job_.qkv_stride + column_of(v + j);
      ::pack_queries(query, count, job_.head_dim(), scratch_.query.data() + v * query_width(job_.head_dim()));
    }
  }

  // Finds the units of a chunk that some vector sees; codes are made bf16 once, for all tiles.
  void open_units(int64_t c) {
    const int64_t first = std::max(c * kChunkBlocks, visible(0).first_block());
    const int64_t end = std::min((c + 1) * kChunkBlocks, visible(vectors_ - 1).end_block());
    const int32_t* table = job_.step->block_tables + task_.sequence * job_.step->table_width;
    for (int64_t b = first; b < end; b++) {
      const int64_t place = b - c * kChunkBlocks;
      bf16* room = scratch_.units.data() + place * job_.cache.unit_elements();
      unit_[place] = job_.cache.open(job_.cache.unit(table[b], task_.head), room);
    }
  }

  // The blocks of chunk c from the first that somebody sees who sees `low`, to the last of `high`; perhaps none.
  KeyChunk chunk_of(int64_t c, const Span& low, const Span& high) const {
    const int64_t first = std::max(c * kChunkBlocks, low.first_block());
    KeyChunk chunk;
    chunk.first_position = first * kBlockTokens;
    chunk.blocks = std::min((c + 1) * kChunkBlocks, high.end_block()) - first;
    for (int64_t b = 0; b < chunk.blocks; b++) {
      chunk.unit[b] = unit_[first + b - c * kChunkBlocks];
      chunk.ahead[b] = chunk.unit[b];
    }
    return chunk;
  }

  void run_tile(int64_t c, int64_t v, const bf16* values, int64_t count) const {
    KeyChunk chunk = chunk_of(c, visible(v), visible(v + count - 1));
    if (chunk.blocks <= 0) return;
    chunk.values = values;
    QueryTile tile;
    tile.count = static_cast<int>(count);
    tile.head_dim = job_.head_dim();
    tile.query = scratch_.query.data() + v * query_width(job_.head_dim());
    tile.scale = job_.scale;
    tile.cap = job_.cap;
    for (int64_t j = 0; j < count; j++) {
      const Span span = visible(v + j);
      tile.low[j] = static_cast<int>(span.begin);
      tile.high[j] = static_cast<int>(span.end);
    }
    const SoftmaxState part = state_at(scratch_.part.data(), kTile, job_.head_dim());
    attend(tile, chunk, part);
    fold(from_vector(state_, v, job_.head_dim()), part, tile.count, job_.head_dim());
  }

  const Attention& job_;
  const PrefillTask& task_;
  AttentionScratch& scratch_;
  const int64_t vectors_;
  const int64_t start_;  // first row of the sequence
  const int64_t rows_;   // its number of rows
  const SoftmaxState state_;
  const bf16* unit_[kChunkBlocks] = {};  // of the chunk at hand
};

}  // namespace

void prefill_attention(const Attention& job, AttentionScratch& scratch) {
  const std::vector<PrefillTask>& tasks = job.plan->prefill();
  const int64_t count = static_cast<int64_t>(tasks.size());
  if (count == 0) return;
  for (int64_t i = job.shared->next_task++; i < count; i = job.shared->next_task++) {
    TaskRunner(job, tasks[static_cast<size_t>(i)], scratch).run();
  }
}

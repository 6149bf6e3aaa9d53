// Attention of single rows: each reads its whole context once, so the kernel lives on memory bandwidth and
// prefetches units in the order they lie in memory, about a chunk ahead.
#include <algorithm>

#include "attention.h"

namespace {

constexpr int64_t kAheadUnits = 24;
constexpr int64_t kTile = simd::kQueryVectors;

const char* unit_of(const Attention& job, const DecodePiece& piece, int64_t block, int64_t head) {
  return job.cache.unit(job.step->block_tables[piece.sequence * job.step->table_width + block], head);
}

// Hands out the units of a list of pieces: blocks in order, the heads of a block together.
class UnitCursor {
 public:
  UnitCursor(const Attention& job, const std::vector<DecodePiece>& pieces)
      : job_(job), piece_(pieces.data()), end_(pieces.data() + pieces.size()), last_(reinterpret_cast<const char*>(job.qkv)) {
    enter();
  }

  const char* take() {
    if (piece_ == end_) return last_;
    last_ = unit_of(job_, *piece_, block_, head_);
    if (++head_ == piece_->head_end) {
      head_ = piece_->head;
      if (++block_ == end_block_) {
        ++piece_;
        enter();
      }
    }
    return last_;
  }

 private:
  void enter() {
    if (piece_ == end_) return;
    head_ = piece_->head;
    block_ = std::max(piece_->chunk * kChunkBlocks, piece_->span.first_block());
    end_block_ = std::min(piece_->chunk_end * kChunkBlocks, piece_->span.end_block());
  }

  const Attention& job_;
  const DecodePiece* piece_;
  const DecodePiece* end_;
  const char* last_;
  int64_t head_ = 0;
  int64_t block_ = 0;
  int64_t end_block_ = 0;
};

// The queries of one kv head, tile by tile.
void pack_head(const Attention& job, const bf16* q, bf16* packed) {
  for (int64_t v = 0; v < job.groups; v += kTile) {
    const int64_t count = std::min(kTile, job.groups - v);
    const bf16* query[kTile];
    for (int64_t j = 0; j < count; j++) query[j] = q + (v + j) * job.head_dim();
    pack_queries(query, count, job.head_dim(), packed + v * query_width(job.head_dim()));
  }
}

// Units of codes are made bf16 here, while those to come are prefetched; the kernel prefetches other ones itself.
KeyChunk read_chunk(const Attention& job, const DecodePiece& piece, int64_t c, int64_t head, UnitCursor& ahead, bf16* room) {
  KeyChunk chunk;
  const int64_t first = std::max(c * kChunkBlocks, piece.span.first_block());
  chunk.first_position = first * kBlockTokens;
  chunk.blocks = std::min((c + 1) * kChunkBlocks, piece.span.end_block()) - first;
  for (int64_t b = 0; b < chunk.blocks; b++) {
    const char* later = ahead.take();
    chunk.unit[b] = job.cache.open(unit_of(job, piece, first + b, head), room + b * job.cache.unit_elements());
    chunk.ahead[b] = job.cache.coded ? chunk.unit[b] : reinterpret_cast<const bf16*>(later);
    for (int64_t at = 0; job.cache.coded && at < job.cache.unit_bytes(); at += 64) simd::prefetch(later + at);
  }
  return chunk;
}

QueryTile tile_of(const Attention& job, const Span& span, int64_t vector, const bf16* queries) {
  QueryTile tile;
  tile.count = static_cast<int>(std::min(kTile, job.groups - vector));
  tile.head_dim = job.head_dim();
  tile.query = queries + vector * query_width(job.head_dim());
  tile.scale = job.scale;
  tile.cap = job.cap;
  std::fill_n(tile.low, tile.count, static_cast<int>(span.begin));
  std::fill_n(tile.high, tile.count, static_cast<int>(span.end));
  return tile;
}

void write(const Attention& job, int64_t row, int64_t head, const SoftmaxState& state) {
  bf16* out = job.out + row * job.out_stride + head * job.groups * job.head_dim();
  for (int64_t v = 0; v < job.groups; v++) finish(state, v, job.head_dim(), out + v * job.head_dim());
}

class PieceRunner {
 public:
  PieceRunner(const Attention& job, AttentionScratch& scratch, UnitCursor& ahead)
      : job_(job), scratch_(scratch), ahead_(ahead) {}

  void run(const DecodePiece& piece) {
    const bool whole = piece.split < 0;
    const bf16* q = job_.qkv + piece.row * job_.qkv_stride;
    for (int64_t h = piece.head; h < piece.head_end; h++) {
      pack_head(job_, q + h * job_.groups * job_.head_dim(), queries(piece, h));
      if (whole) clear(state(piece, h), job_.groups, job_.head_dim());
    }
    for (int64_t c = piece.chunk; c < piece.chunk_end; c++) {
      for (int64_t h = piece.head; h < piece.head_end; h++) whole ? add_chunk(piece, c, h) : keep_chunk(piece, c, h);
    }
    for (int64_t h = piece.head; whole && h < piece.head_end; h++) write(job_, piece.row, h, state(piece, h));
  }

 private:
  bf16* queries(const DecodePiece& piece, int64_t head) const {
    return scratch_.query.data() + (head - piece.head) * job_.groups * query_width(job_.head_dim());
  }

  SoftmaxState state(const DecodePiece& piece, int64_t head) const {
    const int64_t at = (head - piece.head) * state_floats(job_.groups, job_.head_dim());
    return state_at(scratch_.state.data() + at, job_.groups, job_.head_dim());
  }

  void add_chunk(const DecodePiece& piece, int64_t c, int64_t head) {
    KeyChunk chunk = read_chunk(job_, piece, c, head, ahead_, scratch_.units.data());
    gather_values(chunk, piece.span.end, job_.head_dim(), scratch_.values.data());
    const SoftmaxState part = state_at(scratch_.part.data(), kTile, job_.head_dim());
    for (int64_t v = 0; v < job_.groups; v += kTile) {
      const QueryTile tile = tile_of(job_, piece.span, v, queries(piece, head));
      attend(tile, chunk, part);
      fold(from_vector(state(piece, head), v, job_.head_dim()), part, tile.count, job_.head_dim());
    }
  }

  void keep_chunk(const DecodePiece& piece, int64_t c, int64_t head) {
    KeyChunk chunk = read_chunk(job_, piece, c, head, ahead_, scratch_.units.data());
    gather_values(chunk, piece.span.end, job_.head_dim(), scratch_.values.data());
    const int64_t number = piece.split * job_.plan->max_chunks() + c - piece.span.first_chunk();
    float* memory = job_.shared->parts.data() + number * state_floats(job_.groups, job_.head_dim());
    const SoftmaxState part = state_at(memory, job_.groups, job_.head_dim());
    for (int64_t v = 0; v < job_.groups; v += kTile) {
      attend(tile_of(job_, piece.span, v, queries(piece, head)), chunk, from_vector(part, v, job_.head_dim()));
    }
  }

  const Attention& job_;
  AttentionScratch& scratch_;
  UnitCursor& ahead_;
};

}  // namespace

void decode_attention(const Attention& job, AttentionScratch& scratch, const Worker& worker) {
  const std::vector<DecodePiece>& pieces = job.plan->pieces(worker.index);
  UnitCursor ahead(job, pieces);
  for (int64_t i = 0; i < kAheadUnits; i++) ahead.take();
  PieceRunner runner(job, scratch, ahead);
  for (const DecodePiece& piece : pieces) runner.run(piece);
}

void join_split_heads(const Attention& job, AttentionScratch& scratch, const Worker& worker) {
  const int64_t floats = state_floats(job.groups, job.head_dim());
  const int64_t count = static_cast<int64_t>(job.plan->splits().size());
  for (int64_t i = worker.index; i < count; i += worker.count) {
    const SplitHead& split = job.plan->splits()[static_cast<size_t>(i)];
    const SoftmaxState state = state_at(scratch.state.data(), job.groups, job.head_dim());
    clear(state, job.groups, job.head_dim());
    for (int64_t c = 0; c < split.span.end_chunk() - split.span.first_chunk(); c++) {
      float* memory = job.shared->parts.data() + (i * job.plan->max_chunks() + c) * floats;
      const SoftmaxState part = state_at(memory, job.groups, job.head_dim());
      for (int64_t v = 0; v < job.groups; v += kTile) {
        const int tile = static_cast<int>(std::min(kTile, job.groups - v));
        fold(from_vector(state, v, job.head_dim()), from_vector(part, v, job.head_dim()), tile, job.head_dim());
      }
    }
    write(job, split.row, split.head, state);
  }
}
